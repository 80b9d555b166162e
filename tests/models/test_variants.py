"""The named encoders: their sizes, by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from unipt_jax.core.errors import ConfigError
from unipt_jax.core.trees import count_parameters
from unipt_jax.models.bert import Bert
from unipt_jax.models.dual_encoder import DualEncoder
from unipt_jax.models.variants import IMAGE_VARIANTS, TEXT_VARIANTS, dual_encoder
from unipt_jax.models.vit import VisionTransformer

# Encoders without a head. The published ones: timm's vit_base_patch16_224 and
# deit_small_patch16_224 with num_classes=0, and bert-base-uncased without its pooler.
# tiny image: 8*8*3*128 + 128 + 128 + 129*128 + 4*198272 + 256, tiny text:
# 30522*128 + 128*128 + 2*128 + 256 + 3*198272; a block of 128 has
# 4*(128*128 + 128) + 128*512 + 512 + 512*128 + 128 + 4*128 = 198272.
IMAGE_COUNTS = {
    "vit_b16": ((224, 224), 85_798_656),
    "deit_s": ((224, 224), 21_665_664),
    "tiny": ((128, 64), 834_688),
}
TEXT_COUNTS = {"bert_base": 108_891_648, "tiny": 4_518_528}

OPTIONS = {
    "image_size": (128, 64),
    "vocab_size": 100,
    "embedding_dim": 64,
    "pool_padding": False,
    "dropout": 0.0,
    "temperature": "none",
    "logit_scale": 1.0,
}


def test_every_variant_has_a_row():
    assert set(IMAGE_COUNTS) == set(IMAGE_VARIANTS)
    assert set(TEXT_COUNTS) == set(TEXT_VARIANTS)


@pytest.mark.parametrize("name", IMAGE_COUNTS)
def test_image_parameters(name, key):
    size, count = IMAGE_COUNTS[name]
    model = VisionTransformer(dataclasses.replace(IMAGE_VARIANTS[name], image_size=size))
    images = jnp.zeros((1, *size, 3))
    assert count_parameters(jax.eval_shape(lambda: model.init(key, images, train=False))) == count


@pytest.mark.parametrize("name", TEXT_COUNTS)
def test_text_parameters(name, key):
    model = Bert(TEXT_VARIANTS[name])
    text, mask = jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4), bool)
    variables = jax.eval_shape(lambda: model.init(key, text, mask, train=False))
    assert count_parameters(variables) == TEXT_COUNTS[name]


def test_the_papers_image_size_is_the_default():
    assert IMAGE_VARIANTS["vit_b16"].grid == IMAGE_VARIANTS["deit_s"].grid == (24, 8)
    assert IMAGE_VARIANTS["vit_b16"].layer_norm_eps == 1e-6
    assert TEXT_VARIANTS["bert_base"].layer_norm_eps == 1e-12


def test_dual_encoder_takes_the_values_it_is_given(key):
    spec = dual_encoder("tiny", "tiny", **OPTIONS | {"dropout": 0.3, "image_size": (64, 32)})
    assert (spec.image.image_size, spec.text.vocab_size, spec.text.dropout) == ((64, 32), 100, 0.3)
    batch = {
        "image": jnp.zeros((1, 64, 32, 3), jnp.uint8),
        "text": jnp.zeros((1, 4), jnp.int32),
        "text_mask": jnp.ones((1, 4), bool),
        "masked_text": jnp.zeros((1, 4), jnp.int32),
        "mlm_positions": jnp.zeros((1, 2), jnp.int32),
    }
    variables = jax.eval_shape(lambda: DualEncoder(spec).init(key, batch, train=False))
    image = IMAGE_COUNTS["tiny"][1] - (16 * 8 - 8 * 4) * 128
    text = TEXT_COUNTS["tiny"] - (30522 - 100) * 128
    heads = 2 * (128 * 64 + 64) + (128 * 128 + 128 + 2 * 128 + 100)
    assert count_parameters(variables) == image + text + heads


@pytest.mark.parametrize(
    ("image", "text", "message"),
    [
        ("vit_b_16", "tiny", "image encoder 'vit_b_16'; did you mean 'vit_b16'"),
        ("tiny", "bert_bse", "text encoder 'bert_bse'; did you mean 'bert_base'"),
    ],
)
def test_an_unknown_name_is_met_with_the_nearest(image, text, message):
    with pytest.raises(ConfigError, match=message):
        dual_encoder(image, text, **OPTIONS)


def test_an_image_size_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="image_size=100x64"):
        dual_encoder("tiny", "tiny", **OPTIONS | {"image_size": (100, 64)})
