"""The rows a run writes about itself."""

import json
import math

import jax.numpy as jnp
import pytest

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
