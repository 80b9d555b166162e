"""CLIP's text encoder: which token stands for a text, and what it depends on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unipt_jax.core.errors import ConfigError
from unipt_jax.models import clip
from unipt_jax.models.clip import ClipText, ClipTextSpec
from unipt_jax.models.dual_encoder import DualEncoder, DualEncoderSpec
from unipt_jax.models.specs import abstract_params
from unipt_jax.models.vit import VisionSpec

# Ids above the end token's are what adding tokens to a vocabulary gives.
V, START, END, LONGEST = 40, 29, 30, 20
SPEC = ClipTextSpec(
    vocab_size=V,
    hidden_size=16,
    layers=2,
    heads=4,
    mlp_size=32,
    max_positions=LONGEST,
    end_token=END,
)
MODEL = DualEncoder(
    DualEncoderSpec(
        image=VisionSpec((4, 4), patch_size=4, hidden_size=8, layers=1, heads=2, mlp_size=8),
        text=SPEC,
        embedding_dim=6,
        pooling="class",
        pool_padding=False,
        mlm=False,
        temperature="none",
        logit_scale=1.0,
    )
)
TEXTS = [[START, 5, 6, 7, END], [START, 8, END], [START, END], [START, *range(1, 11), END]]


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32),
        abstract_params(MODEL.spec),
    )


@jax.jit
def _tokens(params, text, mask):
    variables = {"params": params["text_encoder"]}
    return ClipText(SPEC).apply(variables, text, mask, train=False)


@jax.jit
def _embed(params, text, mask):
    return MODEL.apply({"params": params}, text, mask, method="encode_text")


def _pad(texts, length=12, padding=END):
    text = np.full((len(texts), length), padding, np.int32)
    for row, ids in enumerate(texts):
        text[row, : len(ids)] = ids
    mask = np.arange(length)[None] < np.array([len(ids) for ids in texts])[:, None]
    return jnp.asarray(text), jnp.asarray(mask)


@pytest.mark.parametrize("padding", [END, 0, 1])
def test_the_first_end_token_stands_for_the_text(params, padding):
    """P11: OpenAI's padding is the end token too, others' is token 0."""
    text, mask = _pad(TEXTS, padding=padding)
    tokens = np.asarray(_tokens(params, text, mask))
    ends = tokens[np.arange(4), [4, 2, 1, 11]]
    want = ends @ np.asarray(params["text_head"]["projection"]["kernel"])
    np.testing.assert_allclose(_embed(params, text, mask), want, atol=1e-5)


def test_added_tokens_do_not_move_the_place_that_is_pooled(params):
    """P11: pooling at the highest id would take the added token instead."""
    added = [[START, 5, V - 1, 7, END], [START, END + 1, 8, 9, END]]
    text, mask = _pad(added)
    tokens = np.asarray(_tokens(params, text, mask))
    want = tokens[:, 4] @ np.asarray(params["text_head"]["projection"]["kernel"])
    np.testing.assert_allclose(_embed(params, text, mask), want, atol=1e-5)
    assert np.abs(tokens[0, 2] - tokens[0, 4]).max() > 0.1


def test_the_padded_length_does_not_matter(params):
    want = _embed(params, *_pad(TEXTS, 12))
    for length in (13, LONGEST):
        np.testing.assert_allclose(_embed(params, *_pad(TEXTS, length)), want, atol=1e-5)


def test_a_text_without_an_end_token_is_not_a_number(params):
    """P12: its start token would be a plausible and wrong answer."""
    have = np.asarray(_embed(params, *_pad([[START, 5, 6], [START, 5, END]], padding=0)))
    assert np.isnan(have[0]).all()
    assert np.isfinite(have[1]).all()


def test_an_id_beyond_the_vocabulary_is_never_clamped(params):
    """Its text becomes no number, not another text (P78)."""
    have = np.asarray(_embed(params, *_pad([[START, V, END], [START, V - 1, END]])))
    assert np.isnan(have[0]).all()
    assert np.isfinite(have[1]).all()


def test_a_shorter_text_takes_the_first_positions(params):
    """P105: the table is cut, so what lies beyond plays no part."""
    text, mask = _pad(TEXTS, 12)
    want = np.asarray(_embed(params, text, mask))

    def changed(row):
        encoder = params["text_encoder"]
        table = encoder["position_embeddings"].at[row, 0].add(3.0)
        other = params | {"text_encoder": encoder | {"position_embeddings": table}}
        return np.asarray(_embed(other, text, mask))

    np.testing.assert_array_equal(changed(12), want)
    moved = np.abs(changed(11) - want).max(axis=1) > 1e-3
    assert moved.tolist() == [False, False, False, True]  # The last text alone has 12 tokens.


def test_a_text_longer_than_the_positions_is_refused(params):
    with pytest.raises(ConfigError, match=rf"{LONGEST + 1} tokens .* max_positions={LONGEST}"):
        _embed(params, *_pad(TEXTS, LONGEST + 1))


ids = st.integers(0, V - 1)


@settings(max_examples=25)
@given(st.lists(ids, min_size=12, max_size=12), st.integers(1, 11), st.integers(1, V - 1))
def test_a_token_sees_none_after_it(params, text, place, shift):
    text, seen = np.array([text], np.int32), jnp.ones((1, 12), bool)
    other = text.copy()
    other[0, place] = (text[0, place] + shift) % V
    have, want = (np.asarray(_tokens(params, jnp.asarray(row), seen))[0] for row in (other, text))
    np.testing.assert_allclose(have[:place], want[:place], atol=1e-6)
    assert np.abs(have[place] - want[place]).max() > 1e-3


@settings(max_examples=25)
@given(
    st.lists(st.integers(0, START - 1), max_size=9),
    st.lists(ids, min_size=11, max_size=11),
    st.booleans(),
)
def test_what_follows_the_end_token_is_not_heard(params, words, tail, seen):
    sentence = [START, *words, END]
    want = _embed(params, *_pad([sentence]))
    text = jnp.asarray([[*sentence, *tail][:12]], jnp.int32)
    mask = jnp.asarray((np.arange(12) < len(sentence)) | seen)[None]
    np.testing.assert_allclose(_embed(params, text, mask), want, atol=1e-6)


def test_there_is_no_dropout(params):
    text, mask = _pad(TEXTS)
    train = functools.partial(MODEL.apply, {"params": params}, method="encode_text", train=True)
    np.testing.assert_allclose(train(text, mask), _embed(params, text, mask), atol=1e-5)


@pytest.mark.parametrize(
    ("end_token", "fault"), [(-1, "is not an integer from 0 on"), (V, f".*vocab_size={V}")]
)
def test_the_end_token_must_be_an_id(end_token, fault):
    with pytest.raises(ConfigError, match=f"end_token={end_token} {fault}"):
        ClipTextSpec(V, 16, 1, 4, 32, LONGEST, end_token)


def test_heads_must_divide_the_width():
    with pytest.raises(ConfigError, match=r"hidden_size=16 .* heads=3"):
        ClipTextSpec(V, 16, 1, 3, 32, LONGEST, END)


def test_the_image_encoder_is_clips():
    image_utils = pytest.importorskip("transformers.image_utils")
    spec = clip.vision_spec(
        image_size=(8, 4), patch_size=4, hidden_size=16, layers=1, heads=4, mlp_size=32
    )
    assert (spec.pre_layer_norm, spec.patch_bias, spec.prefix) == (True, False, 1)
    assert (spec.activation, spec.layer_norm_eps) == ("quick_gelu", 1e-5)
    assert list(spec.mean) == list(image_utils.OPENAI_CLIP_MEAN)
    assert list(spec.std) == list(image_utils.OPENAI_CLIP_STD)
