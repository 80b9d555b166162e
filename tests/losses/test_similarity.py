"""What the losses share, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unipt_jax.losses import similarity


def test_cosines_have_the_first_argument_in_rows():
    first = jnp.asarray([[2.0, 0.0], [0.0, 0.0], [0.3, 0.4]])
    second = jnp.asarray([[0.0, 5.0], [1.0, 0.0], [3.0, 4.0]])
    have = similarity.cosines(first, second, jnp.ones(3, bool))
    np.testing.assert_allclose(have, [[0, 1, 0.6], [0, 0, 0], [0.8, 0.6, 1]], atol=1e-6)


def test_invalid_rows_are_exactly_0():
    rows = jnp.asarray([[1.0, 2.0], [np.nan, np.inf], [3.0, 4.0]])
    valid = jnp.asarray([True, False, True])
    np.testing.assert_array_equal(similarity.unit_rows(rows, valid)[1], [0, 0])
    have = np.asarray(similarity.cosines(rows, rows, valid))
    assert not have[1].any()
    assert not have[:, 1].any()


def test_a_row_of_zeros_has_a_finite_gradient():
    gradient = jax.grad(lambda x: similarity.unit_rows(x, jnp.ones(2, bool)).sum())(
        jnp.asarray([[0.0, 0.0], [3.0, 4.0]])
    )
    assert np.isfinite(gradient).all()


def test_pairs_are_of_valid_rows():
    identity = jnp.asarray([7, 7, 9, 7], jnp.int32)
    valid = jnp.asarray([True, True, True, False])
    same = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    other = [[0, 0, 1, 0], [0, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(similarity.same_identity(identity, valid), same)
    np.testing.assert_array_equal(similarity.other_identity(identity, valid), other)
    np.testing.assert_array_equal(
        similarity.valid_pairs(valid), np.logical_or(same, other).astype(bool)
    )


def test_diagonal_and_mean():
    matrix = jnp.arange(9.0).reshape(3, 3)
    np.testing.assert_array_equal(similarity.diagonal(matrix), [0, 4, 8])
    valid = jnp.asarray([True, False, True])
    assert similarity.valid_mean(jnp.asarray([1.0, np.nan, 4.0]), valid) == 2.5
    assert similarity.valid_mean(jnp.asarray([1.0, np.nan, 4.0]), jnp.zeros(3, bool)) == 0


def test_accuracies_count_positives_on_top():
    # Image 0 takes text 1, of its identity; image 1 takes text 2; image 2 its own. Text 0 takes
    # image 1, of its identity; text 1 takes image 0; text 2 takes image 1.
    matrix = jnp.asarray([[0.1, 0.8, 0.2, 0.9], [0.3, 0.4, 0.7, 0.9], [0.2, 0.1, 0.6, 0.9]])
    matrix = jnp.concatenate([matrix, jnp.ones((1, 4))])
    positive = similarity.same_identity(
        jnp.asarray([5, 5, 6, 6], jnp.int32), valid := jnp.asarray([True, True, True, False])
    )
    have = similarity.accuracies(matrix, positive, valid)
    assert have["accuracy/image_to_text"] == pytest.approx(2 / 3)
    assert have["accuracy/text_to_image"] == pytest.approx(2 / 3)

    # Only its own partner: image 2 alone, and no text.
    have = similarity.accuracies(matrix, jnp.eye(4, dtype=bool), valid)
    assert have["accuracy/image_to_text"] == pytest.approx(1 / 3)
    assert have["accuracy/text_to_image"] == 0
