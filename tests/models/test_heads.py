"""Pooling and the masked-language-model head, by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from unipt_jax.models.heads import EmbeddingHead, MlmHead


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


def test_the_mlm_decoder_runs_at_the_positions_alone(key):
    tokens, table = jnp.zeros((2, 11, 8)), jnp.zeros((23, 8))
    positions = jnp.zeros((2, 3), jnp.int32)
    head = MlmHead(1e-12, "gelu", jnp.bfloat16)
    variables = head.init(key, tokens, positions, table)
    program = str(jax.make_jaxpr(head.apply)(variables, tokens, positions, table))
    assert "[2,3,23]" in program
    assert "[2,11,23]" not in program
    assert head.apply(variables, tokens, positions, table).dtype == jnp.float32
