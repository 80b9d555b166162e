"""The identity loss by hand; tests/parity compares it with torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unipt_jax.losses.identity import identity_cross_entropy

_jitted = jax.jit(identity_cross_entropy)
_gradients = jax.jit(
    jax.grad(lambda *arguments: identity_cross_entropy(*arguments)[0], argnums=(0, 1))
)


def _arguments(image, text, identity, valid=None):
    valid = np.ones(len(identity), bool) if valid is None else np.asarray(valid, bool)
    return tuple(map(jnp.asarray, (image, text, np.asarray(identity, np.int32), valid)))


def test_both_sides_are_summed():
    # Images give each of four classes a quarter; texts give their identity a half and a quarter.
    image = np.zeros((2, 4), np.float32)
    text = np.log(np.array([[1, 3, 1, 1], [1, 1, 1, 1]], np.float32))
    have, _ = _jitted(*_arguments(image, text, [1, 3]))
    assert have == pytest.approx(np.log(4) + (np.log(2) + np.log(4)) / 2)


def test_accuracies_are_each_side_its_own():
    image = np.eye(3, dtype=np.float32)
    text = np.eye(3, dtype=np.float32)[[0, 0, 0]]
    _, metrics = _jitted(*_arguments(image, text, [0, 1, 2]))
    assert metrics == {
        "accuracy/image_identity": 1.0,
        "accuracy/text_identity": pytest.approx(1 / 3),
    }


def test_invalid_rows_might_as_well_be_absent():
    rng = np.random.default_rng(0)
    image, text = rng.normal(size=(2, 6, 4)).astype(np.float32)
    identity, valid = np.array([1, 0, 2, -1, 3, 99]), np.array([1, 1, 1, 0, 1, 0], bool)
    want, want_metrics = _jitted(*_arguments(image[valid], text[valid], identity[valid]))
    image[~valid], text[~valid] = np.nan, np.inf
    given = _arguments(image, text, identity, valid)
    have, metrics = _jitted(*given)
    assert have == pytest.approx(float(want), rel=1e-6)
    assert metrics == pytest.approx({k: float(v) for k, v in want_metrics.items()})
    for gradient in _gradients(*given):
        assert np.isfinite(gradient).all()
        assert np.asarray(gradient)[valid].any()
        assert not np.asarray(gradient)[~valid].any()


def test_without_a_valid_row_all_is_zero():
    logits = np.ones((3, 4), np.float32)
    given = _arguments(logits, logits, [0, 1, 2], [0, 0, 0])
    have, metrics = _jitted(*given)
    assert have == 0
    assert all(value == 0 for value in metrics.values())
    assert all(not np.asarray(gradient).any() for gradient in _gradients(*given))


def test_order_does_not_matter():
    rng = np.random.default_rng(0)
    image, text = rng.normal(size=(2, 6, 4)).astype(np.float32)
    identity, order = np.array([1, 0, 2, 3, 3, 1]), np.array([3, 5, 0, 1, 4, 2])
    want, _ = _jitted(*_arguments(image, text, identity))
    have, _ = _jitted(*_arguments(image[order], text[order], identity[order]))
    assert have == pytest.approx(float(want), rel=1e-6)
    # Texts belong to the same rows as images do.
    other, _ = _jitted(*_arguments(image, text[order], identity))
    assert abs(other - want) > 1e-2


def test_extreme_bfloat16_logits_are_summed_in_float32():
    image = jnp.asarray([[1e30, -1e30, 0.0], [-1e30, 0.0, 1e30]], jnp.bfloat16)
    text = jnp.asarray([[0.5, 0.25, 0.0], [0.0, 0.25, 0.5]], jnp.bfloat16)
    identity, valid = jnp.asarray([0, 0], jnp.int32), jnp.ones(2, bool)
    with jax.numpy_dtype_promotion("strict"):
        have, _ = _jitted(image, text, identity, valid)
        gradients = _gradients(image, text, identity, valid)
    assert have.dtype == jnp.float32
    # The second image is off by 2e30; the rest is nothing beside it.
    assert have == pytest.approx(1e30, rel=1e-2)
    assert all(np.isfinite(gradient.astype(jnp.float32)).all() for gradient in gradients)
