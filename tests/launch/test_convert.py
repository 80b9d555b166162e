"""`launch/convert.py` as a user runs it: a work directory, or one clear line."""

import subprocess
import sys

import pytest

from tests.training.test_conversion import export_clip


def launch(*arguments):
    return subprocess.run(
        [sys.executable, "launch/convert.py", "--config=configs/convert.py", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    directory = tmp_path_factory.mktemp("clip")
    export_clip(directory)
    return directory


def test_a_directory_becomes_a_checkpoint(source, tmp_path):
    workdir = tmp_path / "run"
    done = launch(f"--config.source={source}", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    assert "parameters" in done.stdout and str(workdir) in done.stdout
    assert {path.name for path in workdir.iterdir()} == {
        ".lock",
        "checkpoints",
        "config.json",
        "model.json",
        "tokenizer",
    }


def test_a_truncated_file_is_one_line_and_replaces_nothing(source, tmp_path):
    workdir, broken = tmp_path / "run", tmp_path / "broken"
    broken.mkdir()
    for path in source.iterdir():
        if path.is_file():
            (broken / path.name).write_bytes(path.read_bytes())
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    workdir.mkdir()
    (workdir / "config.json").write_text('{"stage": "prepare"}')
    done = launch(f"--config.source={broken}", f"--workdir={workdir}", "--overwrite")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "model.safetensors" in done.stderr
    assert (workdir / "config.json").read_text() == '{"stage": "prepare"}'
