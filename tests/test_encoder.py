"""The library's door: a run's directory in, unit vectors out, whatever the images come as."""

import dataclasses
import functools
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import unipt_jax
from tests.training import micro
from unipt_jax import encoder as encoder_lib
from unipt_jax.config import load, schema
from unipt_jax.core import files
from unipt_jax.core.errors import CheckpointError, ConversionError, DataError
from unipt_jax.core.sharding import make_mesh
from unipt_jax.data import tokenization
from unipt_jax.models import specs
from unipt_jax.models.clip import ClipTextSpec
from unipt_jax.models.dual_encoder import DualEncoder
from unipt_jax.training import optimizer, run
from unipt_jax.training.checkpoints import Checkpoints
from unipt_jax.training.state import TrainState

HEIGHT, WIDTH, LENGTH, DIM = 32, 16, 32, 24
SENTENCES = [
    "a man in a red shirt",
    "",
    "A woman wearing a dark blue jacket, grey jeans and white shoes walks with a black backpack.",
    "a boy",
    "a man in a red shirt with a bag",
]


@pytest.fixture(scope="module")
def config(data):
    changes = {
        "data": str(data),
        "steps": 2,
        "batch_size": 8,
        "log_every": 1,
        "checkpoint_every": 2,
        "image.height": HEIGHT,
        "image.width": WIDTH,
        "text.length": LENGTH,
        "text.buckets": (),
        "model.image": "micro",
        "model.text": "micro",
        "model.embedding_dim": DIM,
        "init_image": "",
    }
    return load.load("configs/pretrain.py:demo", changes)


def one_device(*_):
    return make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory):
    """A finished run of two steps."""
    directory = tmp_path_factory.mktemp("run")
    files.write_json(directory / "config.json", schema.to_dict(config))
    # One of the eight devices: this run's time is its compilation.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "make_mesh", one_device)
        run.train(config, directory, False)
    return directory


@pytest.fixture(scope="module")
def encoder(workdir):
    return encoder_lib.load(workdir)


@pytest.fixture(scope="module")
def pictures():
    """Five arrays of different sizes."""
    rng = np.random.default_rng(0)
    return [
        rng.integers(256, size=(30 + 9 * number, 20 + 3 * number, 3), dtype=np.uint8)
        for number in range(5)
    ]


def contents(directory):
    return {
        str(path.relative_to(directory)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(Path(directory).rglob("*"))
        if path.is_file()
    }


def embed(encoder, ids, length=LENGTH):
    """Returns the unit vectors of lists of ids, padded to `length` with zeros."""
    text, mask = np.zeros((len(ids), length), np.int32), np.zeros((len(ids), length), bool)
    for row, entry in enumerate(ids):
        text[row, : len(entry)], mask[row, : len(entry)] = entry, True
    apply = jax.jit(functools.partial(encoder.model.apply, method="encode_text"))
    rows = np.asarray(apply({"params": encoder.params}, text, mask))
    return rows / np.sqrt((rows**2).sum(1, keepdims=True))


def close(ours, theirs):
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)


# ---------------------------------------------------------------------------- embeddings


def test_rows_are_unit_vectors(encoder, pictures):
    for rows in (encoder.encode_images(pictures), encoder.encode_texts(SENTENCES)):
        assert isinstance(rows, np.ndarray)
        assert rows.shape == (5, DIM) and rows.dtype == np.float32
        np.testing.assert_allclose(np.sqrt((rows**2).sum(1)), 1, atol=1e-5)
        # Five different inputs, five different vectors.
        distances = np.abs(rows[:, None] - rows[None]).max(-1) + np.eye(5)
        assert distances.min() > 1e-4


def test_bfloat16_models_give_unit_rows_in_float32(encoder, pictures):
    half = dataclasses.replace(encoder, model=encoder.model.clone(dtype=jnp.bfloat16))
    for rows in (half.encode_images(pictures), half.encode_texts(SENTENCES)):
        assert rows.dtype == np.float32
        np.testing.assert_allclose(np.sqrt((rows**2).sum(1)), 1, atol=1e-5)


def test_images_as_the_model_alone_embeds_them(encoder, pictures):
    pixels = np.stack(
        [
            np.asarray(Image.fromarray(image).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
            for image in pictures
        ]
    )
    rows = np.asarray(
        encoder.model.apply({"params": encoder.params}, jnp.asarray(pixels), method="encode_image")
    )
    close(encoder.encode_images(pictures), rows / np.sqrt((rows**2).sum(1, keepdims=True)))


def test_texts_as_the_model_alone_embeds_them(encoder):
    backend = tokenizers.Tokenizer.from_file("examples/tokenizer/tokenizer.json")
    ids = [backend.encode(sentence).ids for sentence in SENTENCES]
    assert max(map(len, ids)) <= LENGTH
    rows = encoder.encode_texts(SENTENCES)
    close(rows, embed(encoder, ids))
    # Without any padding, which must not matter.
    close(rows[:1], embed(encoder, ids[:1], len(ids[0])))


def test_a_long_sentence_is_cut(encoder, caplog):
    """P104: the end token stays the last; what is beyond the text length does not count."""
    backend = tokenizers.Tokenizer.from_file("examples/tokenizer/tokenizer.json")
    long = "a man in a red shirt with a bag " * 20
    ids = backend.encode(long).ids
    expected = embed(encoder, [[*ids[: LENGTH - 1], backend.token_to_id("[SEP]")]])
    close(encoder.encode_texts([long, long + "and white shoes"]), expected.repeat(2, 0))
    assert f"2 of 2 sentences have more than {LENGTH} tokens" in caplog.text
    caplog.clear()
    encoder.encode_texts(["a man"])
    assert not caplog.text


def test_sentences_are_tokenised_together(encoder, monkeypatch):
    seen, real = [], tokenization.Tokenizer.encode_whole

    def count(tokenizer, captions):
        seen.append(list(captions))
        return real(tokenizer, captions)

    monkeypatch.setattr(tokenization.Tokenizer, "encode_whole", count)
    encoder.processor.texts(SENTENCES)
    assert seen == [list(SENTENCES)]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_batch_size_and_order_change_nothing(encoder, pictures, batch_size):
    other = dataclasses.replace(encoder, batch_size=batch_size)
    order = [3, 0, 4, 4, 1, 2]
    images, texts = encoder.encode_images(pictures), encoder.encode_texts(SENTENCES)
    close(other.encode_images([pictures[index] for index in order]), images[order])
    close(other.encode_texts([SENTENCES[index] for index in order]), texts[order])


def test_nothing_gives_no_rows(encoder):
    for rows in (encoder.encode_images([]), encoder.encode_texts([])):
        assert rows.shape == (0, DIM) and rows.dtype == np.float32


# ---------------------------------------------------------------------------- texts by length

FULL = 100
# With the start and the end token: below, at and above buckets, the empty text, and two to be cut.
TOKENS = [24, 2, 25, 3, 100, 23, 32, 33, 99, 40, 41, 48, 49, 64, 65, 101, 130, 7]
KINDS = ["maximum", "class token", "end token", "maximum with padding"]


@functools.cache
def random_encoder(kind, batch_size=4):
    """Returns one of texts of up to 100 tokens."""
    tokenizer = tokenization.load("examples/tokenizer")
    spec = micro.model().spec
    bert = dataclasses.replace(spec.text, vocab_size=tokenizer.vocab_size, max_positions=FULL)
    sizes = {"hidden_size": 16, "layers": 2, "heads": 2, "mlp_size": 32}
    clip = ClipTextSpec(
        vocab_size=tokenizer.vocab_size, max_positions=FULL, end_token=tokenizer.end, **sizes
    )
    spec = dataclasses.replace(
        spec,
        text=clip if kind == "end token" else dataclasses.replace(bert, layers=2),
        pooling="max" if kind.startswith("maximum") else "class",
        pool_padding=kind == "maximum with padding",
        mlm=False,
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(leaf.dtype), specs.abstract_params(spec)
    )
    processor = encoder_lib.Processor(16, 8, tokenizer, FULL)
    return encoder_lib.Encoder(DualEncoder(spec), params, processor, batch_size)


def sentence(tokens):
    """Returns the same text for the same number of tokens."""
    words = ["man", "woman", "red", "blue", "shirt", "white", "black", "shoes", "bag", "jeans"]
    return " ".join(np.random.default_rng(tokens).choice(words, tokens - 2).tolist())


@functools.cache
def at_full_length(kind):
    """Returns the embedding of each of `TOKENS` with all padding."""
    backend = tokenizers.Tokenizer.from_file("examples/tokenizer/tokenizer.json")
    ids = [backend.encode(sentence(tokens)).ids for tokens in TOKENS]
    assert [len(entry) for entry in ids] == TOKENS
    end = backend.token_to_id("[SEP]")
    ids = [entry if len(entry) <= FULL else [*entry[: FULL - 1], end] for entry in ids]
    rows = embed(random_encoder(kind), ids, FULL)
    # A text that is taken for another is found out.
    assert (np.abs(rows[:, None] - rows[None]).max(-1) + np.eye(len(rows))).min() > 1e-4
    return rows


def shapes(encoder, texts):
    """Returns the shapes that texts are encoded in."""
    encoder, seen = dataclasses.replace(encoder), []
    encode = encoder._texts

    def watched(params, text, text_mask):
        seen.append(text.shape)
        return encode(params, text, text_mask)

    vars(encoder)["_texts"] = watched
    encoder.encode_texts(texts)
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_padding_to_a_bucket_changes_no_embedding(kind):
    """But for rounding, as sums of another length are added up in another order."""
    rows = random_encoder(kind).encode_texts([sentence(tokens) for tokens in TOKENS])
    close(rows, at_full_length(kind))


@settings(max_examples=25)
@given(st.lists(st.integers(0, len(TOKENS) - 1), max_size=12))
def test_rows_come_in_the_order_given(chosen):
    """Whatever the lengths, and however often a text comes."""
    texts = [sentence(TOKENS[number]) for number in chosen]
    close(random_encoder("maximum").encode_texts(texts), at_full_length("maximum")[chosen])


def test_short_texts_are_encoded_short():
    texts = [sentence(tokens) for tokens in TOKENS]
    # In fours from the longest: 130 to 99, 65 to 48, 41 to 32, 25 to 7, and the two shortest.
    assert shapes(random_encoder("maximum"), texts) == [
        (4, 100),
        (4, 100),
        (4, 48),
        (4, 32),
        (2, 24),
    ]
    # Where padding counts it must be all there.
    assert {length for _, length in shapes(random_encoder(KINDS[-1]), texts)} == {100}


@pytest.mark.parametrize(("count", "size"), [(1, 1), (2, 2), (3, 4), (5, 8), (9, 12), (12, 12)])
def test_a_batch_that_is_not_full_takes_a_power_of_two(count, size):
    """So that few sizes are compiled, and one query is one row."""
    encoder = random_encoder("maximum", batch_size=12)
    assert shapes(encoder, [sentence(7)] * count) == [(size, 24)]
    close(encoder.encode_texts([sentence(7)] * count), at_full_length("maximum")[[-1] * count])


# ---------------------------------------------------------------------------- kinds of images


def test_paths_pillow_images_and_arrays_are_the_same(encoder, pictures, tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for path, image in zip(paths, pictures, strict=True):
        Image.fromarray(image).save(path)
    expected = encoder.encode_images(pictures)
    for batch in (
        paths,
        [str(path) for path in paths],
        [Image.fromarray(image) for image in pictures],
        [Image.open(path) for path in paths],
        [paths[0], str(paths[1]), Image.open(paths[2]), pictures[3], pictures[4][:, :, :]],
    ):
        np.testing.assert_array_equal(encoder.encode_images(batch), expected)


def test_modes_of_pillow_images(encoder, pictures, tmp_path):
    """Transparent is white, grey is three equal channels; from memory as from a file (P48, P50)."""
    picture = pictures[0]
    opaque = np.random.default_rng(1).random(picture.shape[:2]) < 0.5
    alpha = np.where(opaque, 255, 0).astype(np.uint8)[..., None]
    on_white = np.where(opaque[..., None], picture, 255).astype(np.uint8)
    grey = picture[..., 0]
    cases = {
        "RGBA": (np.concatenate([picture, alpha], -1), on_white),
        "L": (grey, np.stack([grey] * 3, -1)),
        "LA": (np.concatenate([grey[..., None], alpha], -1),
               np.where(opaque[..., None], grey[..., None], 255).astype(np.uint8).repeat(3, -1)),
        "1": (opaque, np.where(opaque, 255, 0).astype(np.uint8)[..., None].repeat(3, -1)),
        "I;16": (grey.astype(np.uint16) * 257, np.stack([grey] * 3, -1)),
    }  # fmt: skip
    for mode, (stored, rgb) in cases.items():
        image = Image.fromarray(stored)
        assert image.mode == mode
        path = tmp_path / f"{mode.replace(';', '_')}.png"
        image.save(path)
        from_memory, from_file, expected = encoder.encode_images([image, path, rgb])
        np.testing.assert_array_equal(from_memory, expected, err_msg=mode)
        np.testing.assert_array_equal(from_file, expected, err_msg=mode)


def test_a_turned_photograph_stands_upright_however_it_is_opened(encoder, pictures, tmp_path):
    """EXIF orientation 6: the camera stored the picture turned a quarter to the left (P51)."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.png"
    Image.fromarray(np.rot90(pictures[1])).save(path, exif=exif)
    opened, by_path, expected = encoder.encode_images([Image.open(path), path, pictures[1]])
    np.testing.assert_array_equal(by_path, expected)
    np.testing.assert_array_equal(opened, expected)


def test_images_are_left_as_they_were(encoder, pictures):
    before = [image.copy() for image in pictures]
    image = Image.fromarray(pictures[0]).convert("RGBA")
    encoder.encode_images([*pictures, image])
    for ours, theirs in zip(pictures, before, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert image.mode == "RGBA" and image.size == (20, 30)


# ---------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8, 3), np.int32),
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((1, 8, 8, 3), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_arrays_of_other_kinds_are_refused(encoder, pictures, wrong):
    """Named by their place in the whole list; and which axis is which is not guessed (P54)."""
    small = dataclasses.replace(encoder, batch_size=2)
    with pytest.raises(DataError) as raised:
        small.encode_images([*pictures[:3], wrong])
    assert f"image 3 is {wrong.dtype}" in str(raised.value)
    assert "uint8[H, W, 3]" in str(raised.value)


def test_files_that_cannot_be_read_are_named(encoder, pictures, tmp_path):
    """A pipe is no file, and Pillow finds damage when it needs the pixels (P31, P52)."""
    os.mkfifo(tmp_path / "pipe.jpg")
    missing, text = tmp_path / "missing.jpg", tmp_path / "text.jpg"
    truncated, good = tmp_path / "truncated.png", tmp_path / "good.png"
    text.write_text("no image at all")
    Image.fromarray(pictures[0]).save(good)
    truncated.write_bytes(good.read_bytes()[:900])
    small = dataclasses.replace(encoder, batch_size=1)
    for batch, named in (
        ([good, missing], rf"image 1: {missing}: cannot be read \(No such file"),
        ([good, str(tmp_path)], rf"image 1: {tmp_path}: cannot be read \(not an ordinary file"),
        ([good, tmp_path / "pipe.jpg"], r"image 1: .*pipe\.jpg: cannot be read \(not an ordinary"),
        ([good, text], rf"image 1: {text}: cannot be decoded"),
        ([good, truncated], rf"image 1: {truncated}: cannot be decoded"),
        ([good, Image.open(truncated)], r"image 1: cannot be decoded"),
    ):
        with pytest.raises(DataError, match=named):
            small.encode_images(batch)


def test_directories_without_a_model_are_refused(data, tmp_path):
    """There is no encoder with random weights (P10, P25)."""
    for directory in (tmp_path, tmp_path / "nowhere", data):
        with pytest.raises(ConversionError, match=str(directory)):
            encoder_lib.load(directory)


def test_the_directory_of_another_stage_is_refused(tmp_path):
    """A data set that was prepared has a `config.json` as well."""
    prepare = schema.Prepare(stage="prepare", dataset="pairs", source="somewhere")
    files.write_json(tmp_path / "config.json", schema.to_dict(prepare))
    with pytest.raises(CheckpointError, match=rf"{tmp_path} .*without a model"):
        encoder_lib.load(tmp_path)


@pytest.mark.parametrize("remains", ["nothing", "empty", "half"])
def test_a_run_without_a_checkpoint_is_refused(workdir, tmp_path, remains):
    """Neither an empty directory nor what a killed run left of its first checkpoint counts."""
    shutil.copy(workdir / "config.json", tmp_path)
    shutil.copy(workdir / "model.json", tmp_path)
    shutil.copytree(workdir / "tokenizer", tmp_path / "tokenizer")
    checkpoints = tmp_path / "checkpoints"
    if remains != "nothing":
        checkpoints.mkdir()
    if remains == "half":
        half = checkpoints / "2.orbax-checkpoint-tmp-0"
        shutil.copytree(workdir / "checkpoints" / "2", half)
    with pytest.raises(CheckpointError, match=rf"{tmp_path}.* holds no"):
        encoder_lib.load(tmp_path)


# ---------------------------------------------------------------------------- loading


def test_parameters_are_those_that_were_trained(encoder, workdir):
    """Against the whole state, restored as a run that goes on restores it."""
    schedule = optimizer.learning_rate_schedule(peak=1e-3, steps=2, warmup=0.1, decay="cosine")
    adamw = optimizer.make_optimizer(
        schedule, beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.01, clip_norm=0.0
    )
    abstract = jax.eval_shape(
        lambda: TrainState(
            step=jnp.zeros((), jnp.int32),
            params=encoder.params,
            opt_state=adamw.init(encoder.params),
            average=None,
            key=jax.random.key(0),
        )
    )
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with Checkpoints.open_read_only(workdir) as checkpoints:
        trained, _ = checkpoints.restore(abstract, jax.tree.map(lambda _: device, abstract))
    assert int(trained.step) == 2
    assert jax.tree.structure(encoder.params) == jax.tree.structure(trained.params)
    jax.tree.map(np.testing.assert_array_equal, encoder.params, trained.params)


def test_loading_changes_nothing_in_the_run(workdir, pictures):
    before = contents(workdir)
    encoder = encoder_lib.load(str(workdir))
    encoder.encode_images(pictures)
    encoder.encode_texts(SENTENCES)
    assert before and contents(workdir) == before


def test_sizes_are_those_of_the_run(encoder):
    processor = encoder.processor
    assert (processor.height, processor.width, processor.length) == (HEIGHT, WIDTH, LENGTH)


def test_the_package_exports_the_door():
    assert unipt_jax.load is encoder_lib.load
    assert unipt_jax.Encoder is encoder_lib.Encoder
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        unipt_jax.nothing  # noqa: B018


@pytest.mark.parametrize("method", ["encode_images", "encode_texts"])
def test_a_bare_string_is_not_taken_for_a_list_of_letters(encoder, method):
    with pytest.raises(DataError, match="bare string"):
        getattr(encoder, method)("a.jpg")
