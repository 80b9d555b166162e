"""Augmentations of images."""

import numpy as np

from unipt_jax.data import transforms


def test_flip_mirrors_columns_and_keeps_rows():
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    flipped = transforms.random_flip(image, 1.0, np.random.default_rng(0))
    assert flipped[0, 0].tolist() == [6, 7, 8] and flipped[1, 2].tolist() == [9, 10, 11]
    same = transforms.random_flip(image, 0.0, np.random.default_rng(0))
    assert (same == image).all()


def test_flip_happens_as_often_as_asked():
    image = np.arange(6, dtype=np.uint8).reshape(1, 2, 3)
    rng = np.random.default_rng(0)
    flips = sum(int(transforms.random_flip(image, 0.3, rng)[0, 0, 0] == 3) for _ in range(4000))
    assert abs(flips / 4000 - 0.3) < 0.03
