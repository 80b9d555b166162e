"""The margin losses by hand and by an enumeration of what may be drawn."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unipt_jax.losses.ranking import draw_semi_hard, semi_hard_ranking, tal

_ranking = jax.jit(semi_hard_ranking, static_argnames="margin")
_draw = jax.jit(draw_semi_hard, static_argnames="margin")
_tal = jax.jit(tal, static_argnames=("temperature", "margin"))


def _embeddings(similarity):
    """Rows whose cosines are the given ones; a text's unused length lies on an axis of its own."""
    similarity = np.asarray(similarity, np.float32)
    size = len(similarity)
    rest = np.sqrt(1 - np.square(similarity).sum(axis=0))
    image = np.concatenate([np.eye(size), np.zeros((size, size))], axis=1)
    text = np.concatenate([similarity.T, np.diag(rest)], axis=1)
    return jnp.asarray(3 * image, jnp.float32), jnp.asarray(0.5 * text, jnp.float32)


def _ids(*identity):
    return jnp.asarray(identity, jnp.int32), jnp.ones(len(identity), bool)


# ---------------------------------------------------------------------------- semi-hard ranking


# Image 0, 0.5 with its own: text 1 is harder, text 2 is 0.1 below its own, text 3 is 0.4 below, and
# text 4, which would do, is of its identity; so is text 0 for image 4. Image 3's text 0 is 0.25
# below its own, text 0's image 3 is 0.15 below, text 2's image 0 is 0.1 below. To image 1 and to
# text 1, all are as near as their own, or nearer. The rest is 0.5 below and more.
SIMILARITY = [
    [0.50, 0.60, 0.40, 0.10, 0.45],
    [0.00, 0.00, 0.00, 0.00, 0.00],
    [0.00, 0.00, 0.50, 0.00, 0.00],
    [0.35, 0.00, 0.00, 0.60, 0.00],
    [0.60, 0.00, 0.00, 0.00, 0.75],
]


def test_only_semi_hard_negatives_count(key):
    given = (*_embeddings(SIMILARITY), *_ids(0, 1, 2, 3, 0), key)
    have, metrics = _ranking(*given)
    assert have == pytest.approx((0.2 - 0.1) + (0.2 - 0.15) + (0.2 - 0.1), abs=1e-6)
    assert metrics["active/image_to_text"] == pytest.approx(1 / 5)
    assert metrics["active/text_to_image"] == pytest.approx(2 / 5)

    have, metrics = _ranking(*given, margin=0.3)
    image, text = (0.3 - 0.1) + (0.3 - 0.25), (0.3 - 0.15) + (0.3 - 0.1)
    assert have == pytest.approx(image + text, abs=1e-6)
    assert metrics["active/image_to_text"] == pytest.approx(2 / 5)


def test_each_loss_is_one_choice_of_semi_hard_negatives():
    rng = np.random.default_rng(6)
    image = rng.normal(size=(4, 3)).astype(np.float32)
    text = image + 0.5 * rng.normal(size=(4, 3)).astype(np.float32)
    identity = np.array([0, 1, 0, 2])
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text)]
    similarity = unit[0] @ unit[1].T

    choices = []
    for matrix in (similarity, similarity.T):
        for row in range(4):
            gaps = [
                matrix[row, row] - matrix[row, column]
                for column in range(4)
                if identity[column] != identity[row]
            ]
            choices.append([0.9 - gap for gap in gaps if 0 < gap < 0.9] or [0.0])
    possible = sorted(sum(choice) for choice in itertools.product(*choices))
    assert len(possible) == 16

    given = (jnp.asarray(image), jnp.asarray(text), *_ids(*identity))
    draws = jax.vmap(lambda key: semi_hard_ranking(*given, key, margin=0.9)[0])
    losses = jax.jit(draws)(jax.random.split(jax.random.key(1), 64))
    nearest = np.abs(np.asarray(losses)[:, None] - np.asarray(possible)[None]).min(axis=1)
    assert nearest.max() < 1e-5
    assert len(np.unique(np.round(losses, 4))) > 10


def test_draws_are_uniform_over_semi_hard_negatives():
    similarity = np.zeros((6, 6), np.float32)
    similarity[0] = 0.5, 0.4, 0.4, 0.6, 0.45, 0.1
    similarity[5] = 0.4, 0.4, 0.4, 0.4, 0.4, 0.5
    similarity, negative = jnp.asarray(similarity), jnp.asarray(~np.eye(6, dtype=bool))
    draws = jax.vmap(
        lambda key: draw_semi_hard(
            jnp.diagonal(similarity), similarity, negative, jax.random.split(key, 6), margin=0.2
        )
    )
    drawn, found = map(np.asarray, jax.jit(draws)(jax.random.split(jax.random.key(0), 3000)))
    np.testing.assert_array_equal(found[0], [True, False, False, False, False, True])
    np.testing.assert_array_equal(drawn[:, 1:5], 0)
    counts = np.bincount(drawn[:, 0], minlength=6) / 3000
    np.testing.assert_allclose(counts, [0, 1 / 3, 1 / 3, 0, 1 / 3, 0], atol=0.04)
    counts = np.bincount(drawn[:, 5], minlength=6) / 3000
    np.testing.assert_allclose(counts, [0.2, 0.2, 0.2, 0.2, 0.2, 0], atol=0.04)
    # Rows draw for themselves: all pairs of choices come up.
    assert len(np.unique(drawn[:, [0, 5]], axis=0)) == 15


def test_semi_hard_is_strict():
    # Exactly as similar as the positive, and exactly the margin below it.
    similarity = jnp.asarray([[0.5, 0.5, 0.25], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    negative = jnp.asarray(~np.eye(3, dtype=bool))
    for margin, want in ((0.25, False), (0.2501, True)):
        keys = jax.random.split(jax.random.key(0), 3)
        _, found = _draw(jnp.diagonal(similarity), similarity, negative, keys, margin=margin)
        assert found.tolist() == [want, False, False]


def test_one_identity_has_no_negatives(key):
    have, metrics = _ranking(*_embeddings(SIMILARITY), *_ids(3, 3, 3, 3, 3), key)
    assert have == 0
    assert set(map(float, metrics.values())) == {0.0}


# ---------------------------------------------------------------------------- triplet alignment


def test_tal_of_two_pairs():
    # Both texts are the first image's: cosines [[1, 1], [0, 0]].
    image = jnp.eye(2)
    text = jnp.asarray([[1.0, 0.0], [1.0, 0.0]])
    have, metrics = _tal(image, text, *_ids(0, 1))
    # One negative is its own smooth maximum. Images: margin - 1 + 1 and margin - 0 + 0; texts:
    # margin - 1 + 0 < 0 and margin - 0 + 1.
    assert have == pytest.approx(0.1 + 0.1 + 1.1, abs=1e-6)
    assert metrics == {"active/image_to_text": 1.0, "active/text_to_image": 0.5}


def test_tal_of_one_identity_is_zero():
    loss = lambda image, text: tal(image, text, *_ids(3, 3))[0]  # noqa: E731
    have, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(*_embeddings(np.eye(2) / 2))
    assert have == 0
    assert all(not np.asarray(gradient).any() for gradient in gradients)


def test_tal_weighs_positives_by_their_similarity():
    similarity = np.array([[0.2, 0.5, 0.1], [0.2, 0.5, 0.1], [0.0, 0.0, 0.9]])
    have, _ = _tal(*_embeddings(similarity), *_ids(0, 0, 1), temperature=0.1, margin=0.6)
    # Images 0 and 1: positives 0.2 and 0.5 with weights exp(2) and exp(5); the negative is 0.1.
    weights = np.exp([2.0, 5.0]) / np.exp([2.0, 5.0]).sum()
    image = 2 * (0.6 - weights @ [0.2, 0.5] + 0.1)
    # Image 2 (0.9 against twice 0) is far enough: 0.6 - 0.9 + 0.1 log(2) < 0.
    # Texts 0 and 1: two equal positives, one negative at 0. Text 2: 0.9 against twice 0.1.
    text = (0.6 - 0.2) + (0.6 - 0.5)
    assert have == pytest.approx(image + text, abs=1e-5)


def test_tal_takes_a_smooth_maximum_of_negatives():
    similarity = np.full((4, 4), 0.3, np.float32)
    have, _ = _tal(*_embeddings(similarity), *_ids(0, 1, 2, 3))
    # Three equal negatives lie temperature * log(3) above one, for each of eight anchors.
    assert have == pytest.approx(8 * (0.1 + 0.015 * np.log(3)), abs=1e-5)
