"""Distribution matching by hand and against InfoNCE."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unipt_jax.losses.contrastive import info_nce
from unipt_jax.losses.matching import n_itc, r_itc, sdm

_sdm = jax.jit(sdm, static_argnames=("temperature", "epsilon"))
_r_itc = jax.jit(r_itc)
_n_itc = jax.jit(n_itc)


def _embeddings(batch=6, width=4):
    rng = np.random.default_rng(0)
    return tuple(map(jnp.asarray, rng.normal(size=(2, batch, width)).astype(np.float32)))


def _ids(*identity):
    return jnp.asarray(identity, jnp.int32), jnp.ones(len(identity), bool)


def test_sdm_of_two_pairs():
    have, metrics = _sdm(jnp.eye(2), 5 * jnp.eye(2), *_ids(4, 9), temperature=1.0)
    own, other = np.exp([1.0, 0.0]) / np.exp([1.0, 0.0]).sum()
    # Four anchors, two a direction, all alike; no averaging over the directions.
    row = own * (np.log(own) - np.log(1.0)) + other * (np.log(other) - np.log(1e-8))
    assert have == pytest.approx(2 * row, rel=1e-6)
    assert metrics == {"accuracy/image_to_text": 1.0, "accuracy/text_to_image": 1.0}


def test_sdm_wants_each_row_of_an_identity_alike():
    image = jnp.asarray([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    # At this temperature the third row is out of the first two's sight.
    have, _ = _sdm(image, image, *_ids(0, 0, 1))
    assert have == pytest.approx(0, abs=1e-6)
    apart, _ = _sdm(image, image, *_ids(0, 2, 1))
    # Half of each softmax on a row of another identity, whose target is epsilon: two of three rows.
    row = 0.5 * (np.log(0.5) - np.log(1.0)) + 0.5 * (np.log(0.5) - np.log(1e-8))
    assert apart == pytest.approx(2 * 2 / 3 * row, rel=1e-5)


def test_sdm_has_both_directions():
    # All texts are the first image's: each image is as near to both texts, each text sees image 0.
    image, text = jnp.eye(2), jnp.asarray([[1.0, 0.0], [1.0, 0.0]])
    have, metrics = _sdm(image, text, *_ids(0, 1))
    image_row = 0.5 * (np.log(0.5) - np.log(1.0)) + 0.5 * (np.log(0.5) - np.log(1e-8))
    text_rows = [0.0, -np.log(1e-8)]
    assert have == pytest.approx(image_row + np.mean(text_rows), rel=1e-5)
    assert metrics == {"accuracy/image_to_text": 0.5, "accuracy/text_to_image": 0.5}


def test_r_itc_is_half_of_sdm_with_its_epsilon():
    image, text = _embeddings()
    ids = _ids(0, 1, 0, 2, 1, 3)
    have, metrics = _r_itc(image, text, jnp.float32(50.0), *ids)
    want, wanted = _sdm(image, text, *ids, epsilon=1e-2)
    assert have == pytest.approx(float(want) / 2, rel=1e-6)
    assert metrics == wanted


def test_r_itc_of_two_pairs():
    have, _ = _r_itc(jnp.eye(2), jnp.eye(2), jnp.float32(1.0), *_ids(4, 9))
    own, other = np.exp([1.0, 0.0]) / np.exp([1.0, 0.0]).sum()
    want = own * (np.log(own) - np.log(1.01)) + other * (np.log(other) - np.log(0.01))
    assert have == pytest.approx(want, rel=1e-6)


def test_n_itc_with_hard_labels_and_unique_identities_is_info_nce():
    image, text = _embeddings()
    identity, valid = _ids(*range(6))
    scale = jnp.float32(7.0)
    hard = lambda i, t, s: n_itc(i, t, s, identity, valid, soft_weight=0.0)  # noqa: E731
    plain = lambda i, t, s: info_nce(i, t, s, valid)  # noqa: E731
    ((have, metrics), gradients), ((want, wanted), references) = (
        jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(image, text, scale)
        for loss in (hard, plain)
    )
    assert have == pytest.approx(float(want), rel=1e-6)
    assert metrics == wanted
    for gradient, reference in zip(gradients, references, strict=True):
        np.testing.assert_allclose(gradient, reference, atol=1e-6)


def test_n_itc_of_two_pairs():
    have, _ = _n_itc(jnp.eye(2), jnp.eye(2), jnp.float32(1.0), *_ids(4, 9))
    own, other = np.exp([1.0, 0.0]) / np.exp([1.0, 0.0]).sum()
    targets = 0.5 * own + 0.5, 0.5 * other
    assert have == pytest.approx(-targets[0] * np.log(own) - targets[1] * np.log(other), rel=1e-6)
    # One identity: half the target is uniform.
    have, _ = _n_itc(jnp.eye(2), jnp.eye(2), jnp.float32(1.0), *_ids(4, 4))
    targets = 0.5 * own + 0.25, 0.5 * other + 0.25
    assert have == pytest.approx(-targets[0] * np.log(own) - targets[1] * np.log(other), rel=1e-6)


def test_n_itc_that_follows_itself_stands_still():
    image, text = _embeddings()
    ids = _ids(0, 1, 0, 2, 1, 3)
    loss = lambda i, t, w: n_itc(i, t, jnp.float32(7.0), *ids, soft_weight=w)[0]  # noqa: E731
    gradient = jax.jit(jax.grad(loss, (0, 1)))
    for still in gradient(image, text, jnp.float32(1.0)):
        assert np.abs(still).max() < 1e-6
    # In between, what is left is the hard labels' part.
    mixed, hard = (gradient(image, text, jnp.float32(weight))[0] for weight in (0.25, 0.0))
    np.testing.assert_allclose(mixed, 0.75 * hard, atol=1e-6)
