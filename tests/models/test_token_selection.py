"""Which tokens are selected, what becomes of them, and the attention that decides it."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unipt_jax.core.errors import ConfigError
from unipt_jax.core.sharding import batch_sharding, make_mesh, parameter_shardings
from unipt_jax.core.trees import flatten
from unipt_jax.models.clip import ClipText, ClipTextSpec
from unipt_jax.models.token_selection import TokenSelection, TokenSelectionSpec, words_before
from unipt_jax.models.vit import VisionSpec, VisionTransformer

WIDTH = 4
SPEC = TokenSelectionSpec(ratio=0.5, feature_dim=6)


@functools.cache
def _parameters(spec, width, seed=0):
    tokens, attention = jnp.zeros((1, 3, width)), jnp.zeros((1, 3))
    shapes = jax.eval_shape(
        lambda: TokenSelection(spec, 3).init(jax.random.key(0), tokens, attention, attention == 0.0)
    )
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32),
        nn.unbox(shapes)["params"],
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _select(spec, longest, params, tokens, attention, candidates):
    return TokenSelection(spec, longest).apply({"params": params}, tokens, attention, candidates)


PLAIN = TokenSelectionSpec(ratio=0.5, feature_dim=WIDTH)


def plainly(tokens, attention, candidates, longest):
    """With the linear map alone, the identity: the maximum over selected unit tokens."""
    params = jax.tree.map(jnp.zeros_like, _parameters(PLAIN, WIDTH))
    params["projection"]["kernel"] = jnp.eye(WIDTH)
    inputs = map(jnp.asarray, (tokens, attention, candidates))
    return np.asarray(_select(PLAIN, longest, params, *inputs))


# Each token its own direction, and none of length 1: what is 1 in the result was selected.
TOKENS = np.eye(WIDTH, dtype=np.float32)[None] * np.array([2.0, 3.0, 0.5, 9.0], np.float32)
ALL = np.ones((1, WIDTH), bool)


@pytest.mark.parametrize(
    ("longest", "want"),
    [(1, [0, 1, 0, 0]), (4, [0, 1, 0, 1]), (7, [1, 1, 0, 1]), (8, [1] * 4), (99, [1] * 4)],
)
def test_the_most_attended_tokens_are_selected(longest, want):
    """Half of the longest, rounded down, at least one, and never more than there are."""
    attention = np.array([[0.2, 0.4, 0.1, 0.3]], np.float32)
    np.testing.assert_allclose(plainly(TOKENS, attention, ALL, longest), [want], atol=1e-6)


def test_others_than_candidates_are_never_selected():
    attention = np.array([[0.6, 0.0, 0.3, 0.1]], np.float32)
    candidates = np.array([[False, True, False, True]])
    # A candidate that gets no attention comes before all that are none.
    for longest, want in ((2, [0, 0, 0, 1]), (4, [0, 1, 0, 1]), (8, [0, 1, 0, 1])):
        have = plainly(TOKENS, attention, candidates, longest)
        np.testing.assert_allclose(have, [want], atol=1e-6)


def test_each_row_selects_for_itself():
    tokens = np.repeat(TOKENS, 3, axis=0)
    attention = np.array([[0.7, 0.1, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7]])
    attention = attention.astype(np.float32)
    want = np.eye(WIDTH)[[0, 1, 3]]
    np.testing.assert_allclose(plainly(tokens, attention, ALL, 2), want, atol=1e-6)
    np.testing.assert_allclose(
        plainly(tokens, attention, np.repeat(ALL, 3, axis=0), 2), want, atol=1e-6
    )


def test_the_maximum_may_be_negative():
    """Places that fill up are no zeros."""
    candidates = np.array([[True, False, False, False]])
    have = plainly(-TOKENS - 1.0, np.full((1, WIDTH), 0.25, np.float32), candidates, 8)
    want = -TOKENS[0, 0] - 1.0
    np.testing.assert_allclose(have, [want / np.linalg.norm(want)], atol=1e-6)


def test_a_text_without_a_word_gives_zeros():
    attention = np.full((2, WIDTH), 0.25, np.float32)
    candidates = jnp.array([[False] * 4, [True] * 4])
    tokens = jnp.asarray(np.repeat(TOKENS, 2, axis=0)).at[0, 0].set(0.0)

    def total(params, tokens):
        made = _select(SPEC, 4, params, tokens, jnp.asarray(attention), candidates)
        return made.sum(), made

    gradients, have = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(
        _parameters(SPEC, WIDTH), tokens
    )
    np.testing.assert_array_equal(have[0], np.zeros(6))
    assert np.abs(have[1]).min() > 1e-3
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    np.testing.assert_array_equal(gradients[1][0], 0.0)


def test_no_attention_is_no_plausible_answer():
    """P12: a text without an end-of-text token has none; its embedding is not a number either."""
    tokens = np.repeat(TOKENS, 2, axis=0)
    attention = np.array([[np.nan] * 4, [0.25] * 4], np.float32)
    have = plainly(tokens, attention, np.array([[False, True, True, True]]), 4)
    assert np.isnan(have[0]).all()
    assert np.isfinite(have[1]).all()


@pytest.mark.parametrize(
    ("longest", "padding", "scale"), [(3, 4, 1.0), (7, 1, 0.1), (12, 3, 30.0), (40, 9, 1.0)]
)
def test_padding_and_scale_do_not_matter(longest, padding, scale):
    """Nor does any other row of the batch."""
    rng = np.random.default_rng(longest)
    tokens = rng.normal(size=(3, 6, WIDTH)).astype(np.float32)
    attention = rng.uniform(size=(3, 6)).astype(np.float32)
    candidates = rng.uniform(size=(3, 6)) < 0.7
    run = functools.partial(_select, SPEC, longest, _parameters(SPEC, WIDTH))
    want = run(*map(jnp.asarray, (tokens, attention, candidates)))
    noise = rng.normal(size=(3, padding, WIDTH)).astype(np.float32)
    longer = np.concatenate([scale * tokens, noise], axis=1)
    more = np.pad(attention, ((0, 0), (0, padding)), constant_values=1.0)
    mask = np.pad(candidates, ((0, 0), (0, padding)))
    have = run(*(jnp.asarray(x[:1]) for x in (longer, more, mask)))
    np.testing.assert_allclose(have, want[:1], atol=1e-4)
    assert np.abs(np.diff(want, axis=0)).min() > 1e-3


def test_candidates_of_a_text():
    mask = jnp.array([[True] * 6, [True] * 4 + [False] * 2, [True] * 2 + [False] * 4])
    have = words_before(jnp.array([5, 3, 1]), mask)
    np.testing.assert_array_equal(
        have, [[0, 1, 1, 1, 1, 0], [0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]]
    )
    # A mask that reaches beyond the end, and an end that lies beyond the mask.
    np.testing.assert_array_equal(words_before(jnp.array([2, 6, 4]), mask).sum(axis=1), [1, 3, 1])


def test_parameters_and_their_axes():
    assert {name: leaf.shape for name, leaf in flatten(_parameters(SPEC, WIDTH)).items()} == {
        "projection/kernel": (4, 6), "projection/bias": (6,), "fc1/kernel": (4, 3),
        "fc1/bias": (3,), "fc2/kernel": (3, 6), "fc2/bias": (6,),
    }  # fmt: skip


def test_defaults_are_those_of_the_published_code():
    """RDE's options: 0.3 of 192 patches or 75 words are 57 and 22; an embedding of 1024."""
    spec = TokenSelectionSpec()
    assert (spec.ratio, spec.feature_dim) == (0.3, 1024)
    for longest, selected in ((192, 57), (75, 22)):
        model = TokenSelection(TokenSelectionSpec(feature_dim=4), longest)
        shapes = jnp.zeros((1, 200, 8)), jnp.zeros((1, 200)), jnp.ones((1, 200), bool)
        program = str(jax.make_jaxpr(lambda *x, m=model: m.init(jax.random.key(0), *x))(*shapes))
        assert f"f32[1,{selected},8]" in program
        assert f"f32[1,{selected + 1},8]" not in program


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"ratio": 0.0}, "ratio=0.0 is not a finite number above 0"),
        ({"ratio": 1.5}, r"ratio=1.5 is not a fraction in \(0, 1\]"),
        ({"feature_dim": 0, "ratio": -1.0}, r"ratio=-1.0 .*feature_dim=0"),
    ],
)
def test_values_are_checked(values, fault):
    with pytest.raises(ConfigError, match=fault):
        TokenSelectionSpec(**values)


def test_half_precision_gives_float32():
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.normal(size=(3, 6, WIDTH)), jnp.bfloat16)
    attention, variables = jnp.full((3, 6), 0.1), {"params": _parameters(SPEC, WIDTH)}
    exact, half = (
        TokenSelection(SPEC, 6, dtype).apply(variables, tokens, attention, attention > 0)
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, exact, atol=0.1)
    assert np.abs(half - exact).max() > 1e-4


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2)])
def test_eight_devices_compute_what_one_does(sizes):
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.normal(size=(8, 6, WIDTH)), jnp.float32)
    attention = jnp.asarray(rng.uniform(size=(8, 6)), jnp.float32)
    model, mesh, inputs = TokenSelection(SPEC, 6), make_mesh(*sizes), (tokens, attention)
    candidates = jnp.arange(6)[None] > 0
    boxed = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs, candidates))["params"]
    for leaf in jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)):
        assert isinstance(leaf, nn.LogicallyPartitioned)
        assert len(leaf.names) == leaf.value.ndim
    params = _parameters(SPEC, WIDTH)
    placed = jax.device_put(params, parameter_shardings(boxed, mesh))
    with jax.set_mesh(mesh):
        given = jax.device_put(inputs, batch_sharding(mesh))
        step = jax.jit(lambda p, x: model.apply({"params": p}, *x, candidates))
        compiled = step.lower(placed, given).compile()
        have = compiled(placed, given)
    if sizes == (8, 1, 1):  # A selection within a row needs no other device's rows.
        assert not re.search(r"all-(gather|reduce|to-all)|collective-permute", compiled.as_text())
    want = _select(SPEC, 6, params, *inputs, candidates)
    np.testing.assert_allclose(have, want, atol=1e-5)


# --------------------------------------------------------------------- the attention of encoders

IMAGE = VisionSpec((12, 6), patch_size=3, hidden_size=16, layers=2, heads=4, mlp_size=16)
TEXT = ClipTextSpec(30, 16, layers=2, heads=4, mlp_size=16, max_positions=12, end_token=29)


def _random(model, *inputs):
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs, train=False))
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape), jnp.float32), nn.unbox(shapes)
    )


def _texts(lengths, length=12):
    rng = np.random.default_rng(1)
    text = rng.integers(1, 29, (len(lengths), length))
    text[np.arange(len(lengths)), np.array(lengths) - 1] = 29
    mask = np.arange(length)[None] < np.array(lengths)[:, None]
    return jnp.asarray(np.where(mask, text, 0)), jnp.asarray(mask)


@pytest.mark.parametrize("first", [None, 1, 3])
def test_the_image_encoder_gives_the_same_tokens_beside_the_attention(first):
    images = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (3, 12, 6, 3)), jnp.float32)
    model = VisionTransformer(IMAGE)
    variables = _random(model, images)
    plain = model.apply(variables, images, train=False, first=first)
    tokens, attention = model.apply(variables, images, train=False, first=first, attention=True)
    np.testing.assert_array_equal(tokens, plain)
    assert attention.shape == (3, 9)  # Over all tokens, however few are wanted.
    assert attention.min() > 0
    np.testing.assert_allclose(attention.sum(axis=1), 1.0, atol=1e-5)
    _, every = model.apply(variables, images, train=False, attention=True)
    np.testing.assert_allclose(attention, every, atol=1e-6)


def test_a_texts_end_attends_to_its_tokens_alone():
    lengths = [5, 2, 12, 8]
    text, mask = _texts(lengths)
    model = ClipText(TEXT)
    variables = _random(model, text, mask)
    tokens, attention = model.apply(variables, text, mask, train=False, attention=True)
    np.testing.assert_array_equal(tokens, model.apply(variables, text, mask, train=False))
    np.testing.assert_array_equal(np.asarray(attention) > 0, mask)
    np.testing.assert_allclose(attention.sum(axis=1), 1.0, atol=1e-5)
    # What follows the end is not heard, whatever the mask says, nor does the length matter.
    _, unmasked = model.apply(variables, text, mask | True, train=False, attention=True)
    np.testing.assert_allclose(unmasked, attention, atol=1e-6)
    shorter, _ = _texts(lengths[:1], 12)
    _, cut = model.apply(variables, shorter[:, :5], mask[:1, :5], train=False, attention=True)
    np.testing.assert_allclose(cut, attention[:1, :5], atol=1e-6)


def test_a_text_without_an_end_attends_to_nothing():
    text, mask = _texts([5, 6])
    model = ClipText(TEXT)
    variables = _random(model, text, mask)
    text = text.at[0, 4].set(3)
    _, attention = model.apply(variables, text, mask, train=False, attention=True)
    assert np.isnan(attention[0]).all()
    assert np.isfinite(attention[1]).all()


def test_attention_in_half_precision_is_float32():
    text, mask = _texts([5, 6])
    variables = _random(ClipText(TEXT), text, mask)
    exact, half = (
        ClipText(TEXT, dtype).apply(variables, text, mask, train=False, attention=True)[1]
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, exact, atol=0.05)
