"""The named encoders: their sizes, by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from unipt_jax.core.errors import ConfigError
from unipt_jax.core.trees import count_parameters
from unipt_jax.models import specs
from unipt_jax.models.bert import Bert
from unipt_jax.models.clip import ClipText, ClipTextSpec
from unipt_jax.models.cross_modal import CrossModalSpec
from unipt_jax.models.dual_encoder import DualEncoder
from unipt_jax.models.pgu import PguSpec
from unipt_jax.models.token_selection import TokenSelectionSpec
from unipt_jax.models.variants import IMAGE_VARIANTS, PGU_VARIANTS, TEXT_VARIANTS, dual_encoder
from unipt_jax.models.vit import VisionTransformer

# Encoders without a head. The published ones: timm's vit_base_patch16_224 and
# deit_small_patch16_224 with num_classes=0, bert-base-uncased without its pooler, and both towers
# of openai/clip-vit-base-patch16: 149,620,737 less the projections, 768*512 and 512*512, and the
# temperature.
# tiny image: 8*8*3*128 + 128 + 128 + 129*128 + 4*198272 + 256, tiny text:
# 30522*128 + 128*128 + 2*128 + 256 + 3*198272; a block of 128 has
# 4*(128*128 + 128) + 128*512 + 512 + 512*128 + 128 + 4*128 = 198272. small_clip's text:
# 320*96 + 32*96 + 4*(96*96 + 96) + 96*192 + 192 + 192*96 + 96 + 4*96 + 192. micro image:
# 8*8*3*32 + 32 + 32 + 9*32 + 8544 + 64, micro text: 30522*32 + 128*32 + 2*32 + 64 + 8544; a block
# of 32 has 4*(32*32 + 32) + 32*64 + 64 + 64*32 + 32 + 4*32 = 8544.
IMAGE_COUNTS = {
    "vit_b16": ((224, 224), 85_798_656),
    "deit_s": ((224, 224), 21_665_664),
    "clip_b16": ((224, 224), 85_799_424),
    "small_clip": ((112, 112), 1_273_856),
    "tiny": ((128, 64), 834_688),
    "micro": ((32, 16), 15_104),
}
TEXT_COUNTS = {
    "bert_base": 108_891_648,
    "clip_b16": 63_165_952,
    "small_clip": 108_768,
    "tiny": 4_518_528,
    "micro": 989_472,
}

# In a space of 768; a decoder with I = heads * head size and an MLP of M has
# 4*768 + 4*768*I + 768 + 2*768*M + M + 768. paper: 406*768 + 2364672 (I=384, M=768) + 769 +
# 2*10228736 (I=3072, M=512) + 6*768*512; tiny: 68*768 + 2*791296 (I=128, M=256) + 769 + 4*768*64.
PGU_COUNTS = {"paper": 25_494_017, "tiny": 1_832_193}

OPTIONS = {
    "image_size": (128, 64),
    "vocab_size": 100,
    "end_token": 7,
    "embedding_dim": 64,
    "pooling": "max",
    "pool_padding": False,
    "dropout": 0.0,
    "mlm": True,
    "temperature": "none",
    "logit_scale": 1.0,
}


def test_every_variant_has_a_row():
    assert set(IMAGE_COUNTS) == set(IMAGE_VARIANTS)
    assert set(TEXT_COUNTS) == set(TEXT_VARIANTS)
    assert set(PGU_COUNTS) == set(PGU_VARIANTS)


@pytest.mark.parametrize("name", IMAGE_COUNTS)
def test_image_parameters(name, key):
    size, count = IMAGE_COUNTS[name]
    model = VisionTransformer(dataclasses.replace(IMAGE_VARIANTS[name], image_size=size))
    images = jnp.zeros((1, *size, 3))
    assert count_parameters(jax.eval_shape(lambda: model.init(key, images, train=False))) == count


@pytest.mark.parametrize("name", TEXT_COUNTS)
def test_text_parameters(name, key):
    spec = TEXT_VARIANTS[name]
    model = (ClipText if isinstance(spec, ClipTextSpec) else Bert)(spec)
    text, mask = jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4), bool)
    variables = jax.eval_shape(lambda: model.init(key, text, mask, train=False))
    assert count_parameters(variables) == TEXT_COUNTS[name]


@pytest.mark.parametrize("name", PGU_COUNTS)
def test_parameters_of_the_granularity_unified_features(name):
    spec = dual_encoder("tiny", "tiny", **OPTIONS | {"embedding_dim": 768, "pgu": name})
    assert count_parameters(specs.abstract_params(spec)["pgu"]) == PGU_COUNTS[name]


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


def test_clips_text_encoder_ends_texts_as_the_tokenizer_does():
    """BERT does not read an end token, and CLIP has no dropout."""
    clip = dual_encoder("clip_b16", "clip_b16", **OPTIONS | {"dropout": 0.3, "pooling": "class"})
    assert (clip.text.vocab_size, clip.text.end_token, clip.pooling) == (100, 7, "class")
    assert clip.image.pre_layer_norm and clip.image.image_size == (128, 64)


def test_what_stands_on_the_encoders():
    plain = dual_encoder("tiny", "clip_b16", **OPTIONS)
    assert (plain.cross_modal, plain.pgu, plain.selection, plain.identities) == (None,) * 3 + (0,)
    assert not plain.logit_bias and plain.features == ("global",)
    heads = {
        "logit_bias": True,
        "cross_modal": True,
        "pgu": "paper",
        "selection": True,
        "identities": 11,
    }
    full = dual_encoder("tiny", "clip_b16", **OPTIONS | heads)
    want = (CrossModalSpec(), PguSpec(), TokenSelectionSpec(), 11, True)
    assert (full.cross_modal, full.pgu, full.selection, full.identities, full.logit_bias) == want
    assert dual_encoder("tiny", "tiny", **OPTIONS | {"mlm": False}).mlm is False


@pytest.mark.parametrize(
    ("image", "text", "pgu", "message"),
    [
        ("vit_b_16", "tiny", "", r"model\.image='vit_b_16'; did you mean 'vit_b16'"),
        ("tiny", "bert_bse", "", r"model\.text='bert_bse'; did you mean 'bert_base'"),
        ("tiny", "tiny", "papr", r"model\.pgu='papr'; did you mean 'paper'"),
    ],
)
def test_an_unknown_name_is_met_with_the_nearest(image, text, pgu, message):
    with pytest.raises(ConfigError, match=message):
        dual_encoder(image, text, **OPTIONS | {"pgu": pgu})


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"selection": True}, "selection reads"), ({"cross_modal": True, "mlm": False}, "set mlm")],
)
def test_parts_that_do_not_fit_together_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        dual_encoder("tiny", "tiny", **OPTIONS | changes)


def test_an_image_size_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="image_size=100x64"):
        dual_encoder("tiny", "tiny", **OPTIONS | {"image_size": (100, 64)})
