"""`launch/evaluate.py` as a user runs it: figures, a report, and mistakes in one line."""

import json
import subprocess
import sys

import pytest

from tests.training.test_conversion import export_clip
from unipt_jax.core.files import read_json


def launch(*arguments, variant=""):
    config = f"--config=configs/evaluate.py{variant}"
    return subprocess.run(
        [sys.executable, "launch/evaluate.py", config, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A CLIP of noise in Hugging Face's form."""
    directory = tmp_path_factory.mktemp("clip")
    export_clip(directory)
    return directory


@pytest.fixture(scope="module")
def run(clip, data, tmp_path_factory):
    """A finished run on the sample's test split, named twice."""
    workdir = tmp_path_factory.mktemp("evaluation") / "run"
    done = launch(
        f"--config.data={data},{data}",
        f"--config.checkpoint={clip}",
        f"--workdir={workdir}",
        variant=":demo",
    )
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


def test_it_writes_what_the_contract_says(run, clip):
    workdir, out = run
    found = json.loads(
        (workdir / "evaluation.json").read_text(), parse_constant=lambda name: pytest.fail(name)
    )
    for direction in ("text_to_image", "image_to_text"):
        figures = found[direction]
        assert list(figures) == ["R1", "R5", "R10", "mAP", "mINP"]
        assert all(0 <= value <= 100 for value in figures.values())
        assert figures["R1"] <= figures["R5"] <= figures["R10"]
        assert f"{figures['mAP']:.2f}" in out
    assert (found["queries"], found["gallery"], found["excluded_queries"]) == (360, 180, 0)
    assert (found["split"], found["feature"]) == ("test", "global")
    assert found["checkpoint"] == str(clip) and found["quarantined"] == 0
    # The same data give the same figures, in one run too.
    assert len(found["data_sets"]) == 2 and found["data_sets"][0] == found["data_sets"][1]
    assert "0 unreadable images left out" in out and "not recorded" in out
    assert "<!doctype html>" in (workdir / "report.html").read_text()
    assert not (workdir / "quarantine.jsonl").exists()
    assert read_json(workdir / "config.json")["stage"] == "evaluate"


def test_a_directory_in_use_is_refused(run, data, clip):
    workdir, _ = run
    before = (workdir / "evaluation.json").read_bytes()
    done = launch(f"--config.data={data}", f"--config.checkpoint={clip}", f"--workdir={workdir}")
    assert done.returncode == 2 and "pass --resume" in done.stderr
    assert (workdir / "evaluation.json").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (["--config.split=val"], "has no split 'val'"),
        (["--config.data=nowhere,elsewhere"], "elsewhere is no prepared data set"),
        (["--config.checkpoint=nowhere/at/all"], "nowhere/at/all"),
        (["--config.feature=globl"], "did you mean 'global'"),
        (["--config.batch_size=0"], "batch_size=0 must be at least 1"),
    ],
)
def test_a_mistake_is_one_line(clip, data, tmp_path, changes, named):
    """Before anything is computed (P10)."""
    done = launch(
        f"--config.data={data}",
        f"--config.checkpoint={clip}",
        f"--workdir={tmp_path / 'run'}",
        *changes,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ") and named in last
    assert not (tmp_path / "run").exists()
