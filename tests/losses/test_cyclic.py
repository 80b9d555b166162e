"""The cyclic loss by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unipt_jax.losses.cyclic import c_itc

_c_itc = jax.jit(c_itc, static_argnames=("in_modal_weight", "cross_modal_weight"))


def test_two_pairs():
    image = 7 * jnp.eye(2)
    text = jnp.asarray([[0.6, 0.8], [1.2, 1.6]])
    have, metrics = _c_itc(image, text, jnp.ones(2, bool))
    # Images are apart and texts the same: off the diagonal, 0 against 1.
    assert metrics["cyclic/in_modal"] == pytest.approx(2 / 4, rel=1e-6)
    # Cosines [[0.6, 0.6], [0.8, 0.8]].
    assert metrics["cyclic/cross_modal"] == pytest.approx(2 * 0.2**2 / 4, rel=1e-5)
    assert have == pytest.approx(0.25 * 0.5 + 0.25 * 0.02, rel=1e-5)

    have, _ = _c_itc(image, text, jnp.ones(2, bool), in_modal_weight=2.0, cross_modal_weight=3.0)
    assert have == pytest.approx(2 * 0.5 + 3 * 0.02, rel=1e-5)


def test_sides_that_mirror_each_other_cost_nothing():
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0].astype(np.float32)
    valid = jnp.ones(5, bool)
    _, metrics = _c_itc(image, image @ turn, valid)
    assert metrics["cyclic/in_modal"] == pytest.approx(0, abs=1e-10)
    assert metrics["cyclic/cross_modal"] > 1e-3
    have, _ = _c_itc(image, image, valid)
    assert have == pytest.approx(0, abs=1e-10)
