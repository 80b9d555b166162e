"""Pooling, classifiers and the masked-language-model head, by hand."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unipt_jax.models.heads import ClassHead, EmbeddingHead, IdentityHead, MlmHead, unit_rows


def _identity(width):
    return {"params": {"projection": {"kernel": jnp.eye(width), "bias": jnp.zeros(width)}}}


TOKENS = jnp.array([[[1.0, -5.0], [0.0, -3.0], [9.0, 9.0]], [[7.0, 7.0], [8.0, 6.0], [1.0, 2.0]]])


def test_the_maximum_is_over_tokens():
    have = EmbeddingHead(2).apply(_identity(2), TOKENS, None)
    np.testing.assert_array_equal(have, [[9.0, 9.0], [8.0, 7.0]])


def test_masked_tokens_take_no_part():
    mask = jnp.array([[True, True, False], [False, False, False]])
    have = EmbeddingHead(2).apply(_identity(2), TOKENS, mask)
    # The first stays negative: masked tokens are no zeros. The second has no token at all.
    np.testing.assert_array_equal(have, [[1.0, -3.0], [0.0, 0.0]])

    gradient = jax.grad(lambda x: EmbeddingHead(2).apply(_identity(2), x, mask).sum())(TOKENS)
    np.testing.assert_array_equal(
        gradient, [[[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], [[0.0, 0.0]] * 3]
    )


def test_the_projection_comes_before_the_maximum():
    variables = {"params": {"projection": {"kernel": -jnp.eye(2), "bias": jnp.array([1.0, 0.0])}}}
    have = EmbeddingHead(2).apply(variables, TOKENS, None)
    np.testing.assert_array_equal(have, [[1.0, 5.0], [0.0, -2.0]])


def test_embeddings_are_float32():
    have = EmbeddingHead(2, jnp.bfloat16).apply(_identity(2), TOKENS.astype(jnp.bfloat16), None)
    assert have.dtype == jnp.float32


def test_one_token_is_mapped_without_a_bias(key):
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(3, 4, 5)).astype(np.float32)
    positions = jnp.array([3, 0, 2])
    fresh = ClassHead(6).init(key, jnp.asarray(tokens), positions)
    assert set(fresh["params"]["projection"]) == {"kernel"}
    kernel = rng.normal(size=(5, 6)).astype(np.float32)
    variables = {"params": {"projection": {"kernel": kernel}}}
    head = functools.partial(ClassHead(6).apply, variables, position=positions)
    want = np.stack([tokens[0, 3], tokens[1, 0], tokens[2, 2]]) @ kernel
    np.testing.assert_allclose(head(jnp.asarray(tokens)), want, atol=1e-5)

    gradient = np.asarray(jax.grad(lambda x: head(x).sum())(jnp.asarray(tokens)))
    touched = np.abs(gradient).max(axis=2) > 0
    np.testing.assert_array_equal(touched, np.arange(4)[None] == np.array([[3], [0], [2]]))


def test_a_token_beyond_the_text_is_not_a_number():
    """Where CLIP's text has no end token; JAX's usual lookup would give the last one."""
    variables = {"params": {"projection": {"kernel": jnp.eye(2)}}}
    have = np.asarray(ClassHead(2).apply(variables, TOKENS, jnp.array([3, 2])))
    assert np.isnan(have[0]).all()
    np.testing.assert_array_equal(have[1], [1.0, 2.0])


def test_class_embeddings_are_float32():
    variables = {"params": {"projection": {"kernel": jnp.eye(2)}}}
    tokens = TOKENS.astype(jnp.bfloat16)
    assert ClassHead(2, jnp.bfloat16).apply(variables, tokens, jnp.array([0, 1])).dtype == (
        jnp.float32
    )


def test_every_token_is_mapped_as_the_one_is():
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3)), jnp.float32)
    head = ClassHead(3, jnp.bfloat16).bind({"params": {"projection": {"kernel": kernel}}})
    have = head.project(TOKENS)
    assert (have.shape, have.dtype) == ((2, 3, 3), jnp.float32)
    for place in range(3):
        one = head(TOKENS, jnp.array([place, place]))
        np.testing.assert_allclose(have[:, place], one, atol=1e-6)


def test_unit_rows_of_any_shape_and_of_nothing():
    rows = jnp.array([[[3.0, 4.0], [0.0, 0.0]], [[-2.0, 0.0], [1e-9, 0.0]]])
    want = [[[0.6, 0.8], [0.0, 0.0]], [[-1.0, 0.0], [1.0, 0.0]]]
    np.testing.assert_allclose(unit_rows(rows), want, atol=1e-6)
    assert np.isfinite(jax.grad(lambda x: unit_rows(x).sum())(rows)).all()


def test_one_classifier_for_all_rows():
    params = {"kernel": jnp.array([[1.0, 2.0, 0.0], [0.0, -1.0, 3.0]]), "bias": jnp.arange(3.0)}
    have = IdentityHead(3).apply({"params": params}, jnp.array([[1.0, 0.0], [2.0, -1.0]]))
    np.testing.assert_allclose(have, [[1.0, 3.0, 2.0], [2.0, 6.0, -1.0]])


def test_a_classifier_for_each_part():
    rng = np.random.default_rng(0)
    parts, kernel = rng.normal(size=(4, 3, 5)), rng.normal(size=(3, 5, 6))
    bias = rng.normal(size=(3, 6))
    want = np.stack([parts[:, q] @ kernel[q] + bias[q] for q in range(3)], axis=1)
    params = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}
    have = IdentityHead(6).apply({"params": params}, jnp.asarray(parts, jnp.float32))
    np.testing.assert_allclose(have, want, atol=1e-5)


@pytest.mark.parametrize("parts", [(), (3,)])
def test_classifiers_start_as_published(parts, key):
    """IRRA's and LGUR's: N(0, 0.001), and no bias."""
    features = jnp.zeros((2, *parts, 64))
    boxed = IdentityHead(100).init(key, features)["params"]
    names = {name: leaf.names for name, leaf in boxed.items()}
    whole = (None,) * len(parts)
    assert names == {"kernel": (*whole, "embed", "vocab"), "bias": (*whole, "vocab")}
    params = nn.unbox(boxed)
    assert params["kernel"].shape == (*parts, 64, 100)
    assert params["bias"].shape == (*parts, 100)
    np.testing.assert_allclose(params["kernel"].std(), 1e-3, rtol=0.05)
    np.testing.assert_array_equal(params["bias"], 0.0)


@pytest.mark.parametrize("parts", [(), (3,)])
def test_logits_of_identities_are_float32(parts, key):
    features = jnp.ones((2, *parts, 8), jnp.bfloat16)
    head = IdentityHead(5, jnp.bfloat16)
    params = nn.unbox(head.init(key, features))
    assert head.apply(params, features).dtype == jnp.float32
    gradients = jax.grad(lambda p: head.apply(p, features)[..., 0].sum())(params)["params"]
    assert (gradients["kernel"].dtype, gradients["bias"].dtype) == (jnp.float32, jnp.float32)
    np.testing.assert_array_equal(gradients["kernel"][..., 0], 2.0)


def test_the_mlm_decoder_runs_at_the_positions_alone(key):
    tokens, table = jnp.zeros((2, 11, 8)), jnp.zeros((23, 8))
    positions = jnp.zeros((2, 3), jnp.int32)
    head = MlmHead(1e-12, "gelu", jnp.bfloat16)
    variables = head.init(key, tokens, positions, table)
    program = str(jax.make_jaxpr(head.apply)(variables, tokens, positions, table))
    assert "[2,3,23]" in program
    assert "[2,11,23]" not in program
    assert head.apply(variables, tokens, positions, table).dtype == jnp.float32
