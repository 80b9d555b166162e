"""Augmentations of decoded images: `uint8[H, W, 3]` and a generator in, `uint8[H, W, 3]` out."""

import numpy as np
from jaxtyping import UInt8


def random_flip(
    image: UInt8[np.ndarray, "H W 3"], probability: float, rng: np.random.Generator
) -> UInt8[np.ndarray, "H W 3"]:
    """Mirrors left and right with the given probability."""
    return image[:, ::-1] if rng.random() < probability else image
