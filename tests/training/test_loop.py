"""The loop: what is measured at checkpoints, written down, and kept."""

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from tests.training import micro
from unipt_jax.core import trees
from unipt_jax.core.errors import DataError, DivergenceError, PreemptionError
from unipt_jax.core.sharding import make_mesh, put_batch
from unipt_jax.data.pipeline import Batches
from unipt_jax.training import loop, metrics, state
from unipt_jax.training.checkpoints import Checkpoints

R1 = {2: 30.0, 4: 50.0, 6: 50.0, 8: 40.0}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Eight steps, with and without a score: the directories, and what was measured by step."""
    mesh = make_mesh(devices=jax.devices()[:1])
    net, optimizer, train_step = micro.parts(ema=0.5)
    example = put_batch(micro.batch(8), mesh)
    seen = {}

    def score(params):
        step = 2 * len(seen) + 2
        seen[step] = jax.device_get(params)
        return {"val/R1": R1[step], "val/mAP": -R1[step]}  # Only the first of them decides.

    jitted, directories = None, {}
    for name in ("scored", "plain"):
        made, shardings = state.create(net, example, optimizer, seed=0, mesh=mesh, ema=0.5)
        jitted = jitted or loop.jit_step(train_step, shardings, mesh)
        directories[name] = epath.Path(tmp_path_factory.mktemp(name))
        dataset = grain.MapDataset.range(100).map(lambda number: micro.batch(8, int(number)))
        with (
            Batches(dataset) as batches,
            metrics.Writer(directories[name], step=0) as writer,
            Checkpoints.open(directories[name], keep=1) as checkpoints,
        ):
            loop.train(
                state=made,
                train_step=jitted,
                batches=batches,
                mesh=mesh,
                steps=8,
                log_every=4,
                checkpoint_every=2,
                checkpoints=checkpoints,
                writer=writer,
                quarantine=directories[name] / "quarantine.jsonl",
                image_of=str,
                data_identity={},
                config={},
                score=score if name == "scored" else None,
            )
    return directories, seen


def measure_every_second(tmp_path, take, score, *, keep):
    """Trains for eight steps of a made-up state by `take`, measured at each second by `score`."""
    made = state.TrainState(
        step=jnp.int32(0),
        params={"kernel": jnp.ones(3)},
        opt_state=(),
        key=jax.random.key(0),
        average=None,
    )
    with (
        Batches(grain.MapDataset.range(100).map(lambda number: micro.batch(8))) as batches,
        metrics.Writer(tmp_path, step=0) as writer,
        Checkpoints.open(tmp_path, keep=keep) as checkpoints,
    ):
        loop.train(
            state=made,
            train_step=take,
            batches=batches,
            mesh=make_mesh(devices=jax.devices()[:1]),
            steps=8,
            log_every=4,
            checkpoint_every=2,
            checkpoints=checkpoints,
            writer=writer,
            quarantine=epath.Path(tmp_path) / "quarantine.jsonl",
            image_of=str,
            data_identity={},
            config={},
            score=score,
        )


@pytest.mark.parametrize("spoilt", ["loss", "val/R1"])
def test_what_is_no_number_is_neither_measured_nor_kept(tmp_path, spoilt):
    """At step 4, of a loss or of the score itself; step 2 stays the best and the latest (P40)."""
    measured = []

    def take(state, batch):
        late = spoilt == "loss" and int(state.step) == 3
        return state.replace(step=state.step + 1), {"loss": jnp.float32("nan" if late else 1)}

    def score(params):
        measured.append(params)
        return {"val/R1": float("nan") if len(measured) == 2 else 30.0}

    with pytest.raises(DivergenceError, match=rf"^{spoilt} became NaN .* in steps 3 to 4"):
        measure_every_second(tmp_path, take, score, keep=1)
    assert len(measured) == (1 if spoilt == "loss" else 2)
    assert [row["step"] for row in metrics.read(tmp_path)] == [2]
    with Checkpoints.open_read_only(tmp_path) as checkpoints:
        assert checkpoints.best_step() == checkpoints.latest_step() == 2


@pytest.mark.parametrize(("during", "reached"), [("step", 1), ("score", 3)])
def test_sigterm_while_a_step_is_compiled_or_a_checkpoint_measured_loses_nothing(
    tmp_path, during, reached
):
    """The step that was under way, or the next one after the measurement, is saved (P95)."""

    def take(state, batch):
        if during == "step" and int(state.step) == 0:
            signal.raise_signal(signal.SIGTERM)
        return state.replace(step=state.step + 1), {"loss": jnp.float32(1)}

    def score(params):
        assert during == "score", "short of time"
        signal.raise_signal(signal.SIGTERM)
        return {"val/R1": 30.0}

    with pytest.raises(PreemptionError, match=f"step {reached} is saved; go on with --resume"):
        measure_every_second(tmp_path, take, score, keep=2)
    with Checkpoints.open_read_only(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == reached
        assert checkpoints.best_step() == (2 if during == "score" else None)


def test_a_checkpoint_with_a_score_is_a_row(trained):
    """Also where none was due, every fourth step; without a score the rows are those alone."""
    directories, _ = trained
    scored, plain = (metrics.read(directories[name]) for name in ("scored", "plain"))
    assert {row["step"]: row["val/R1"] for row in scored} == R1
    assert all(row["val/mAP"] == -row["val/R1"] for row in scored)
    assert [row["step"] for row in plain] == [4, 8]
    assert not any(name.startswith("val/") for row in plain for name in row)
    # Measuring changes nothing in the training.
    assert {row["step"]: row["loss"] for row in scored if row["step"] in (4, 8)} == {
        row["step"]: row["loss"] for row in plain
    }


def test_the_average_is_measured_and_the_best_one_kept(trained):
    """Step 6, the later of the two best; the latest is there to go on from."""
    directories, seen = trained
    kept = sorted(int(path.name) for path in (directories["scored"] / "checkpoints").iterdir())
    assert kept == [6, 8]
    with Checkpoints.open_read_only(directories["scored"]) as checkpoints:
        assert checkpoints.score(6) == 50.0
        stored = checkpoints.manager.restore(8)["state"]
        best = trees.flatten(checkpoints.restore_params())
    for path, leaf in trees.flatten(stored["average"]).items():
        np.testing.assert_array_equal(leaf, trees.flatten(seen[8])[path])
        np.testing.assert_array_equal(best[path], trees.flatten(seen[6])[path])
    kernel = "image_head/projection/kernel"
    assert np.abs(trees.flatten(stored["params"])[kernel] - trees.flatten(seen[8])[kernel]).max()
    assert [p.name for p in (directories["plain"] / "checkpoints").iterdir()] == ["8"]


@pytest.mark.parametrize("line", ['{"pair": 2', '{"pbir": 2}', "3"])
def test_a_damaged_list_of_unreadable_records_is_named(tmp_path, line):
    path = epath.Path(tmp_path) / "quarantine.jsonl"
    path.write_text(f'{{"pair": 1}}\n{line}\n')
    with pytest.raises(DataError, match=r"quarantine\.jsonl: .*; take that line away"):
        loop._read_bad_records(path)


# ---------------------------------------------------------------------------- progress


def show(rows, first=0, steps=40):
    with loop._progress(first, steps) as shown:
        for row in rows:
            shown(row)


def row(step, **scores):
    return {"step": float(step), "loss": 2.5, "examples_per_second": 77.77} | scores


def test_without_a_terminal_each_row_is_a_log_line(caplog):
    with caplog.at_level("INFO"):
        show([row(10), row(20, **{"val/R1": 41.237, "val/R5": 50.0}), row(30)])
    said = [re.sub(r"\d+ s left", "N s left", line) for line in caplog.messages]
    assert said == [
        "step 10/40  loss 2.5000  77.8 examples/s  N s left",
        "step 20/40  loss 2.5000  77.8 examples/s  val/R1 41.24  N s left",
        "step 30/40  loss 2.5000  77.8 examples/s  N s left",
    ]


TERMINAL = """
import logging, sys, time
from unipt_jax.training import loop

logging.basicConfig(format="%(message)s", level=logging.INFO, force=True)
with loop._progress(0, 40) as show:
    logging.info("before")
    for step in (10, 20, 30):
        values = {"val/R1": 41.237} if step == 20 else {}
        show({"step": step, "loss": 2.5, "examples_per_second": 77.77} | values)
        time.sleep(0.3)
        logging.info("between %d", step)
logging.info("after")
"""


def test_in_a_terminal_log_lines_stand_above_the_bar():
    """Each on a line of its own; the bar has the last loss, rate and score, within 80 columns."""
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", TERMINAL],
        stderr=writer,
        stdout=writer,
        env=os.environ | {"TERM": "xterm", "COLUMNS": ""},
    )
    os.close(writer)
    said = b""
    with contextlib.suppress(OSError):  # The terminal's end.
        while part := os.read(reader, 4096):
            said += part
    os.close(reader)
    assert process.wait() == 0
    # Without colours; of each line what stands after its last erasure.
    text = re.sub(r"\x1b\[[0-9;?]*[mhlA]", "", said.decode())
    lines = [re.split(r"\r|\x1b\[2K", line.rstrip("\r"))[-1] for line in text.split("\n")]
    for line in ("before", "between 10", "between 20", "between 30", "after"):
        assert line in [each.strip() for each in lines], lines
    (*_, last) = [line for line in lines if "30/40" in line]
    assert "loss 2.5000  77.8 examples/s  val/R1 41.24" in last
    assert len(last.rstrip()) <= 80
