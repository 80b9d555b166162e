"""Features: each image and caption once, the same for any batch, padding and number of devices."""

import dataclasses
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from tests.evaluation import toy
from unipt_jax.core.errors import DataError
from unipt_jax.core.sharding import make_mesh
from unipt_jax.data import builders, tokenization
from unipt_jax.data.annotations import Record
from unipt_jax.evaluation import features
from unipt_jax.evaluation.features import concatenated, extract

COUNTS = [2, 1, 3, 2, 2, 0, 1, 2, 2, 1, 2]
IDENTITIES = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 0]
PICTURES, CAPTIONS = toy.pictures(len(COUNTS)), toy.captions(COUNTS)
EVERY = [text for texts in CAPTIONS for text in texts]


@pytest.fixture(scope="module")
def tokenizer():
    return tokenization.load("examples/tokenizer")


@pytest.fixture
def one_device(monkeypatch):
    monkeypatch.setattr(features, "make_mesh", lambda: make_mesh(devices=jax.devices()[:1]))


def run(tokenizer, batch_size=8, quarantine=False, **changes):
    split = toy.split(PICTURES, CAPTIONS, IDENTITIES, tokenizer, **changes)
    return extract(
        toy.model(),
        toy.PARAMS,
        split,
        tokenizer,
        text_length=toy.LENGTH,
        batch_size=batch_size,
        quarantine=quarantine,
    )


def expected_images(numbers):
    rows = [2.0 * PICTURES[number].astype(np.float64) for number in numbers]
    halves = [[row[:8].mean(), row[8:].mean()] for row in rows]
    return {"global": np.array([row.mean((0, 1)) for row in rows]), "pgu": np.array(halves)}


def expected_texts(tokenizer, texts):
    """Counted without padding, from the tokenizer's own ids."""
    every = [tokenizer.backend.encode(text).ids for text in texts]
    every = [ids if len(ids) <= toy.LENGTH else [*ids[:99], tokenizer.end] for ids in every]
    sums = np.array([[len(ids), 2.0 * sum(ids), 2.0 * ids[1]] for ids in every])
    return {"global": sums, "pgu": sums[:, 1::-1]}


def check(side, expected):
    assert list(side) == ["global", "pgu"]
    for name, rows in side.items():
        assert rows.dtype == np.float32
        np.testing.assert_allclose(rows, expected[name], rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 5, 8, 1000])
def test_every_row_is_what_it_is_alone(tokenizer, batch_size):
    """On eight devices: batches that they divide and do not, of one and of many rows. P29."""
    found = run(tokenizer, batch_size)
    check(found.image, expected_images(range(len(COUNTS))))
    check(found.text, expected_texts(tokenizer, EVERY))
    assert found.images.tolist() == list(range(len(COUNTS)))
    assert found.pairs.tolist() == list(range(len(EVERY))) and found.faults == {}


def test_one_device_and_unknown_lengths_give_the_same(tokenizer, one_device):
    check(run(tokenizer, 3, lengths=False).text, expected_texts(tokenizer, EVERY))


def seen(monkeypatch):
    """Records what is loaded."""
    images, texts = [], []
    for loader, into in ((features.LoadImages, images), (features.LoadTexts, texts)):
        call = loader.__call__

        def watched(self, numbers, call=call, into=into):
            into.append((numbers.tolist(), getattr(self, "length", None)))
            return call(self, numbers)

        monkeypatch.setattr(loader, "__call__", watched)
    return images, texts


def test_each_is_encoded_once_and_short_texts_in_short_batches(tokenizer, one_device, monkeypatch):
    images, texts = seen(monkeypatch)
    run(tokenizer, 4)
    for loaded, count in ((images, len(COUNTS)), (texts, len(EVERY))):
        numbers = [number for batch, _ in loaded for number in batch]
        assert all(len(batch) == 4 for batch, _ in loaded)
        assert sorted(number for number in numbers if number >= 0) == list(range(count))
    assert len({length for _, length in texts}) > 2
    for batch, length in texts:
        longest = max(len(tokenizer.backend.encode(EVERY[n]).ids) for n in batch if n >= 0)
        assert length == next(n for n in (24, 32, 40, 48, 64, 100) if n >= min(longest, 100))


def test_pooling_over_padding_takes_the_full_length(tokenizer, one_device, monkeypatch):
    model = toy.model()
    spec = dataclasses.replace(model.spec, pool_padding=True)
    monkeypatch.setattr(toy, "model", lambda: model.clone(spec=spec))
    _, texts = seen(monkeypatch)
    check(run(tokenizer, 4).text, expected_texts(tokenizer, EVERY))
    assert {length for _, length in texts} == {100}


def test_unreadable_images_are_left_out_with_their_captions(tokenizer):
    found = run(tokenizer, bad=(0, 2), quarantine=True)
    kept = [1, *range(3, len(COUNTS))]
    assert found.images.tolist() == kept
    check(found.image, expected_images(kept))
    check(found.text, expected_texts(tokenizer, [t for n in kept for t in CAPTIONS[n]]))
    assert sorted(found.faults) == [0, 2]
    assert "cam/2.png: cannot be decoded" in found.faults[2]


def test_an_unreadable_image_stops_and_is_named(tokenizer):
    with pytest.raises(DataError, match=r"test cam/2.png.*on_bad_record=quarantine"):
        run(tokenizer, bad=(2,))


def test_stored_pixels_have_the_features_of_the_images(tokenizer, tmp_path):
    """To the bit; those of another size than the model's are refused."""
    rng = np.random.default_rng(0)
    for number in range(3):
        noise = rng.integers(256, size=(40, 20, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{number}.jpg")
    records = [Record(f"{n}.jpg", ("a man",), str(n), "test", n) for n in range(3)]
    splits = {}
    for name, pixels in (
        ("files", None),
        ("pixels", (toy.HEIGHT, toy.WIDTH)),
        ("others", (toy.WIDTH, toy.HEIGHT)),
    ):
        builders.write(
            records,
            source=tmp_path,
            name="toy",
            workdir=tmp_path / name,
            tokenizer="examples/tokenizer",
            quarantined=0,
            notices={},
            pixels=pixels,
        )
        splits[name] = builders.open_split(tmp_path / name, "test")

    def extracted(name):
        how = {"text_length": 9, "batch_size": 2}
        return extract(toy.model(), toy.PARAMS, splits[name], tokenizer, **how)

    files, pixels = extracted("files"), extracted("pixels")
    for name in files.image:
        np.testing.assert_array_equal(files.image[name], pixels.image[name])
        np.testing.assert_array_equal(files.text[name], pixels.text[name])
    with pytest.raises(DataError, match=r"others stores pixels of 8x16, .* 16x8"):
        extracted("others")


def test_nothing_to_evaluate_is_told(tokenizer):
    """No image, none that can be read, and none with a caption (P61, P67)."""
    with pytest.raises(DataError, match="none of the 11 images"):
        run(tokenizer, bad=range(11), quarantine=True)
    empty = toy.split([], [], [], directory="nowhere")
    with pytest.raises(DataError, match="nowhere: split 'test' is empty"):
        extract(toy.model(), toy.PARAMS, empty, tokenizer, text_length=9, batch_size=1)
    silent = toy.split(PICTURES[:1], [[]], [0])
    with pytest.raises(DataError, match="has a caption"):
        extract(toy.model(), toy.PARAMS, silent, tokenizer, text_length=9, batch_size=1)


@pytest.mark.parametrize(
    ("side", "named"), [("image", r"image 'cam/3\.png'"), ("text", f"caption '{EVERY[6]}'")]
)
def test_the_first_that_the_model_has_no_number_for_is_named(
    tokenizer, one_device, monkeypatch, side, named
):
    """By its file or its words: a row's number would name nothing (P67)."""
    real, first = features._encoded, {"image": 3, "text": 6}[side]

    def spoilt(*arguments):
        for numbers, result in real(*arguments):
            if ("valid" in result) == (side == "image"):
                result["pgu"][np.isin(numbers, [first, first + 2])] = np.inf
            yield numbers, result

    monkeypatch.setattr(features, "_encoded", spoilt)
    with pytest.raises(DataError, match=named + ".*'pgu' of it is not finite.* of 1 more of"):
        run(tokenizer)


def test_names_end_with_the_concatenation_of_several():
    assert features.names(toy.model(), toy.PARAMS) == ["global", "pgu", "concatenated"]


def test_the_concatenations_cosine_is_the_mean_of_cosines():
    rng = np.random.default_rng(0)
    one, two = ([rng.standard_normal((9, width)) * 50 for width in (3, 7)] for _ in range(2))
    cosines = [
        np.sum(a * b, 1) / np.sqrt(np.sum(a * a, 1) * np.sum(b * b, 1))
        for a, b in zip(one, two, strict=True)
    ]
    joined = [concatenated([each.astype(np.float32) for each in side]) for side in (one, two)]
    lengths = [np.linalg.norm(rows, axis=1) for rows in joined]
    cosine = np.sum(joined[0] * joined[1], 1) / (lengths[0] * lengths[1])
    np.testing.assert_allclose(cosine, np.mean(cosines, axis=0), atol=1e-6)


PROCESS = """
import sys
import jax
import numpy as np

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from tests.evaluation import test_features as case
from unipt_jax.data import tokenization

found = case.run(tokenization.load("examples/tokenizer"), 5, bad=(4,), quarantine=True)
arrays = {f"{side}_{name}": rows for side in ("image", "text")
          for name, rows in getattr(found, side).items()}
np.savez(sys.argv[3], pairs=found.pairs, faults=list(found.faults), **arrays)
"""


def test_two_processes_each_have_all(tokenizer, tmp_path):
    """Two real processes with two devices each; one of them meets the unreadable image."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, address, str(index), tmp_path / f"{index}.npz"],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        for child in children:
            _, err = child.communicate(timeout=300)
            assert child.returncode == 0, err
    finally:
        for child in children:
            child.kill()
    kept = [number for number in range(len(COUNTS)) if number != 4]
    texts = expected_texts(tokenizer, [text for number in kept for text in CAPTIONS[number]])
    for index in range(2):
        with np.load(tmp_path / f"{index}.npz") as found:
            assert found["faults"].tolist() == [4]
            for name, rows in expected_images(kept).items():
                np.testing.assert_allclose(found[f"image_{name}"], rows, rtol=1e-5)
            for name, rows in texts.items():
                np.testing.assert_allclose(found[f"text_{name}"], rows, rtol=1e-5)
