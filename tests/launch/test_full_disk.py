"""Commands on a disk that is full: one line that names the file, and nothing that looks whole."""

import contextlib
import errno
import json
import os
import runpy
import shutil
import sys
from pathlib import Path

import pytest

from tests.disks import limited
from tests.training.test_conversion import export_clip

CROPS = sorted(Path("examples/pedestrians/imgs").glob("*_0*.jpg"))[::40]


@pytest.fixture
def launch(monkeypatch, capsys):
    """Runs a script in this process; returns its code and the last line of what it complained."""

    def launch(stage, *arguments, room=None):
        monkeypatch.setattr(sys, "argv", [f"launch/{stage}.py", *arguments])
        with (
            limited(room) if room else contextlib.nullcontext(),
            pytest.raises(SystemExit) as ended,
        ):
            runpy.run_path(f"launch/{stage}.py", run_name="__main__")
        err = capsys.readouterr().err
        assert "Traceback" not in err
        return ended.value.code, err.strip().split("\n")[-1]

    return launch


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A CLIP of noise, and a few crops with captions beside it."""
    directory = tmp_path_factory.mktemp("source")
    for name in ("clip", "crops"):
        (directory / name).mkdir()
    export_clip(directory / "clip")
    for crop in CROPS:
        shutil.copy(crop, directory / "crops")
    pairs = [{"image": crop.name, "caption": "A man.", "identity": crop.name} for crop in CROPS]
    (directory / "crops" / "pairs.json").write_text(json.dumps(pairs))
    return directory


# By stage: how much room there is, and the file that does not fit.
CASES = [
    ("convert", 100, "--workdir"),  # The lock and the configuration.
    ("convert", 300, "tokenizer/tokenizer.json"),
    ("convert", 1060, "model.json"),
    ("prepare", 2100, "pairs-train.array_record-00000"),
    ("export", 20_000, "model/model.safetensors"),
]


@pytest.mark.parametrize(("stage", "room", "file"), CASES)
def test_a_full_disk_is_one_line_and_the_command_goes_on_later(
    launch, source, tmp_path, stage, room, file
):
    """Whichever file it is; what is left is not taken for a result (P94)."""
    workdir = tmp_path / "run"
    given = {
        "convert": ["--config=configs/convert.py", f"--config.source={source / 'clip'}"],
        "export": ["--config=configs/export.py", f"--config.checkpoint={source / 'clip'}"],
        "prepare": [
            "--config=configs/prepare.py:pairs",
            f"--config.source={source / 'crops'}",
            "--config.tokenizer=examples/tokenizer",
        ],
    }[stage] + [f"--workdir={workdir}"]
    whole = {"convert": "checkpoints/0", "prepare": "manifest.json", "export": "model/config.json"}
    code, said = launch(stage, *given, room=room)
    assert code in (1, 2) and said.startswith("error: ") and file in said, said
    assert "too large" in said
    assert not (workdir / whole[stage]).exists()
    assert not list(workdir.rglob("*.tmp"))
    assert launch(stage, *given, "--resume")[0] == 0
    assert (workdir / whole[stage]).exists()


# By stage: a file that is written while it is at work.
WRITTEN = [
    ("evaluate", "evaluation.json"),
    ("search", "images.jsonl"),
]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize(("stage", "file"), WRITTEN)
def test_what_storage_refuses_is_one_line_with_its_place(
    launch, refuse, source, data, tmp_path, stage, file, number
):
    """Whoever writes it: full, or read-only since (P94)."""
    workdir = tmp_path / "run"
    config, clip, crops = f"--config=configs/{stage}.py", source / "clip", source / "crops"
    given = {
        "evaluate": [f"--config.data={data}", f"--config.checkpoint={clip}"],
        "search": [
            f"--config.images={crops}",
            f"--config.checkpoint={clip}",
            "--config.query=a man",
        ],
    }[stage]
    refuse(Path(file).name, number)
    code, said = launch(stage, config, *given, f"--workdir={workdir}")
    place = workdir if stage == "search" else workdir / file
    assert code == 1 and said == f"error: {place}: {os.strerror(number)}", said
    assert not (workdir / file).exists() or not (workdir / file).stat().st_size
    assert not list(workdir.rglob("*.tmp"))
