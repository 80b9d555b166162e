"""The pairwise sigmoid loss by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from unipt_jax.losses.sigmoid import pairwise_sigmoid


def _loss(image, text, scale, bias, identity=None):
    if identity is not None:
        identity = jnp.asarray(identity, jnp.int32)
    valid = jnp.ones(len(image), bool)
    return pairwise_sigmoid(
        image, text, jnp.float32(scale), jnp.float32(bias), valid, identity=identity
    )


def test_two_pairs():
    # Logits: 2 - 0.5 on the diagonal, -0.5 elsewhere.
    have, metrics = _loss(jnp.eye(2), 3 * jnp.eye(2), 2.0, -0.5)
    want = (2 * np.log1p(np.exp(-1.5)) + 2 * np.log1p(np.exp(-0.5))) / 2
    assert have == pytest.approx(want, rel=1e-6)
    assert metrics == {"accuracy/image_to_text": 1.0, "accuracy/text_to_image": 1.0}


def test_pairs_of_one_identity_are_positive():
    image, text = jnp.eye(2), jnp.eye(2)[::-1]
    # Logits: -0.5 on the diagonal, 1.5 elsewhere.
    have, metrics = _loss(image, text, 2.0, -0.5, [3, 3])
    want = (2 * np.log1p(np.exp(0.5)) + 2 * np.log1p(np.exp(-1.5))) / 2
    assert have == pytest.approx(want, rel=1e-6)
    assert metrics == {"accuracy/image_to_text": 1.0, "accuracy/text_to_image": 1.0}

    apart, metrics = _loss(image, text, 2.0, -0.5, [3, 4])
    want = (2 * np.log1p(np.exp(0.5)) + 2 * np.log1p(np.exp(1.5))) / 2
    assert apart == pytest.approx(want, rel=1e-6)
    assert apart == _loss(image, text, 2.0, -0.5)[0]
    assert metrics == {"accuracy/image_to_text": 0.0, "accuracy/text_to_image": 0.0}
