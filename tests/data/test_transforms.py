"""Augmentations of images: what they do to pixels, how often, and how strongly."""

import numpy as np
import pytest
from PIL import Image

from unipt_jax.data import transforms

FILL = (120, 117, 104)


def noise(height=48, width=24, seed=0):
    return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


def smooth(height=96, width=48):
    """Slowly changing colours, so that a resized image can be compared with a formula."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y * 2, x * 4, y + x], -1).astype(np.uint8)


def erased_box(image, erased):
    """Returns rows, columns, top and left of the one rectangle that differs, or None."""
    changed = (image != erased).any(-1)
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    if not len(rows):
        return None
    return int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1, int(rows[0]), int(columns[0])


def erase(image, rng, probability=1.0, **ranges):
    return transforms.random_erase(image, probability, FILL, rng, **ranges)


TRANSFORMS = {
    "flip": lambda image, rng: transforms.random_flip(image, 0.5, rng),
    "pad": lambda image, rng: transforms.pad_and_crop(image, 10, FILL, rng),
    "erase": lambda image, rng: erase(image, rng, 0.5),
    "jitter": lambda image, rng: transforms.color_jitter(image, 0.4, rng),
    "rotate": lambda image, rng: transforms.random_rotation(image, 15.0, FILL, rng),
    "crop": lambda image, rng: transforms.random_resized_crop(image, (0.5, 1.0), rng),
    "gray": lambda image, rng: transforms.random_grayscale(image, 0.5, rng),
    "pool": lambda image, rng: transforms.random_pool(image, 2, FILL, rng),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_shape_and_input_are_kept_and_the_generator_decides(name):
    """Also where the input is a mirrored view, as after a flip."""
    apply = TRANSFORMS[name]
    image = noise()[:, ::-1]
    before = image.copy()
    seen = []
    for seed in range(20):
        first, second = (apply(image, np.random.default_rng(seed)) for _ in range(2))
        assert first.shape == image.shape and first.dtype == np.uint8
        np.testing.assert_array_equal(first, second)
        seen.append(first.tobytes())
    np.testing.assert_array_equal(image, before)
    assert len(set(seen)) > 1


@pytest.mark.parametrize(
    "apply",
    [
        lambda image, rng: transforms.random_flip(image, 0.0, rng),
        lambda image, rng: transforms.pad_and_crop(image, 0, FILL, rng),
        lambda image, rng: erase(image, rng, 0.0),
        lambda image, rng: transforms.color_jitter(image, 0.0, rng),
        lambda image, rng: transforms.random_rotation(image, 0.0, FILL, rng),
        lambda image, rng: transforms.random_grayscale(image, 0.0, rng),
        lambda image, rng: transforms.random_pool(image, 0, FILL, rng),
    ],
)
def test_off_is_off(apply):
    image, rng = noise(), np.random.default_rng(0)
    for _ in range(20):
        np.testing.assert_array_equal(apply(image, rng), image)


@pytest.mark.parametrize(
    ("probability", "apply"),
    [
        (0.3, lambda image, rng: transforms.random_flip(image, 0.3, rng)),
        (0.5, lambda image, rng: erase(image, rng, 0.5)),
        (0.1, lambda image, rng: transforms.random_grayscale(image, 0.1, rng)),
    ],
)
def test_it_happens_as_often_as_asked(probability, apply):
    """Within four standard deviations of a binomial."""
    image, rng = noise(64, 64), np.random.default_rng(0)
    times = 1000
    changed = sum(not np.array_equal(apply(image, rng), image) for _ in range(times))
    bound = 4 * (times * probability * (1 - probability)) ** 0.5
    assert abs(changed - times * probability) < bound


# ---------------------------------------------------------------------------- flip, pad and crop


def test_flip_mirrors_columns_and_keeps_rows():
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    flipped = transforms.random_flip(image, 1.0, np.random.default_rng(0))
    assert flipped[0, 0].tolist() == [6, 7, 8] and flipped[1, 2].tolist() == [9, 10, 11]


def test_pad_and_crop_shifts_the_image_over_the_fill():
    """All (2 * 2 + 1) squared shifts come, about equally often, and each pixel is as shifted."""
    image, rng = noise(7, 5), np.random.default_rng(0)
    shifts = {}
    for down in range(-2, 3):
        for right in range(-2, 3):
            expected = np.empty_like(image)
            for y in range(7):
                for x in range(5):
                    inside = 0 <= y - down < 7 and 0 <= x - right < 5
                    expected[y, x] = image[y - down, x - right] if inside else FILL
            shifts[expected.tobytes()] = 0
    for _ in range(2500):
        shifts[transforms.pad_and_crop(image, 2, FILL, rng).tobytes()] += 1
    assert len(shifts) == 25 and min(shifts.values()) > 60 and max(shifts.values()) < 140


# ---------------------------------------------------------------------------- erasing


def test_erasing_fills_one_rectangle_within_the_ranges():
    """Area and aspect ratio are in their ranges before rounding, so by half a pixel after it."""
    image, rng = noise(96, 48), np.random.default_rng(1)
    places = set()
    for _ in range(200):
        erased = erase(image, rng)
        rows, columns, top, left = erased_box(image, erased)
        inside = erased[top : top + rows, left : left + columns]
        assert (inside == FILL).all()
        untouched = np.ones((96, 48), bool)
        untouched[top : top + rows, left : left + columns] = False
        np.testing.assert_array_equal(erased[untouched], image[untouched])
        assert (rows - 0.5) * (columns - 0.5) <= 0.4 * 96 * 48
        assert (rows + 0.5) * (columns + 0.5) >= 0.02 * 96 * 48
        assert (rows - 0.5) / (columns + 0.5) <= 3.3 and (rows + 0.5) / (columns - 0.5) >= 0.3
        places.add((top, left))
    assert len(places) > 150


def test_erasing_is_distributed_as_torchvision_says():
    """Beside a simulation of its rule: all ten attempts at once, the first that fits."""
    height, width, times = 96, 48, 4000
    rng = np.random.default_rng(2)
    size = height * width * rng.uniform(0.02, 0.4, (times, 10))
    ratio = np.exp(rng.uniform(np.log(0.3), np.log(3.3), (times, 10)))
    rows, columns = np.rint(np.sqrt(size * ratio)), np.rint(np.sqrt(size / ratio))
    fits = (rows < height) & (columns < width)
    first = (np.arange(times), fits.argmax(1))
    top = np.floor(rng.random(times) * (height - rows[first] + 1))
    expected = np.stack([rows[first], columns[first], top])[:, fits.any(1)]
    image = noise(height, width)
    boxes = [erased_box(image, erase(image, rng)) for _ in range(800)]
    found = np.array([box[:3] for box in boxes if box]).T
    for ours, theirs in zip(found, expected, strict=True):
        levels = (0.1, 0.25, 0.5, 0.75, 0.9)
        np.testing.assert_allclose(np.quantile(ours, levels), np.quantile(theirs, levels), atol=4)


def test_a_rectangle_that_never_fits_is_not_erased():
    image = noise(8, 64)
    same = erase(image, np.random.default_rng(0), area=(0.9, 0.9), aspect=(1.0, 1.0))
    np.testing.assert_array_equal(same, image)


# ---------------------------------------------------------------------------- colours


def luma(image):
    return image @ np.array([0.299, 0.587, 0.114])


def test_grey_is_luma():
    image = noise()
    grey = transforms.random_grayscale(image, 1.0, np.random.default_rng(0))
    assert (grey == grey[..., :1]).all()
    np.testing.assert_allclose(grey[..., 0], luma(image), atol=1)


def test_color_jitter_blends_in_one_of_six_orders():
    """Blends with black, with the mean luma and with each pixel's, as torchvision defines them."""

    class Recorder(np.random.Generator):
        """Draws as NumPy does and keeps what was drawn."""

        def __init__(self, seed):
            super().__init__(np.random.PCG64(seed))
            self.orders, self.factors = [], []

        def permutation(self, size):
            self.orders.append(super().permutation(size))
            return self.orders[-1]

        def uniform(self, low, high):
            assert (low, high) == (0.6, 1.4)
            self.factors.append(super().uniform(low, high))
            return self.factors[-1]

    image = noise()
    orders = set()
    for seed in range(40):
        recorder = Recorder(seed)
        jittered = transforms.color_jitter(image, 0.4, recorder)
        values = image.astype(float)
        [order] = recorder.orders
        orders.add(tuple(order))
        for choice, factor in zip(order, recorder.factors, strict=True):
            opposite = (
                0.0
                if choice == 0
                else luma(values).mean()
                if choice == 1
                else luma(values)[..., None]
            )
            values = np.clip(factor * values + (1 - factor) * opposite, 0, 255)
        np.testing.assert_allclose(jittered, values, atol=4)  # Rounded three times.
    assert len(orders) == 6


# ---------------------------------------------------------------------------- geometry


def test_rotation_moves_pixels_about_the_centre():
    """Every pixel is the source's nearest at one angle within the range, or the fill outside."""
    image = noise(40, 30)
    y, x = np.mgrid[:40, :30] + 0.5
    tried = np.radians(np.arange(-15, 15.01, 0.1))
    signs = set()
    for seed in range(10):
        rotated = transforms.random_rotation(image, 15.0, FILL, np.random.default_rng(seed))
        agreement = []
        for angle in tried:
            back_x = np.cos(angle) * (x - 15) - np.sin(angle) * (y - 20) + 15
            back_y = np.sin(angle) * (x - 15) + np.cos(angle) * (y - 20) + 20
            rows, columns = np.floor(back_y).astype(int), np.floor(back_x).astype(int)
            inside = (rows >= 0) & (rows < 40) & (columns >= 0) & (columns < 30)
            expected = np.where(
                inside[..., None], image[rows.clip(0, 39), columns.clip(0, 29)], FILL
            )
            agreement.append((expected == rotated).all(-1).mean())
        assert max(agreement) > 0.97
        signs.add(bool(tried[int(np.argmax(agreement))] > 0))
    assert signs == {True, False}


@pytest.mark.parametrize(("height", "width"), [(96, 96), (96, 32)])
def test_resized_crop_shows_a_part_of_the_image_enlarged(height, width):
    """Both axes are ramps, so that the first and last pixel tell the rectangle: 0.5..1 of it."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([y * 255 / height, x * 255 / width, 0 * y], -1).astype(np.uint8)
    rng = np.random.default_rng(0)
    shares, ratios = [], []
    for _ in range(200):
        cropped = transforms.random_resized_crop(image, (0.5, 1.0), rng).astype(float)
        rows = (cropped[-8, 0, 0] - cropped[7, 0, 0]) / (image[-8, 0, 0] - float(image[7, 0, 0]))
        columns = (cropped[0, -8, 1] - cropped[0, 7, 1]) / (image[0, -8, 1] - float(image[0, 7, 1]))
        shares.append(rows * columns)
        ratios.append(columns / rows)
    assert 0.44 < min(shares) < 0.6 and 0.9 < max(shares) < 1.06
    assert 0.66 < min(ratios) < 0.85 and 1.15 < max(ratios) < 1.48


def test_resized_crop_is_a_crop_resized():
    """One of all rectangles of its size, which a search finds to the bit."""
    image = noise(12, 10)
    cropped = transforms.random_resized_crop(image, (0.6, 0.9), np.random.default_rng(0))
    candidates = [
        Image.fromarray(image[top:bottom, left:right]).resize((10, 12), Image.Resampling.BICUBIC)
        for top in range(6)
        for bottom in range(top + 6, 13)
        for left in range(5)
        for right in range(left + 5, 11)
    ]
    assert any(np.array_equal(cropped, np.asarray(candidate)) for candidate in candidates)


# ---------------------------------------------------------------------------- the pool


def test_the_pool_draws_each_of_the_six_alike(monkeypatch):
    """With replacement, so that in a sixth of the draws both are the same."""
    calls = []
    names = [
        "color_jitter",
        "random_rotation",
        "random_resized_crop",
        "random_grayscale",
        "random_flip",
        "random_erase",
    ]
    for name in names:
        monkeypatch.setattr(
            transforms, name, lambda image, *_, name=name, **__: (calls.append(name), image)[1]
        )
    rng = np.random.default_rng(0)
    for _ in range(1200):
        transforms.random_pool(noise(2, 2), 2, FILL, rng)
    assert len(calls) == 2400
    for name in names:
        assert abs(calls.count(name) - 400) < 4 * (2400 * 5 / 36) ** 0.5
    twice = sum(first == second for first, second in zip(calls[::2], calls[1::2], strict=True))
    assert abs(twice - 200) < 4 * (1200 * 5 / 36) ** 0.5
