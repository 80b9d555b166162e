"""Augmentations of decoded images: `uint8[H, W, 3]` and a generator in, `uint8[H, W, 3]` out.

None of them writes to its input. `fill` is the RGB colour, 0..255, that takes the place of pixels
that are not there: the model's mean pixel becomes 0 once it is normalised.
"""

import math

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageEnhance

from unipt_jax.data import images

Fill = tuple[int, int, int]

_ATTEMPTS = 10  # torchvision's, to find a rectangle that fits


def random_flip(
    image: UInt8[np.ndarray, "H W 3"],
    probability: float,
    rng: np.random.Generator,
    out: UInt8[np.ndarray, "H W 3"] | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """Mirrors left and right with the given probability.

    Returns `out`, or without it an array which may be `image` itself.
    """
    if rng.random() >= probability:
        if out is None:
            return image
        out[...] = image
        return out
    out = np.empty_like(image) if out is None else out
    for channel in range(image.shape[2]):  # Several times faster than all of them at once.
        out[..., channel] = image[:, ::-1, channel]
    return out


def pad_and_crop(
    image: UInt8[np.ndarray, "H W 3"], padding: int, fill: Fill, rng: np.random.Generator
) -> UInt8[np.ndarray, "H W 3"]:
    """Shifts by at most `padding` pixels down or up and right or left, each shift alike likely.

    The image is padded on all sides and cropped back to its size. IRRA (CVPR 2023) pads 10, black.
    """
    height, width, _ = image.shape
    padded = np.empty((height + 2 * padding, width + 2 * padding, 3), np.uint8)
    padded[:] = fill
    padded[padding : padding + height, padding : padding + width] = image
    top, left = rng.integers(2 * padding + 1, size=2)
    return padded[top : top + height, left : left + width]


def random_erase(
    image: UInt8[np.ndarray, "H W 3"],
    probability: float,
    fill: Fill,
    rng: np.random.Generator,
    *,
    area: tuple[float, float] = (0.02, 0.4),
    aspect: tuple[float, float] = (0.3, 3.3),
) -> UInt8[np.ndarray, "H W 3"]:
    """Fills one rectangle with the given probability (Zhong et al., AAAI 2020).

    The rectangle's share of the image is uniform in `area` and its height over its width
    log-uniform in `aspect`, both before rounding to pixels; one that is not smaller than the image
    both ways is drawn again, and after ten the image stays as it is: torchvision's rule. The
    default ranges are IRRA's (CVPR 2023), whose probability is 0.5.
    """
    if rng.random() >= probability:
        return image
    height, width, _ = image.shape
    for _ in range(_ATTEMPTS):
        size = height * width * rng.uniform(*area)
        ratio = _log_uniform(aspect, rng)
        rows, columns = round(math.sqrt(size * ratio)), round(math.sqrt(size / ratio))
        if rows < height and columns < width:
            top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
            erased = image.copy()
            erased[top : top + rows, left : left + columns] = fill
            return erased
    return image


def color_jitter(
    image: UInt8[np.ndarray, "H W 3"], strength: float, rng: np.random.Generator
) -> UInt8[np.ndarray, "H W 3"]:
    """Changes brightness, contrast and saturation, in random order.

    Each is blended with its opposite (black, the mean grey, the grey image) by a factor that is
    uniform in 1 - `strength`..1 + `strength`.
    """
    picture = Image.fromarray(image)
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for choice in rng.permutation(len(enhancers)):
        picture = enhancers[choice](picture).enhance(rng.uniform(1 - strength, 1 + strength))
    return np.array(picture)


def random_rotation(
    image: UInt8[np.ndarray, "H W 3"], degrees: float, fill: Fill, rng: np.random.Generator
) -> UInt8[np.ndarray, "H W 3"]:
    """Turns about the centre by an angle uniform in -`degrees`..`degrees`; nearest pixels."""
    angle = rng.uniform(-degrees, degrees)
    return np.array(Image.fromarray(image).rotate(angle, fillcolor=fill))


def random_resized_crop(
    image: UInt8[np.ndarray, "H W 3"], area: tuple[float, float], rng: np.random.Generator
) -> UInt8[np.ndarray, "H W 3"]:
    """Cuts out a rectangle and resizes it to the image's own size.

    The rectangle's share of the image is uniform in `area`. Its aspect ratio is log-uniform in
    3/4..4/3 of the image's own: torchvision's rule for a square image. (There the range is of the
    rectangle itself, which in a tall image no large one has.) After ten that are larger than the
    image it stays as it is.
    """
    height, width, _ = image.shape
    for _ in range(_ATTEMPTS):
        share = rng.uniform(*area)
        ratio = _log_uniform((3 / 4, 4 / 3), rng)
        rows, columns = (
            round(height * math.sqrt(share / ratio)),
            round(width * math.sqrt(share * ratio)),
        )
        if 0 < rows <= height and 0 < columns <= width:
            top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
            return images.resize(image[top : top + rows, left : left + columns], height, width)
    return image


def random_grayscale(
    image: UInt8[np.ndarray, "H W 3"], probability: float, rng: np.random.Generator
) -> UInt8[np.ndarray, "H W 3"]:
    """Takes the colour away with the given probability, leaving ITU-R 601's luma three times."""
    if rng.random() >= probability:
        return image
    return np.array(Image.fromarray(image).convert("L").convert("RGB"))


def random_pool(
    image: UInt8[np.ndarray, "H W 3"], count: int, fill: Fill, rng: np.random.Generator
) -> UInt8[np.ndarray, "H W 3"]:
    """Applies `count` of six augmentations, each drawn anew, so that one may come twice.

    The six and their strengths are those of TBPS-CLIP (AAAI 2024; released code, which draws 2 and
    fills with black): colour jitter 0.1, rotation up to 15 degrees, a resized crop of 0.9..1 of
    the area, grey with probability 0.1, a flip with 0.5, and with 0.5 erasing 0.1..0.2 of the area.
    """
    pool = (
        lambda image: color_jitter(image, 0.1, rng),
        lambda image: random_rotation(image, 15.0, fill, rng),
        lambda image: random_resized_crop(image, (0.9, 1.0), rng),
        lambda image: random_grayscale(image, 0.1, rng),
        lambda image: random_flip(image, 0.5, rng),
        lambda image: random_erase(image, 0.5, fill, rng, area=(0.1, 0.2)),
    )
    for choice in rng.integers(len(pool), size=count):
        image = pool[choice](image)
    return image


def _log_uniform(bounds: tuple[float, float], rng: np.random.Generator) -> float:
    return math.exp(rng.uniform(math.log(bounds[0]), math.log(bounds[1])))
