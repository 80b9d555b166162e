"""The rows a run writes about itself."""

import json
import math
import struct

import jax.numpy as jnp
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from tests.disks import limited
from unipt_jax.core.errors import DataError, DivergenceError
from unipt_jax.training import metrics


def row(step, **values):
    return {"step": float(step), "loss": 1.0 / step} | values


def test_rows_are_strict_json_lines(tmp_path):
    with metrics.Writer(tmp_path, step=0) as writer:
        for step in (1, 2):
            writer.write(row(step))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}]
    assert list((tmp_path / "tensorboard").iterdir())


def events(workdir):
    """What each event file holds, in the order of their records."""
    found = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            found.append(Event.FromString(content[at + 12 : at + 12 + length]))
            at += length + 16  # The length has a checksum of four bytes, and so has the record.
    return found


def test_tensorboard_gets_each_row_at_once_and_forgets_what_a_kill_took_back(tmp_path):
    first = metrics.Writer(tmp_path, step=0)
    first.write(row(1))
    first.write(row(2))  # Killed: never closed.
    names = [(e.step, v.tag, v.simple_value) for e in events(tmp_path) for v in e.summary.value]
    assert names == [(1, "step", 1), (1, "loss", 1), (2, "step", 2), (2, "loss", 0.5)]
    (tmp_path / "tensorboard").rename(tmp_path / "before")
    with metrics.Writer(tmp_path, step=1) as writer:
        writer.write(row(2))
    version, restart, *rows = events(tmp_path)
    assert version.file_version == "brain.Event:2" and [each.step for each in rows] == [2, 2]
    assert (restart.step, restart.session_log.status) == (2, SessionLog.START)


def test_a_full_disk_ends_a_run_whose_events_do_not_fit(tmp_path):
    """Each row of metrics fits, and the event file no more: nobody waits for its writer (P37)."""
    writer = metrics.Writer(tmp_path, step=0)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").symlink_to("/dev/null")
    with limited(1000), pytest.raises(OSError, match="too large") as caught, writer:
        for step in range(1, 100):
            writer.write(row(step))
    assert caught.value.filename == str(tmp_path / "tensorboard") and step > 2


def test_a_run_without_rows_opens_no_event_file(tmp_path):
    """What writes them takes a second to import."""
    with metrics.Writer(tmp_path, step=0):
        pass
    assert not (tmp_path / "tensorboard").exists()


def test_a_continuation_takes_back_rows_after_its_checkpoint(tmp_path):
    with metrics.Writer(tmp_path, step=0) as writer:
        for step in (1, 2, 3, 4):
            writer.write(row(step))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # killed while writing
    with metrics.Writer(tmp_path, step=2) as writer:
        writer.write(row(3, loss=7.0))
    kept = [(row["step"], row["loss"]) for row in metrics.read(tmp_path)]
    assert kept == [
        (1, 1.0),
        (2, 0.5),
        (3, 7.0),
    ]


@pytest.mark.parametrize("line", ['{"step": 2, "loss"}', '{"stfp": 2}', "3", '{"step": "2"}'])
def test_a_damaged_row_is_named(tmp_path, line):
    """A run that goes on, or draws its curve, does not end in a traceback."""
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl: line 2 .*; take that line away"):
        metrics.Writer(tmp_path, step=3)


def test_nan_is_refused_by_the_file_too(tmp_path):
    """P93: metrics.jsonl never holds a bare NaN."""
    with metrics.Writer(tmp_path, step=0) as writer, pytest.raises(ValueError, match="JSON"):
        writer.write(row(1, loss=math.nan))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_divergence_names_metric_and_steps(bad):
    with pytest.raises(DivergenceError, match=r"loss/mlm .* steps 41 to 50"):
        metrics.require_finite(row(50) | {"loss/mlm": bad}, since=40)
    metrics.require_finite(row(50), since=40)


def test_fetch_brings_scalars_home():
    assert metrics.fetch({"loss": jnp.asarray(1.5)}) == {"loss": 1.5}


@pytest.mark.parametrize(
    ("count", "most", "expected"),
    [(3, 12, [0, 1, 2]), (101, 5, [0, 25, 50, 75, 100]), (12, 12, list(range(12))), (0, 4, [])],
)
def test_thinned_rows_keep_both_ends(count, most, expected):
    assert metrics.thin(list(range(count)), most) == expected
