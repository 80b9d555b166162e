"""Rows of metrics sent on; `make test-trackers` has the packages that some tests need."""

import contextlib
import json
import logging
import sys
import time

import pytest

from unipt_jax.core.errors import ConfigError, PreemptionError
from unipt_jax.training import metrics, trackers

CONFIG = {"stage": "pretrain", "data": ["a", "b"], "optimizer": {"learning_rate": 1e-3}}


def row(step):
    return {"step": float(step), "loss": 1.0 / step, "val/R1": 10.0 * step}


def track(name, workdir, steps):
    """A run, or its continuation, in a directory that was claimed."""
    workdir.mkdir(exist_ok=True)
    with (
        trackers.start(name, workdir, CONFIG) as tracker,
        metrics.Writer(workdir, step=steps[0] - 1, send=tracker.write) as writer,
    ):
        for step in steps:
            writer.write(row(step))


def test_none_sends_nothing_and_leaves_nothing(tmp_path):
    trackers.require("none")
    track("none", tmp_path / "run", [1, 2])
    assert not (tmp_path / "run" / trackers.FILE).exists()
    assert [each["step"] for each in metrics.read(tmp_path / "run")] == [1, 2]


class Numbered(trackers.Tracker):
    """Knows runs by the order in which they were opened, and notes how they end."""

    opened, ended = 0, []

    def __init__(self, workdir, config, known):
        if known is None:
            Numbered.opened += 1
        self.identity = known or f"run{Numbered.opened}"

    def close(self, failed):
        self.ended.append(failed)


def test_a_tracker_does_not_forget_the_others_run(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "_Wandb", Numbered)
    monkeypatch.setattr(trackers, "_Mlflow", Numbered)
    names = ["wandb", "mlflow", "wandb", "mlflow"]
    found = [trackers.start(name, tmp_path, CONFIG).identity for name in names]
    assert found[0] != found[1] and found[:2] == found[2:]


@pytest.mark.parametrize(
    ("error", "failed"),
    [(None, False), (PreemptionError("SIGTERM"), False), (ValueError("x"), True)],
)
def test_only_what_went_wrong_has_failed(tmp_path, monkeypatch, error, failed):
    monkeypatch.setattr(trackers, "_Wandb", Numbered)
    with contextlib.suppress(ValueError, PreemptionError), trackers.start("wandb", tmp_path, {}):
        if error:
            raise error
    assert Numbered.ended.pop() is failed


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named(name, monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"tracker='{name}' .*pip install 'unipt-jax\[{name}\]'"):
        trackers.require(name)


class Fake:
    """As much of wandb as is used; it fails where it is told to."""

    def __init__(self, fails=()):
        self.fails, self.seen = fails, []

    def _see(self, name, /, *arguments, **options):
        if name in self.fails:
            raise RuntimeError("the net is gone")
        self.seen.append((name, *arguments, options))
        return self

    def __getattr__(self, name):
        return lambda *arguments, **options: self._see(name, *arguments, **options)

    id = "abc"


def test_a_continuation_asks_for_the_run_of_before(tmp_path, monkeypatch):
    for steps in ([1, 2], [2, 3]):
        monkeypatch.setitem(sys.modules, "wandb", fake := Fake())
        track("wandb", tmp_path / "run", steps)
        (_, asked), *_ = fake.seen
        assert (asked["name"], asked["config"]) == ("run", CONFIG)
        assert asked["id"] == (None if steps[0] == 1 else "abc")
        logged = [entry[1:] for entry in fake.seen if entry[0] == "log"]
        assert logged == [(row(step), {"step": step}) for step in steps]
        assert fake.seen[-1] == ("finish", {"exit_code": 0})
    assert json.loads((tmp_path / "run" / trackers.FILE).read_text()) == {"wandb": "abc"}


def test_a_tracker_that_cannot_be_reached_is_told_of_before_a_step(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", Fake(fails=["init"]))
    with pytest.raises(ConfigError, match=r"^tracker='wandb' cannot be reached: the net is gone;"):
        trackers.start("wandb", tmp_path, CONFIG)


def test_a_tracker_that_fails_later_does_not_end_the_run(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", Fake(fails=["log", "finish"]))
    with caplog.at_level(logging.WARNING):
        track("wandb", tmp_path, [1, 2])
    assert caplog.messages == ["the tracker failed: the net is gone; the run goes on"] * 3
    assert [each["step"] for each in metrics.read(tmp_path)] == [1, 2]


def test_a_run_that_fails_is_closed_as_such(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", fake := Fake())
    with pytest.raises(ZeroDivisionError), trackers.start("wandb", tmp_path, CONFIG):
        raise ZeroDivisionError
    assert fake.seen[-1] == ("finish", {"exit_code": 1})


# ---------------------------------------------------------------------------- the packages


def test_mlflow_keeps_one_run(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    track("mlflow", tmp_path / "pretrain", [1, 2, 3])
    track("mlflow", tmp_path / "pretrain", [3, 4])
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string=f"name = '{trackers.PROJECT}'")
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("pretrain", "FINISHED")
    assert found.data.params == {
        "stage": "pretrain",
        "data": "['a', 'b']",
        "optimizer.learning_rate": "0.001",
    }
    history = client.get_metric_history(found.info.run_id, "val/R1")
    assert {(entry.step, entry.value) for entry in history} == {
        (step, 10.0 * step) for step in (1, 2, 3, 4)
    }


def records(path):
    """The records of wandb's file, a log in LevelDB's format."""
    from wandb.proto import wandb_internal_pb2

    content, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:  # A block's rest, too short for a header.
            at += 32768 - at % 32768
            continue
        size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        parts += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # All of a record, or its end.
            yield wandb_internal_pb2.Record.FromString(parts)
            parts = b""


def test_wandb_keeps_one_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    workdir = tmp_path / "pretrain"
    track("wandb", workdir, [1, 2, 3])
    time.sleep(1)  # Files are named by the second.
    track("wandb", workdir, [3, 4])
    identity = json.loads((workdir / trackers.FILE).read_text())["wandb"]
    steps = []
    for file in sorted(workdir.glob("wandb/offline-run-*/*.wandb")):
        assert identity in file.name
        for record in records(file):
            if record.HasField("run"):
                assert record.run.run_id == identity
                assert (record.run.display_name, record.run.project) == ("pretrain", "unipt-jax")
            if record.HasField("history"):
                items = record.history.item
                values = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}
                assert row(values["_step"]).items() <= values.items()
                steps.append(values["_step"])
    assert sorted(steps) == [1, 2, 3, 3, 4]  # A server takes the second row of 3 for late.
