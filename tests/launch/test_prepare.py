"""`launch/prepare.py` as users start it."""

import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from unipt_jax.config import command_line
from unipt_jax.core.errors import ConfigError
from unipt_jax.data import beam, builders

REPOSITORY = Path(__file__).parents[2]
Prepare = Callable[..., tuple[int, str, str]]


def prepare_as_process(variant: str, *flags: str) -> tuple[int, str, str]:
    """Runs the script as users do; returns exit code, standard output and standard error."""
    config = f"--config=configs/prepare.py:{variant}"
    done = subprocess.run(
        [sys.executable, "launch/prepare.py", config, *flags],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def prepare(monkeypatch, capsys) -> Prepare:
    """The same without a process, which costs seconds; an exception would fail the test."""
    monkeypatch.chdir(REPOSITORY)
    found = importlib.util.spec_from_file_location("launch_prepare", "launch/prepare.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)

    def run(variant: str, *flags: str) -> tuple[int, str, str]:
        arguments = [f"--config=configs/prepare.py:{variant}", *flags]
        with pytest.raises(SystemExit) as ended:
            command_line.main(module.run, module.__doc__, arguments)
        return ended.value.code, *capsys.readouterr()

    return run


def toy(root: Path) -> list[dict]:
    """Writes two images and returns their records, which are still to be written."""
    rows = []
    for number, split in enumerate(("train", "test")):
        path = root / "imgs" / "cam_a" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((32, 64), 60 + number).save(path)
        row = {"split": split, "captions": ["a man"], "file_path": f"cam_a/{number}.jpg"}
        rows.append({**row, "id": number})
    return rows


def save(root: Path, rows: object) -> None:
    (root / "reid_raw.json").write_text(json.dumps(rows), encoding="utf-8")


def break_missing_image(root: Path) -> list[str]:
    save(root, toy(root))
    (root / "imgs/cam_a/0.jpg").unlink()
    return [
        "1 fault(s) in 1 record(s)",
        "imgs/cam_a 1",
        "record 0",
        "imgs/cam_a/0.jpg",
        "quarantine",
    ]


def break_truncated_image(root: Path) -> list[str]:
    save(root, toy(root))
    path = root / "imgs/cam_a/1.jpg"
    path.write_bytes(path.read_bytes()[:-100])
    return ["1 fault(s) in 1 record(s)", "record 1", "imgs/cam_a/1.jpg", "truncated", "quarantine"]


def break_json(root: Path) -> list[str]:
    (root / "reid_raw.json").write_text('[{"id": 1,]')
    return ["reid_raw.json", "line 1, column 11"]


def break_split(root: Path) -> list[str]:
    rows = toy(root)
    rows[1]["split"] = "tset"
    save(root, rows)
    return ["record 1", "'tset'", "train", "val", "test"]


def break_caption(root: Path) -> list[str]:
    rows = toy(root)
    rows[0]["captions"] = ["a man", ""]
    save(root, rows)
    return ["record 0", "caption 1 is empty"]


@pytest.mark.parametrize(
    "damage",
    [break_missing_image, break_truncated_image, break_json, break_split, break_caption],
)
def test_mistakes_end_in_one_line(tmp_path, damage, prepare):
    """Exit code 2, and no traceback (P02, P52, P58, P99)."""
    check_mistake(tmp_path, damage, prepare)


def test_mistake_ends_a_process_in_one_line(tmp_path):
    """Nothing else on standard error either, such as a library's progress or warnings (P52)."""
    check_mistake(tmp_path, break_truncated_image, prepare_as_process)


def check_mistake(root: Path, damage: Callable[[Path], list[str]], prepare: Prepare) -> None:
    source, workdir = root / "source", root / "out"
    source.mkdir()
    parts = damage(source)
    code, _, errors = prepare(
        "cuhk_pedes", f"--config.source={source}", f"--workdir={workdir}", "--config.tokenizer="
    )
    assert code == 2, errors
    (line,) = errors.splitlines()
    assert line.startswith("error: ") and all(part in line for part in parts), line
    assert not (workdir / "manifest.json").exists()


def test_quarantine_then_resume(tmp_path, prepare):
    """Bad records are left out, counted and listed; --resume finds nothing to do (P02, P52)."""
    source, workdir = tmp_path / "source", tmp_path / "out"
    rows = toy(source)
    save(source, [*rows, {**rows[0], "file_path": "Market/9.jpg"}, {**rows[0], "captions": []}])
    flags = [f"--config.source={source}", f"--workdir={workdir}", "--config.tokenizer="]
    assert prepare("cuhk_pedes", *flags)[0] == 2
    flags += ["--config.on_bad_record=quarantine", "--config.name=mine"]
    code, output, errors = prepare("cuhk_pedes", *flags, "--overwrite")
    assert code == 0, errors
    assert "records left out: 2" in output
    assert "imgs/Market 1" in errors
    manifest = json.loads((workdir / "manifest.json").read_text())
    assert manifest["quarantined"] == 2 and manifest["name"] == "mine"
    assert manifest["splits"]["train"] == {"images": 1, "captions": 1, "identities": 1}
    lines = (workdir / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["record"] for line in lines] == [2, 3]

    before = {path: path.stat().st_mtime_ns for path in workdir.iterdir()}
    code, output, _ = prepare("cuhk_pedes", *flags, "--resume")
    assert code == 0 and "records left out: 2" in output
    assert {path: path.stat().st_mtime_ns for path in workdir.iterdir()} == before
    code, _, errors = prepare("cuhk_pedes", *flags, "--resume", "--config.seed=5")
    assert code == 2 and "seed: 0 before, 5 now" in errors

    # Without its manifest the directory counts as half-prepared, and is prepared anew.
    (workdir / "manifest.json").unlink()
    assert prepare("cuhk_pedes", *flags, "--resume")[0] == 0
    assert json.loads((workdir / "manifest.json").read_text()) == manifest


def test_pictures_of_the_test_that_are_trained_on_are_told(tmp_path, prepare):
    """Byte for byte the same under another name; nothing is left out for it (P87)."""
    rows = toy(tmp_path)
    shutil.copy(tmp_path / "imgs/cam_a/1.jpg", tmp_path / "imgs/cam_a/2.jpg")
    row = {**rows[0], "file_path": "cam_a/2.jpg", "captions": ["a boy"]}
    save(tmp_path, [{**rows[0], "captions": ["a girl"]}, rows[1], row])
    flags = (f"--config.source={tmp_path}", f"--workdir={tmp_path / 'out'}", "--config.tokenizer=")
    code, output, errors = prepare("cuhk_pedes", *flags)
    assert code == 0, errors
    assert f"noticed 1 times: {builders.SAME_BYTES_SPLIT}" in output
    assert "records left out: 0" in output
    (line,) = (tmp_path / "out/problems.jsonl").read_text().splitlines()
    assert json.loads(line)["record"] == 2


def test_demo_sample(tmp_path):
    """The embedded sample: 6 train and 5 test identities, 36 images each, two captions an image."""
    code, output, errors = prepare_as_process("demo", f"--workdir={tmp_path}")
    assert code == 0, errors
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["splits"] == {
        "train": {"images": 216, "captions": 432, "identities": 6},
        "test": {"images": 180, "captions": 360, "identities": 5},
    }
    assert manifest["tokenizer_fingerprint"] and manifest["quarantined"] == 0
    assert [line.split() for line in output.splitlines()[1:3]] == [
        ["train", "216", "432", "6"],
        ["test", "180", "360", "5"],
    ]
    assert not (tmp_path / "problems.jsonl").exists()


def test_without_beam_it_is_named(tmp_path, monkeypatch):
    """Before the work directory is touched."""
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(
        ConfigError, match=r"^beam_runner='DirectRunner' needs .*unipt-jax\[beam\]'$"
    ):
        beam.require("DirectRunner", ())


DRAWN = ["--config.count=5", "--config.height=64", "--config.width=32", "--config.tokenizer="]


def test_drawn_pedestrians(tmp_path, prepare):
    """As users start it, since its pictures come from processes that load the script anew."""
    code, output, errors = prepare_as_process("drawn", f"--workdir={tmp_path / 'a'}", *DRAWN)
    assert code == 0, errors
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["splits"] == {"train": {"images": 5, "captions": 5, "identities": 5}}
    assert manifest["name"] == "drawn" and manifest["quarantined"] == 0
    assert output.splitlines()[1].split() == ["train", "5", "5", "5"]
    split = builders.open_split(tmp_path / "a", "train")
    for number in range(5):
        entry = split.images[number]
        assert Image.open(io.BytesIO(entry["image"])).size == (32, 64)
        assert len(entry["captions"]) == 1 and entry["captions"][0].endswith(".")

    assert prepare("drawn", f"--workdir={tmp_path / 'b'}", *DRAWN, "--config.seed=1")[0] == 0
    other = builders.open_split(tmp_path / "b", "train")
    assert other.images[0]["captions"] != split.images[0]["captions"]


@pytest.mark.parametrize(
    ("flag", "part"),
    [
        ("--config.validation=0.1", "drawn pedestrians are all for training"),
        ("--config.height=7", "height=7 must be at least 8"),
        ("--config.count=0", "count=0 must be at least 1"),
    ],
)
def test_what_cannot_be_drawn_ends_in_one_line(tmp_path, prepare, flag, part):
    code, _, errors = prepare("drawn", f"--workdir={tmp_path / 'out'}", *DRAWN, flag)
    assert code == 2 and part in errors and len(errors.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_pixels_are_stored_and_told(tmp_path, prepare):
    save(tmp_path, toy(tmp_path))
    source = f"--config.source={tmp_path}"
    flags = (source, "--config.tokenizer=", "--config.pixels=24,12")
    code, output, errors = prepare("cuhk_pedes", f"--workdir={tmp_path / 'out'}", *flags)
    assert code == 0, errors
    assert "images stored as pixels: 24x12" in output
    entry = builders.open_split(tmp_path / "out", "test").images[0]
    picture = Image.open(tmp_path / "imgs/cam_a/1.jpg").convert("RGB")
    expected = picture.resize((12, 24), Image.Resampling.BICUBIC)
    assert entry["image"] == b"P6\n12 24\n255\n" + expected.tobytes()

    flags = (source, "--config.pixels=24,")
    code, _, errors = prepare("cuhk_pedes", f"--workdir={tmp_path / 'no'}", *flags)
    assert code == 2 and "pixels=24: give height and width" in errors
