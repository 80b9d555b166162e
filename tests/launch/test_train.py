"""launch/train.py from outside: a real kill, a real resume, and mistakes in one line."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from unipt_jax.core import trees
from unipt_jax.training.checkpoints import Checkpoints

SMALL = [
    "--config=configs/pretrain.py:demo",
    "--config.steps=12",
    "--config.batch_size=32",
    "--config.checkpoint_every=3",
    "--config.log_every=1",
    "--config.image.height=64",
    "--config.image.width=32",
]


def command(script, *arguments):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, f"launch/{script}.py", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def finish(process, seconds=200):
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("prepared")
    code, _, err = finish(
        command("prepare", "--config=configs/prepare.py:demo", f"--workdir={directory}")
    )
    assert code == 0, err
    return directory


def parameters(workdir):
    with Checkpoints.open_read_only(workdir) as checkpoints:
        step = checkpoints.latest_step()
        return step, trees.flatten(checkpoints.manager.restore(step)["state"]["params"])


def test_a_killed_and_resumed_run_ends_with_the_same_bits(data, tmp_path):
    """P28, P38: SIGKILL at any moment after the first checkpoint; then --resume."""
    arguments = [*SMALL, f"--config.data={data}"]
    code, out, err = finish(command("train", *arguments, f"--workdir={tmp_path / 'a'}"))
    assert code == 0, err
    assert "loss/contrastive" in out and "Traceback" not in err
    victim = command("train", *arguments, f"--workdir={tmp_path / 'b'}")
    checkpoints, deadline = tmp_path / "b" / "checkpoints", time.monotonic() + 120
    while not any(path.name.isdigit() for path in checkpoints.glob("*")):
        assert victim.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    # A finished victim proves nothing; steps are long enough for that not to happen.
    assert not (checkpoints / "12").exists()
    resume = [*arguments, f"--workdir={tmp_path / 'b'}", "--resume"]
    code, _, err = finish(command("train", *resume))
    assert code == 0 and "resumed" in err, err
    (step, straight), (_, resumed) = parameters(tmp_path / "a"), parameters(tmp_path / "b")
    assert step == 12
    for path, leaf in straight.items():
        np.testing.assert_array_equal(leaf, resumed[path], err_msg=path)
    rows = [
        [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in "ab"
    ]
    for one, other in zip(*rows, strict=True):
        for name in ("step", "loss", "learning_rate", "gradient_norm"):
            assert one[name] == other[name]

    for extra, message in (
        ([], "pass --resume"),
        (["--resume", "--config.optimizer.learning_rate=1.0"], "optimizer.learning_rate"),
        (["--resume", "--overwrite"], "exclude each other"),
    ):
        code, _, err = finish(command("train", *arguments, f"--workdir={tmp_path / 'a'}", *extra))
        assert code == 2 and message in err and "Traceback" not in err
        assert err.strip().splitlines()[-1].startswith("error: ")


def test_a_misspelt_field_is_answered_with_the_nearest(data, tmp_path):
    code, out, err = finish(
        command(
            "train", *SMALL, f"--config.data={data}", f"--workdir={tmp_path / 'x'}",
            "--config.optimizer.lerning_rate=1e-3",
        )
    )  # fmt: skip
    assert (code, out) == (2, "")
    assert err.strip() == (
        "error: optimizer.lerning_rate is unknown; did you mean 'learning_rate'?"
    )
    assert not (tmp_path / "x").exists()
