"""`launch/caption.py` as a user runs it: a folder to captions, whole after any number of kills."""

import json
import math
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.training.test_conversion import export_clip
from unipt_jax.data import builders


def command(*arguments, variant=""):
    config = f"--config=configs/caption.py{variant}"
    return [sys.executable, "launch/caption.py", config, *arguments]


def launch(*arguments):
    return subprocess.run(command(*arguments), capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A CLIP of noise in Hugging Face's form, whose tokenizer knows a few words."""
    directory = tmp_path_factory.mktemp("clip")
    export_clip(directory)
    return directory


def make_images(root, count):
    rng = np.random.default_rng(0)
    for number in range(count):
        path = root / f"camera{number % 3}" / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(256, size=(40, 20, 3), dtype=np.uint8)).save(path)
    return root


def flags(clip, images, workdir):
    return (
        f"--config.clip={clip}",
        f"--config.images={images}",
        "--config.tokenizer=examples/tokenizer",
        "--config.device_batch_size=16",
        f"--workdir={workdir}",
    )


def finished_parts(workdir):
    return list((workdir / "parts").glob("*[0-9].jsonl"))


def contents(workdir):
    return {
        str(path.relative_to(workdir)): path.read_bytes()
        for path in sorted(workdir.rglob("*"))
        if path.is_file()
    }


def test_a_folder_becomes_captions_and_a_data_set(clip, tmp_path):
    images = make_images(tmp_path / "images", 20)
    (images / "broken.jpg").write_bytes(b"no image")
    done = launch(*flags(clip, images, tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "run" / "captions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 20 and all(row["caption"].endswith(".") for row in rows)
    assert len(builders.open_split(tmp_path / "run", "train").images) == 20
    assert "images/s" in done.stderr and "left" in done.stderr
    assert "1 image(s) could not be read" in done.stderr
    assert (tmp_path / "run" / "config.json").exists()


def test_the_demo_captions_the_sample_with_the_small_clip(tmp_path):
    """All of it, in words that differ, and better than at random: most upper clothes are dark."""
    made = command(f"--workdir={tmp_path / 'run'}", variant=":demo")
    done = subprocess.run(made, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "captions.jsonl").open()]
    assert len(rows) == 396 and len({row["caption"] for row in rows}) > 300
    split = builders.open_split(tmp_path / "run", "train")
    assert len(split.images) == 396 and len(split.text_lengths) == 396
    answers = json.loads(Path("examples/pedestrians/attributes.json").read_text())
    right = [
        row["attributes"]["upper_clothes"]["phrase"].split()[0]
        in answers[str(int(row["image"].split("_")[0]))]["upper_color"]
        for row in rows
    ]
    assert np.mean(right) > 3 / 12  # Of twelve colours


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (("--config.images=nowhere",), "images=nowhere: no such folder"),
        (("--config.clip=nowhere/at/all",), "nowhere/at/all"),
        (("--config.lexicon=nowhere.json",), r"nowhere.json: no such file"),
        (("--config.threshold=2",), "threshold=2"),
    ],
)
def test_a_mistake_is_one_line(clip, tmp_path, changes, named):
    images = make_images(tmp_path / "images", 1)
    done = launch(*flags(clip, images, tmp_path / "run"), *changes)
    assert done.returncode == 2
    assert named in done.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_thousand_images_survive_ten_kills(clip, tmp_path):
    """SIGKILL at random moments; the result is that of an undisturbed run."""
    images = make_images(tmp_path / "images", 2000)
    started = time.monotonic()
    whole = subprocess.Popen(command(*flags(clip, images, tmp_path / "whole")))
    while not finished_parts(tmp_path / "whole"):
        assert whole.poll() is None
        time.sleep(0.02)
    first = time.monotonic() - started
    assert whole.wait() == 0
    rest, parts = time.monotonic() - started - first, math.ceil(2000 / (8 * 16))
    # By turns a run is killed while it reads its inputs and soon after it has finished a part.
    rng, run, progress = random.Random(0), tmp_path / "run", [0]
    for number in range(10):
        resume = ["--resume"] if run.exists() else []
        child = subprocess.Popen(command(*flags(clip, images, run), *resume))
        if number % 2:
            while len(finished_parts(run)) == progress[-1]:
                assert child.poll() is None, "it ended without another part"
                time.sleep(0.005)
            time.sleep(rng.uniform(0, rest / parts))
        else:
            time.sleep(first * rng.uniform(0, 0.8))
        assert child.poll() is None, "it was done before it could be killed"
        child.send_signal(signal.SIGKILL)
        child.wait()
        progress.append(len(finished_parts(run)))
    assert progress == sorted(progress) and 0 < progress[-1] < parts
    assert launch(*flags(clip, images, run), "--resume").returncode == 0
    assert contents(run) == contents(tmp_path / "whole")
