"""Foreign weights to a work directory: whole, resumable, and with the tokenizer they belong to."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
import tokenizers
from safetensors.numpy import save_file

import unipt_jax
from tests.training.test_initial import noise, same
from unipt_jax.config import schema
from unipt_jax.core.errors import CheckpointError, ConfigError, ConversionError
from unipt_jax.data import tokenization
from unipt_jax.interop import pytorch
from unipt_jax.models import specs
from unipt_jax.models.clip import ClipTextSpec, vision_spec
from unipt_jax.models.dual_encoder import DualEncoderSpec
from unipt_jax.training import conversion, initial, model_file

WORDS = ["a", "man", "woman", "red", "coat"]
START, END = "<|startoftext|>", "<|endoftext|>"


def clip_tokenizer(directory, extra=()):
    """A tokenizer of whole words whose end token has the highest id, as CLIP's."""
    words = {word: number for number, word in enumerate([*WORDS, *extra, START, END])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="a"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{START} $A {END}",
        special_tokens=[(START, words[START]), (END, words[END])],
    )
    made.add_special_tokens([START, END])
    directory.mkdir(exist_ok=True)
    made.save(str(directory / "tokenizer.json"))
    return str(directory)


SPEC = DualEncoderSpec(
    image=vision_spec(
        image_size=(16, 16), patch_size=4, hidden_size=16, layers=1, heads=2, mlp_size=32
    ),
    text=ClipTextSpec(
        vocab_size=len(WORDS) + 2,
        hidden_size=16,
        layers=1,
        heads=2,
        mlp_size=32,
        max_positions=9,
        end_token=len(WORDS) + 1,
    ),
    embedding_dim=16,
    pooling="class",
    pool_padding=False,
    mlm=False,
    temperature="learned",
    logit_scale=10.0,
)
SENTENCES = ["a man", "a woman red coat", "red " * 30]
PICTURES = list(np.random.default_rng(0).integers(256, size=(3, 40, 20, 3), dtype=np.uint8))


def export_clip(directory):
    """Writes a CLIPModel of noise, with a tokenizer of a few words; returns the noise."""
    params = noise(specs.abstract_params(SPEC))
    params["logit_scale"] = np.float32(np.log(10.0))
    tokenizer = tokenization.load(clip_tokenizer(directory / "words"))
    pytorch.export(directory, spec=SPEC, params=params, tokenizer=tokenizer, text_length=9)
    return params


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A CLIPModel directory of noise, and the noise."""
    directory = tmp_path_factory.mktemp("clip")
    return directory, export_clip(directory)


def config(source, **changes):
    return schema.build({"stage": "convert", "source": str(source)} | changes)


def test_a_conversion_embeds_as_its_source(source, tmp_path):
    directory, params = source
    conversion.convert(config(directory), tmp_path, False)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoints",
        "model.json",
        "tokenizer",
    ]
    ours, theirs = unipt_jax.load(tmp_path), unipt_jax.load(directory)
    same(ours.params, params)
    same(theirs.params, params)
    assert (ours.processor.height, ours.processor.length) == (16, 9)
    for one, other in (
        (ours.encode_images(PICTURES), theirs.encode_images(PICTURES)),
        (ours.encode_texts(SENTENCES), theirs.encode_texts(SENTENCES)),
    ):
        assert np.isfinite(one).all()
        np.testing.assert_array_equal(one, other)


def test_another_image_size_resizes_the_positions(source, tmp_path):
    """The class token's row stays; the grid becomes that of 24x8 pixels."""
    directory, params = source
    conversion.convert(config(directory, height=24, width=8), tmp_path, False)
    encoder = unipt_jax.load(tmp_path)
    table = np.asarray(encoder.params["image_encoder"]["position_embedding"])
    assert table.shape == (1 + 6 * 2, 16)
    np.testing.assert_array_equal(table[0], params["image_encoder"]["position_embedding"][0])
    assert (encoder.processor.height, encoder.processor.width) == (24, 8)
    assert np.isfinite(encoder.encode_images(PICTURES)).all()


def test_a_killed_conversion_is_finished(source, tmp_path):
    """Until the checkpoint is whole there is nothing to load; --resume writes what is missing."""
    directory, params = source
    conversion.convert(config(directory), tmp_path, False)
    shutil.rmtree(tmp_path / "checkpoints" / "0")
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        unipt_jax.load(tmp_path)
    conversion.check(config(directory), tmp_path)
    conversion.convert(config(directory), tmp_path, True)
    same(unipt_jax.load(tmp_path).params, params)


def test_a_finished_conversion_needs_its_source_no_more(source, tmp_path):
    conversion.convert(config(source[0]), tmp_path, False)
    conversion.check(config("gone"), tmp_path)
    conversion.convert(config("gone"), tmp_path, True)
    with pytest.raises(ConversionError, match="gone"):
        conversion.check(config("gone"), None)


def test_an_exports_work_directory_names_its_model(source, tmp_path):
    """`launch/export.py` writes a configuration of its own above the model's."""
    shutil.copytree(source[0], tmp_path / "model")
    (tmp_path / "config.json").write_text('{"stage": "export"}')
    with pytest.raises(CheckpointError, match=rf"load {tmp_path}/model"):
        unipt_jax.load(tmp_path)


def test_an_encoder_is_shown_in_a_few_lines(source):
    assert len(repr(unipt_jax.load(source[0]))) < 2000


def test_training_starts_from_a_conversion(source, tmp_path):
    directory, params = source
    conversion.convert(config(directory), tmp_path, False)
    for origin in (tmp_path, directory):
        words = tokenization.load(str(origin if origin == directory else origin / "tokenizer"))
        _, found = initial.start_from(SPEC, words.vocabulary, image=str(origin), text=str(origin))
        same(found, {name: params[name] for name in ("image_encoder", "text_encoder")})


def test_a_tokenizer_larger_than_the_embedding_is_refused(source, tmp_path):
    """P78: its ids would be outside the table."""
    name = clip_tokenizer(tmp_path / "words", extra=["blue"])
    for function in (
        lambda: conversion.check(config(source[0], tokenizer=name), None),
        lambda: conversion.convert(config(source[0], tokenizer=name), tmp_path / "run", False),
    ):
        with pytest.raises(ConversionError, match=r"ids up to 7, .* embeddings for 7 tokens"):
            function()


def test_a_tokenizer_that_ends_texts_otherwise_is_refused(source, tmp_path):
    """The embedding is read at the end token: without it there is none."""
    copy = tmp_path / "copy"
    shutil.copytree(source[0], copy)
    values = json.loads((copy / "config.json").read_text())
    values["text_config"]["eos_token_id"] = 3
    (copy / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConversionError, match=r"ends texts with id 6, .* at id 3"):
        unipt_jax.load(copy)


def test_a_missing_tokenizer_is_named(source, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(source[0], copy, ignore=shutil.ignore_patterns("*token*", "vocab*"))
    with pytest.raises(ConversionError, match=r"copy.*tokenizer.*--config\.tokenizer"):
        unipt_jax.load(copy)
    words = clip_tokenizer(tmp_path / "words")
    conversion.convert(config(copy, tokenizer=words), tmp_path / "run", False)
    assert model_file.tokenizer(tmp_path / "run").end == 6


def test_a_flipped_bit_of_an_export_is_found(source, tmp_path):
    """Nothing else tells: the value is a number still. After another tool saved it, none looks."""
    copy = tmp_path / "copy"
    shutil.copytree(source[0], copy)
    file = copy / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 4
    file.write_bytes(content)
    with pytest.raises(ConversionError, match=r"copy/model\.safetensors is damaged.* checksum"):
        unipt_jax.load(copy)
    save_file(safetensors.numpy.load(bytes(content)), file)
    assert unipt_jax.load(copy).processor.length == 9


def test_one_side_of_the_size_is_no_size():
    with pytest.raises(ConfigError, match="height=24 and width=0: set both"):
        config("x", height=24)


def test_one_encoder_alone_does_not_encode(tmp_path):
    """It is converted, and named as what it is."""
    image = dataclasses.replace(SPEC.image, patch_bias=True, pre_layer_norm=False)
    model_file.ModelFile(image, "float32", 0).write(tmp_path)
    with pytest.raises(CheckpointError, match=r"one encoder alone.*config\.init_image"):
        unipt_jax.load(tmp_path)


def test_what_is_converted_is_on_one_device(source):
    leaf = jax.tree.leaves(unipt_jax.load(source[0]).params)[0]
    assert leaf.sharding.device_set == {jax.devices()[0]}
