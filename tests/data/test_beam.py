"""Preparation in Apache Beam's workers: the same bytes as in one process, and the same faults."""

import filecmp
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from unipt_jax.config import command_line
from unipt_jax.core.errors import ConfigError, DataError
from unipt_jax.data import beam, builders, pipeline, tokenization
from unipt_jax.data.annotations import Record

apache_beam = pytest.importorskip(
    "apache_beam", reason="apache-beam is not installed: pip install 'unipt-jax[beam]'"
)

REPOSITORY = Path(__file__).parents[2]
# Else the direct runner looks for a faster one in the network.
OPTIONS = ("--prism_location=none",)
PROCESSES = (*OPTIONS, "--direct_running_mode=multi_processing", "--direct_num_workers=2")
ON_BEAM = ("--config.beam_runner=DirectRunner", f"--config.beam_options={','.join(OPTIONS)}")


@pytest.fixture
def prepare(monkeypatch, capfd):
    """Runs `launch/prepare.py`, with several parts and shards; returns exit code and errors."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(builders, "_EXAMPLES_PER_SHARD", 50)
    monkeypatch.setattr(builders, "_CHECKED_AT_ONCE", 70)
    found = importlib.util.spec_from_file_location("launch_prepare", "launch/prepare.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)

    def run(variant: str, workdir: Path, *flags: str) -> tuple[int, str]:
        arguments = [f"--config=configs/prepare.py:{variant}", f"--workdir={workdir}", *flags]
        with pytest.raises(SystemExit) as ended:
            command_line.main(module.run, module.__doc__, arguments, check=module.check)
        return ended.value.code, capfd.readouterr().err

    return run


def differences(one: Path, other: Path) -> set[str]:
    """Names that are in one directory alone or of other bytes; the configuration is left out."""
    names = {path.name for directory in (one, other) for path in directory.iterdir()}
    names -= {"config.json"}
    _, changed, missing = filecmp.cmpfiles(one, other, names, shallow=False)
    return {*changed, *missing}


def pedestrians(root: Path, count: int = 9) -> None:
    """Writes noise as images, and `pairs.json` beside them."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True)
    rows = []
    for number in range(count):
        noise = rng.integers(256, size=(24, 12, 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / f"{number}.jpg")
        rows.append({"image": f"{number}.jpg", "captions": [f"a man of {number}", "red"]})
    (root / "pairs.json").write_text(json.dumps(rows))


def whoami(part: builders.Part) -> tuple[int, str, int]:
    """Says which process works, and on what."""
    name, records = part
    if name == "3":
        raise DataError("no 3")
    return os.getpid(), name, len(records)


# ---------------------------------------------------------------------------- the same data set


def test_the_sample_is_the_same_to_the_byte(prepare, tmp_path):
    """Records, order, shards, index, manifest, and so what training draws."""
    here, there = tmp_path / "here", tmp_path / "there"
    assert prepare("demo", here)[0] == 0
    code, errors = prepare("demo", there, *ON_BEAM)
    assert (code, errors) == (0, "")
    assert differences(here, there) == set()
    assert len(list(there.glob("*-train.array_record-*"))) == 5  # Of 216 images.

    splits = [builders.open_split(directory, "train") for directory in (here, there)]
    assert splits[0].fingerprint == splits[1].fingerprint
    assert [len(split.images) for split in splits] == [216, 216]
    tokenizer = tokenization.load("examples/tokenizer")
    how = pipeline.Preprocess(
        height=32, width=16, flip=0.5, length=24, buckets=(), mlm_probability=0.15, whole_word=False
    )
    here, there = (
        pipeline.train_batches(split, tokenizer, how, batch_size=8, seed=0) for split in splits
    )
    for number in range(3):
        assert here[number].keys() == there[number].keys()
        for name, values in here[number].items():
            np.testing.assert_array_equal(values, there[number][name], err_msg=name)


def test_drawn_pedestrians_are_the_same(prepare, tmp_path):
    flags = ("--config.count=7", "--config.height=32", "--config.width=16", "--config.tokenizer=")
    assert prepare("drawn", tmp_path / "here", *flags)[0] == 0
    assert prepare("drawn", tmp_path / "there", *flags, *ON_BEAM)[0] == 0
    assert differences(tmp_path / "here", tmp_path / "there") == set()


def test_images_inside_arrow_files_are_the_same(prepare, tmp_path):
    """Which workers open themselves."""
    images = []
    for number in range(5):
        content = io.BytesIO()
        Image.new("RGB", (8, 16), (40 * number, 0, 0)).save(content, "JPEG")
        images.append(content.getvalue())
    names = [f"{number}.jpg" for number in range(5)]
    table = pa.table({"image": images, "caption": [["x"]] * 5, "image_id": names})
    source = tmp_path / "source"
    source.mkdir()
    with pa.ipc.new_file(str(source / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    flags = (f"--config.source={source}", "--config.tokenizer=")
    assert prepare("luperson_t", tmp_path / "here", *flags)[0] == 0
    assert prepare("luperson_t", tmp_path / "there", *flags, *ON_BEAM) == (0, "")
    assert differences(tmp_path / "here", tmp_path / "there") == set()
    train = builders.open_split(tmp_path / "there", "train")
    assert [train.images[number]["image"] for number in range(5)] == images


# ---------------------------------------------------------------------------- faults


def test_a_damaged_image_stops_as_it_does_here(prepare, tmp_path):
    source = tmp_path / "source"
    pedestrians(source)
    for number in (2, 7):
        path = source / f"{number}.jpg"
        path.write_bytes(path.read_bytes()[:-200])
    flags = (f"--config.source={source}", "--config.tokenizer=")
    here, there = tmp_path / "here", tmp_path / "there"
    told = [prepare("pairs", here, *flags), prepare("pairs", there, *flags, *ON_BEAM)]
    assert told[0][0] == told[1][0] == 2
    assert told[0][1].replace(str(here), str(there)) == told[1][1]
    assert "2 fault(s) in 2 record(s)" in told[1][1] and len(told[1][1].splitlines()) == 1
    assert differences(here, there) == set()
    assert sorted(path.name for path in there.iterdir()) == ["config.json", "problems.jsonl"]


def test_a_damaged_image_is_left_out_as_it_is_here(prepare, tmp_path):
    source = tmp_path / "source"
    pedestrians(source)
    (source / "4.jpg").write_bytes(b"no image")
    (source / "8.jpg").write_bytes((source / "1.jpg").read_bytes())  # A notice.
    flags = (f"--config.source={source}", "--config.tokenizer=examples/tokenizer")
    flags += ("--config.on_bad_record=quarantine",)
    here, there = tmp_path / "here", tmp_path / "there"
    assert prepare("pairs", here, *flags)[0] == 0
    assert prepare("pairs", there, *flags, *ON_BEAM)[0] == 0
    assert differences(here, there) == set()
    manifest = builders.read_manifest(there)
    assert manifest["quarantined"] == 1 and manifest["splits"]["train"]["images"] == 8
    assert manifest["notices"] == {builders.SAME_BYTES_IDENTITY: 1}
    assert '"record": 4' in (there / "quarantine.jsonl").read_text()


def test_an_image_that_vanishes_leaves_no_complete_data_set(tmp_path):
    source, workdir = tmp_path / "source", tmp_path / "out"
    pedestrians(source, 2)
    records = [Record(f"{number}.jpg", ("a",), "", "train", number) for number in range(3)]
    with pytest.raises(DataError, match=r"^record 2: .*2\.jpg cannot be read .*; prepare again$"):
        builders.write(
            records,
            source=source,
            name="toy",
            workdir=workdir,
            tokenizer="",
            quarantined=0,
            notices={},
            spread=beam.spread_on("DirectRunner", OPTIONS, workdir),
        )
    with pytest.raises(DataError, match="did not finish"):
        builders.open_split(workdir, "train")
    assert list(workdir.iterdir()) == []


def test_a_killed_preparation_is_not_complete_and_goes_on(prepare, tmp_path):
    """By workers or without; nothing of the killed one is left."""
    workdir, whole = tmp_path / "killed", tmp_path / "whole"
    flags = ("--config.count=300", "--config.height=96", "--config.width=48", "--config.tokenizer=")
    command = [sys.executable, "launch/prepare.py", "--config=configs/prepare.py:drawn"]
    process = subprocess.Popen([*command, f"--workdir={workdir}", *flags, *ON_BEAM], cwd=REPOSITORY)
    while not list(workdir.glob("incomplete.*")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert (workdir / builders.SPREAD_FOLDER).exists() and list(workdir.glob("incomplete.*"))
    with pytest.raises(DataError, match="did not finish"):
        builders.open_split(workdir, "train")

    code, errors = prepare("drawn", workdir, *flags)
    assert code == 2 and "--resume" in errors
    assert prepare("drawn", workdir, *flags, "--resume")[0] == 0
    assert prepare("drawn", whole, *flags)[0] == 0
    assert differences(workdir, whole) == set()


# ---------------------------------------------------------------------------- the workers


def test_parts_are_worked_on_in_other_processes(tmp_path, monkeypatch):
    """And results come in order, with nothing left behind."""
    monkeypatch.chdir(REPOSITORY)  # Where workers find this module.
    spread = beam.spread_on("DirectRunner", PROCESSES, tmp_path)
    record = Record("a", ("b",), "", "train", 0)
    numbers = [0, 1, 2, 4, 5, 6, 7]
    found = list(spread(whoami, ((str(number), [record] * number) for number in numbers)))
    assert [(name, count) for _, name, count in found] == [
        (str(number), number) for number in numbers
    ]
    assert os.getpid() not in {process for process, _, _ in found}
    with pytest.raises(DataError, match=r"^no 3$"):
        list(spread(whoami, [("0", []), ("3", []), ("4", [])]))
    assert list(tmp_path.iterdir()) == []


def test_parts_are_asked_for_one_by_one(tmp_path):
    """None is kept: their images' paths and captions alone fill gigabytes."""
    alive = []

    class Records(list):
        """Tells how many of it there are."""

        def __init__(self, *items):
            super().__init__(items)
            alive.append(1)

        def __del__(self):
            alive.append(-1)

        def __reduce__(self):
            return list, (list(self),)

    def parts():
        for number in range(20):
            assert sum(alive) <= 1
            yield str(number), Records()

    spread = beam.spread_on("DirectRunner", OPTIONS, tmp_path)
    assert len(list(spread(len, parts()))) == 20


class Cancelled(apache_beam.runners.PipelineRunner):
    """A runner whose pipelines someone has stopped."""

    def run_pipeline(self, pipeline, options):
        return self

    def wait_until_finish(self):
        return "CANCELLED"


def test_a_cancelled_pipeline_has_no_result(tmp_path):
    spread = beam.spread_on(f"{__name__}.Cancelled", (), tmp_path)
    with pytest.raises(DataError, match=r"Cancelled' ended as CANCELLED; go on with --resume"):
        list(spread(len, [("", [])]))
    assert list(tmp_path.iterdir()) == []


def test_without_a_runner_the_work_is_done_here(tmp_path):
    assert beam.spread_on("", (), tmp_path) is map
    beam.require("", ())


@pytest.mark.parametrize(
    ("runner", "options", "parts"),
    [
        ("DirctRunner", (), ["beam_runner='DirctRunner'", "DirectRunner"]),
        ("no.such.Runner", (), ["No module named 'no'"]),
        ("DirectRunner", ("--direct_num_workers=two",), ["--direct_num_workers", "'two'"]),
        ("DataflowRunner", (), ["project", "region"]),
    ],
)
def test_what_beam_refuses_is_told_before_anything_is_removed(
    prepare, tmp_path, runner, options, parts
):
    with pytest.raises(ConfigError) as caught:
        beam.require(runner, options)
    assert all(part in str(caught.value) for part in parts), caught.value

    (tmp_path / "config.json").write_text('{"stage": "prepare"}')
    flags = (f"--config.beam_runner={runner}", *(f"--config.beam_options={o}" for o in options))
    code, errors = prepare("demo", tmp_path, "--overwrite", *flags)
    assert code == 2 and errors.splitlines()[-1].startswith("error: beam_runner=")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
