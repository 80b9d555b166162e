"""Captions of a collection: whole, in order, and the same however often the run is killed."""

import dataclasses
import errno
import hashlib
import io
import json
import logging
import random
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.training.test_conversion import SPEC
from tests.training.test_initial import noise
from unipt_jax.captioning import captioner, composer, lexicon, runner, scorer
from unipt_jax.config import schema
from unipt_jax.core.errors import ConfigError, DataError
from unipt_jax.data import builders, images
from unipt_jax.models import specs
from unipt_jax.models.dual_encoder import DualEncoder

IMAGES, BATCH = 150, 8


def encode_texts(texts):
    """Stands for a text encoder: any function of the text will do."""
    seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") for text in texts]
    rows = np.stack([np.random.default_rng(seed).normal(size=SPEC.embedding_dim) for seed in seeds])
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def make_clip():
    params = jax.tree.map(jnp.asarray, noise(specs.abstract_params(SPEC)))
    params["logit_scale"] = jnp.log(30.0)
    return captioner.Clip(DualEncoder(SPEC), params, encode_texts)


@pytest.fixture(scope="module")
def clip():
    return make_clip()


def encoded(rng):
    height, width = rng.integers(10, 60, 2)
    image = Image.fromarray(rng.integers(256, size=(height, width, 3), dtype=np.uint8))
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images in nested folders; every thirtieth cannot be read."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(IMAGES):
        path = root / f"camera {number % 3}" / f"{number:04}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no image" if number % 30 == 7 else encoded(rng))
    return root


def config(folder, **changes):
    values = {
        "stage": "caption",
        "images": str(folder),
        "tokenizer": "examples/tokenizer",
        "device_batch_size": BATCH,
    }
    return schema.build(values | changes)


def contents(workdir):
    return {
        str(path.relative_to(workdir)): path.read_bytes()
        for path in sorted(workdir.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def undisturbed(folder, clip, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    runner.caption(config(folder), workdir, clip)
    return workdir


def rows(workdir):
    return [json.loads(line) for line in (workdir / "captions.jsonl").read_text().splitlines()]


# Where a run may die: at each of these calls.
PLACES = [
    (runner.Progress, "advance"),
    (runner, "write_json_lines"),
    (runner, "write_json"),
    (composer, "compose"),
    (builders, "write_bytes"),
    (builders, "write_json"),
]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("file", ["parts/00000000.jsonl", "captions.jsonl"])
def test_what_storage_refuses_is_named_and_written_later(clip, refuse, tmp_path, file, number):
    """Full, or read-only since: nothing is left that looks whole (P94)."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").write_bytes(encoded(np.random.default_rng(0)))
    given, run = config(tmp_path / "images"), tmp_path / "run"
    with pytest.MonkeyPatch.context() as storage, pytest.raises(OSError) as caught:
        refuse(Path(file).name, number, storage)
        runner.caption(given, run, clip)
    assert (caught.value.errno, caught.value.filename) == (number, str(run / file))
    assert not (run / file).exists() and not list(run.rglob("*.tmp"))
    runner.caption(given, run, clip)
    assert len(rows(run)) == 1


class Killed(BaseException):
    """Stands for the end of the process: nothing below catches it."""


@pytest.mark.parametrize("seed", range(2))
def test_a_run_killed_again_and_again_ends_with_the_same_bytes(
    folder, clip, undisturbed, tmp_path, monkeypatch, seed
):
    """At random moments: while images are read, parts written, or all of them joined."""
    rng, kills = random.Random(seed), 0
    left = [rng.randrange(40)]

    def may_die(real):
        def function(*arguments, **keywords):
            left[0] -= 1
            if left[0] < 0 and kills < 10:
                raise Killed
            return real(*arguments, **keywords)

        return function

    for owner, name in PLACES:
        monkeypatch.setattr(owner, name, may_die(getattr(owner, name)))
    while True:
        try:
            runner.caption(config(folder), tmp_path, clip)
            break
        except Killed:
            kills += 1
            left[0] = rng.randrange(75)
    assert kills >= 5
    monkeypatch.undo()
    assert contents(tmp_path) == contents(undisturbed)


def test_every_image_has_its_line(folder, undisturbed):
    """In the order of the listing, unreadable ones apart."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
    bad = {name for name in names if int(Path(name).stem) % 30 == 7}
    assert [row["image"] for row in rows(undisturbed)] == [n for n in names if n not in bad]
    quarantine = (undisturbed / "quarantine.jsonl").read_text().splitlines()
    assert {json.loads(line)["image"] for line in quarantine} == bad
    assert all("cannot be decoded" in json.loads(line)["faults"][0] for line in quarantine)
    assert [names[json.loads(line)["record"]] for line in quarantine] == sorted(bad)
    assert sorted(path.name for path in undisturbed.iterdir() if path.is_dir()) == []


def test_a_line_is_what_the_scorer_says_of_that_image(folder, clip, undisturbed):
    """One image at a time, by the pure functions beneath."""
    words = lexicon.english()
    features = scorer.prompt_features(encode_texts, words.sets, words.wrappers[:1])
    for row in rows(undisturbed)[::37]:
        pixels = images.decode((folder / row["image"]).read_bytes(), "")
        pixels = jnp.asarray(images.resize(pixels, 16, 16)[None])
        embedding = np.asarray(
            jax.jit(lambda p, x: clip.model.apply({"params": p}, x, method="encode_image"))(
                clip.params, pixels
            )
        )
        logits = 30.0 * embedding @ features.T / np.linalg.norm(embedding)
        index, probability = scorer.decide(jnp.asarray(logits), scorer.layout(words.sets))
        assert row["attributes"].keys() == words.sets.keys()
        for place, (name, each) in enumerate(words.sets.items()):
            number = int(index[0, place])
            chosen = row["attributes"][name]
            assert chosen["phrase"] == (list(each.phrases)[number] if number >= 0 else None)
            assert abs(chosen["probability"] - float(probability[0, place])) < 2e-4
        choices = {name: chosen["phrase"] for name, chosen in row["attributes"].items()}
        assert row["caption"] == composer.compose(words, choices, seed=0, path=row["image"])


def test_pre_training_reads_the_result(folder, undisturbed):
    split = builders.open_split(undisturbed, "train")
    lines = rows(undisturbed)
    assert split.identities.tolist() == list(range(len(lines))) and len(split.images) == len(lines)
    assert builders.read_identities(undisturbed, "train") == []  # Nobody knows a name.
    for place in (0, 70, len(lines) - 1):
        entry = split.images[place]
        assert entry["path"] == lines[place]["image"]
        assert entry["captions"] == [lines[place]["caption"]]
        assert entry["image"] == (folder / entry["path"]).read_bytes()
    assert builders.read_manifest(undisturbed)["quarantined"] == 5


def test_statistics_count_the_lines(undisturbed):
    found = json.loads((undisturbed / "statistics.json").read_text())
    lines = rows(undisturbed)
    assert (found["images"], found["quarantined"]) == (len(lines), 5)
    for name, counts in found["attributes"].items():
        chosen = [row["attributes"][name]["phrase"] or "" for row in lines]
        assert counts == {label: chosen.count(label) for label in set(chosen)}
    words = [len(row["caption"].split()) for row in lines]
    assert found["mean_words"] == pytest.approx(np.mean(words))
    with Image.open(undisturbed / "frequencies.png") as picture:
        assert picture.width > 500


def test_a_finished_run_is_left_alone(folder, clip, undisturbed):
    before = contents(undisturbed)
    runner.caption(config(folder), undisturbed, clip)
    assert contents(undisturbed) == before


def test_a_prepared_data_set_keeps_identities_and_splits(data, clip, tmp_path):
    """What is for testing must not come into pre-training by way of its captions."""
    runner.caption(config(data, device_batch_size=64), tmp_path, clip)
    before, after = (
        builders.read_manifest(data)["splits"],
        builders.read_manifest(tmp_path)["splits"],
    )
    assert before.keys() == after.keys() and len(before) > 1
    for name in before:
        assert after[name]["images"] == after[name]["captions"] == before[name]["images"]
        ours, theirs = builders.open_split(tmp_path, name), builders.open_split(data, name)
        paths = [
            [split.images[at]["path"] for at in range(len(split.images))]
            for split in (ours, theirs)
        ]
        assert paths[0] == paths[1]
        assert builders.read_identities(tmp_path, name) == builders.read_identities(data, name)
        assert ours.identities.tolist() == theirs.identities.tolist()


def test_another_seed_writes_other_texts_of_the_same_attributes(
    folder, clip, undisturbed, tmp_path
):
    runner.caption(config(folder, seed=1), tmp_path, clip)
    ours, theirs = rows(tmp_path), rows(undisturbed)
    assert [row["attributes"] for row in ours] == [row["attributes"] for row in theirs]
    assert sum(a["caption"] == b["caption"] for a, b in zip(ours, theirs, strict=True)) < 10


def test_stopping_at_an_unreadable_image_is_a_choice(folder, clip, tmp_path):
    """It is named, out of the thread that read it, and the run ends (P31, P52)."""
    with pytest.raises(DataError, match=r"0007\.png: cannot be decoded"):
        runner.caption(config(folder, on_bad_record="stop"), tmp_path, clip)
    assert not (tmp_path / "captions.jsonl").exists()


def test_a_collection_without_a_readable_image_is_an_error(clip, tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    (root / "a.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="none of the 1 images"):
        runner.caption(config(root), tmp_path / "run", clip)


def test_more_wrappers_than_there_are_is_refused(folder):
    with pytest.raises(ConfigError, match="wrappers=99"):
        runner.read_lexicon(config(folder, wrappers=99))


def killed_after(parts, folder, clip, workdir, monkeypatch):
    """Leaves a run behind that died when so many parts were whole."""
    written = [0]
    real = runner.write_json_lines

    def write(*arguments):
        if written[0] == parts:
            raise Killed
        written[0] += 1
        real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(runner, "write_json_lines", write)
        with pytest.raises(Killed):
            runner.caption(config(folder), workdir, clip)
    assert len(list((workdir / "parts").glob("*.jsonl"))) == parts


def test_a_part_that_lacks_lines_is_noticed(folder, clip, tmp_path, monkeypatch):
    killed_after(1, folder, clip, tmp_path, monkeypatch)
    part = tmp_path / "parts" / "00000000.jsonl"
    part.write_text("".join(part.read_text().splitlines(keepends=True)[:-3]))
    with pytest.raises(DataError, match=r"holds 147 lines of 150 images; begin anew"):
        runner.caption(config(folder), tmp_path, clip)


def test_what_a_killed_writer_left_aside_is_removed(folder, clip, undisturbed, tmp_path):
    (tmp_path / "parts").mkdir()
    for name in ("parts/.00000001.jsonl.123-0123abcd.tmp", ".captions.jsonl.9-89abcdef.tmp"):
        (tmp_path / name).write_bytes(b"half")
    runner.caption(config(folder), tmp_path, clip)
    assert contents(tmp_path) == contents(undisturbed)


def test_an_image_that_vanished_since_stops_the_run_until_it_is_back(
    folder, clip, undisturbed, tmp_path, monkeypatch
):
    killed_after(2, folder, clip, tmp_path, monkeypatch)
    gone = folder / "camera 0" / "0000.png"
    content = gone.read_bytes()
    gone.unlink()
    try:
        with pytest.raises(DataError, match=r"0000\.png.*put it back and go on with --resume"):
            runner.caption(config(folder), tmp_path, clip)
    finally:
        gone.write_bytes(content)
    runner.caption(config(folder), tmp_path, clip)
    assert contents(tmp_path) == contents(undisturbed)


def test_storage_that_fails_is_no_fault_of_the_images(folder, clip, tmp_path, monkeypatch):
    """An error of input or output stops the run, which later goes on, instead of a quarantine."""
    real = Path.read_bytes

    def fails(path):
        if path.name == "0040.png":
            raise OSError(5, "Input/output error", str(path))
        return real(path)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", fails)
        with pytest.raises(OSError, match="Input/output error"):
            runner.caption(config(folder), tmp_path, clip)
    runner.caption(config(folder), tmp_path, clip)
    assert len(rows(tmp_path)) == IMAGES - 5


@pytest.mark.parametrize("what", ["lexicon", "clip"])
def test_other_inputs_are_not_mixed_in(folder, clip, tmp_path, monkeypatch, what):
    texts = tmp_path / "lexicon.json"
    texts.write_bytes(Path(lexicon.ENGLISH).read_bytes())
    own = config(folder, lexicon=str(texts))
    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(runner, "join", lambda *_: None)  # All parts, and no end.
        runner.caption(own, run, clip)
    if what == "lexicon":
        texts.write_text(texts.read_text().replace("backpack", "rucksack"))
    else:
        params = jax.tree.map(lambda leaf: leaf + 0.01, clip.params)
        clip = dataclasses.replace(clip, params=params)
    with pytest.raises(DataError, match=f"begun with another {what} than {what}="):
        runner.caption(own, run, clip)


def test_a_model_that_is_never_sure_is_refused(folder, clip, tmp_path):
    spec = dataclasses.replace(SPEC, temperature="none")
    with pytest.raises(ConfigError, match=r"no temperature.*similarity\.temperature=learned"):
        runner.caption(config(folder), tmp_path, dataclasses.replace(clip, model=DualEncoder(spec)))


def test_progress_tells_speed_and_time_left(caplog, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(runner.time, "monotonic", lambda: now[0])
    with caplog.at_level(logging.INFO):
        progress = runner.Progress("captioned", 40_000)
        for step in range(4):
            now[0] += 6.0
            progress.advance(60 if step < 3 else 39_820)
    # Every ten seconds at most, and at the end.
    assert [record.getMessage() for record in caplog.records] == [
        "120 of 40000 images captioned, 10 images/s, 1:06:28 left",
        "40000 of 40000 images captioned, 1.67e+03 images/s, 0:00:00 left",
    ]
