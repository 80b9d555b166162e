"""How benchmarks become rows, and rows results."""

import json
import subprocess
import sys
from pathlib import Path

import compare
import numpy as np
import pytest
import run


def test_a_ratio_is_of_rounds_in_which_both_were_measured():
    """The machine halves its speed after the first round: the medians of each would mislead."""
    ours, peer = np.array([1.0, 2.0, 2.0]), np.array([3.0, 6.0, 5.0])
    row = compare.row("step", ours, peer, bar=2.0, scale=10)
    assert (row.ours, row.peer) == (0.2, 0.5)
    assert row.ratio == 3.0


def test_programs_are_timed_in_turn_after_a_warm_up():
    calls = []
    times = compare.in_turn([lambda: calls.append("a"), lambda: calls.append("b")], 2)
    assert "".join(calls) == "ababab"
    assert times.shape == (2, 2)


def test_a_missed_bar_shows():
    rows = [compare.Row("x", 1.0, 2.0, "s", 2.0, bar) for bar in (2.0, 2.1, None)]
    met, missed, none = compare.table(rows).splitlines()[2:]
    assert "missed" in missed
    assert "missed" not in met + none


def row(name, ratio):
    return compare.Row(name, 1.0, ratio, "s", ratio, None)


@pytest.mark.parametrize(
    ("ratio", "fails"), [(2.0, False), (1.81, False), (1.79, True), (9.0, False)]
)
def test_what_falls_below_the_committed_ratio_is_found(ratio, fails):
    committed = json.loads(run.as_json([row("step", 2.0)]))
    assert bool(run.regressions([row("step", ratio)], committed, 0.1)) == fails


def test_a_row_that_is_gone_is_found():
    committed = json.loads(run.as_json([row("step", 2.0), row("other", 1.0)]))
    (line,) = run.regressions([row("step", 2.0)], committed, 0.1)
    assert "other" in line


# They import torch's models, which takes ten seconds each.
HEAVY = ("captioning", "finetuning_step", "pretraining_step", "text_encoding")


@pytest.mark.parametrize(
    "name",
    [pytest.param(it, marks=pytest.mark.slow) if it in HEAVY else it for it in run.NAMES],
)
def test_each_benchmark_tells_its_flags(name):
    """Imports what it needs, and can write rows."""
    pytest.importorskip("torch")
    command = [sys.executable, Path(run.FOLDER, f"{name}.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--json" in done.stdout


def test_the_committed_results_are_of_every_benchmark():
    results = json.loads(run.RESULTS.read_text())
    rows = [compare.Row(name, **entry) for name, entry in results.items()]
    assert all(row.ratio == pytest.approx(row.peer / row.ours, rel=0.3) for row in rows)
    bars = {
        "pre-training": {1.0, 1.5},
        "fine-tuning": {0.95},
        "captioning": {0.95, 3.0},
        "text encoding": {2.0},
        "ranks": {3.0, 10.0},
        "input pipeline": {1.0, 5.0},
        "contrastive": {8.0, 1 / 1.2},
        "start": {3.0},
    }
    for begin, wanted in bars.items():
        found = {row.bar for row in rows if row.name.startswith(begin)} - {None}
        assert found == wanted, begin


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("jit(step)/transpose(jvp(DualEncoder))/layers_0/mlp/fc1/dot_general", "products"),
        ("jit(step)/jvp(DualEncoder)/layers_0/self_attn/dot_general", "attention's products"),
        ("jit(step)/jvp(DualEncoder)/layers_0/self_attn/exp", "softmax"),
        ("jit(step)/jvp(DualEncoder)/layers_0/layer_norm1/mul", "LayerNorm"),
        ("jit(step)/transpose(jvp(DualEncoder))/optimization_barrier", "turning round"),
        ("jit(step)/sqrt", "optimizer, loss, norm"),
    ],
)
def test_a_profile_tells_operations_by_their_place(path, what):
    pytest.importorskip("torch")  # The peers' module is imported beside it.
    import step_profile

    assert step_profile.kind(path) == what


def test_each_missed_bar_is_told_of():
    text = (run.FOLDER / "RESULTS.md").read_text()
    for name, entry in json.loads(run.RESULTS.read_text()).items():
        if entry["bar"] and entry["ratio"] < entry["bar"]:
            assert f"**{name}**" in text
