"""Images of any mode, size, format and turn; their bytes damaged; folders of any names."""

import io
import os
import shutil
import struct
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.fuzz.outcomes import clear
from unipt_jax.captioning import sources
from unipt_jax.data import images
from unipt_jax.search import index

# Modes and the formats that keep every value of theirs.
LOSSLESS = {
    "1": ("PNG", "TIFF", "BMP", "PPM"),
    "L": ("PNG", "TIFF", "BMP", "PPM", "GIF"),
    "LA": ("PNG", "TIFF"),
    "P": ("PNG", "TIFF", "BMP", "GIF"),
    "RGB": ("PNG", "TIFF", "BMP", "PPM", "WEBP"),
    "RGBA": ("PNG", "TIFF", "WEBP"),
    "I;16": ("PNG", "TIFF"),
    "F": ("TIFF",),
}
TURNABLE = ("PNG", "TIFF", "WEBP")
# What a viewer does, by EXIF 2.3: columns from the right, rows from below, axes swapped.
TURNS = {1: "", 2: "x", 3: "xy", 4: "y", 5: "t", 6: "tx", 7: "txy", 8: "ty"}


def shown(stored: np.ndarray, orientation: int) -> np.ndarray:
    for step in TURNS[orientation]:
        stored = {
            "x": lambda image: image[:, ::-1],
            "y": lambda image: image[::-1],
            "t": lambda image: image.swapaxes(0, 1),
        }[step](stored)
    return stored


def on_white(colours: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    share = opacity[..., None] / 255
    return share * colours + (1 - share) * 255


def picture(mode: str, height: int, width: int, rng: np.random.Generator):
    """Returns an image of random values, and its RGB values before they are rounded."""
    values = rng.integers(256, size=(height, width, 4)).astype(np.uint8)
    grey, colours, opacity = values[..., :1].repeat(3, 2), values[..., :3], values[..., 3]
    if mode == "1":
        return Image.fromarray(values[..., 0] > 127), np.where(grey > 127, 255, 0)
    if mode == "L":
        return Image.fromarray(values[..., 0]), grey
    if mode == "LA":
        return Image.fromarray(np.ascontiguousarray(values[..., ::3])), on_white(grey, opacity)
    if mode == "P":
        colour = rng.integers(256, size=(256, 3), dtype=np.uint8)
        image = Image.fromarray(values[..., 0]).convert("P")
        image.putpalette(colour.tobytes())
        return image, colour[values[..., 0]]
    if mode == "RGB":
        return Image.fromarray(np.ascontiguousarray(colours)), colours
    if mode == "RGBA":
        return Image.fromarray(values), on_white(colours, opacity)
    if mode == "I;16":
        wide = rng.integers(65536, size=(height, width), dtype=np.uint16)
        return Image.fromarray(wide), wide[..., None].repeat(3, 2) / 257
    real = rng.normal(128, 200, (height, width)).astype(np.float32)
    return Image.fromarray(real), np.clip(real[..., None].repeat(3, 2), 0, 255)


def encode(image: Image.Image, kind: str, orientation: int = 1, **options: object) -> bytes:
    content = io.BytesIO()
    if kind in TURNABLE:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    if kind == "WEBP":
        options |= {"lossless": True, "exact": True}
    image.save(content, kind, **options)
    return content.getvalue()


@st.composite
def files(draw):
    """Draws a file's bytes, its orientation, and what it shows before it is turned."""
    mode = draw(st.sampled_from(sorted(LOSSLESS)))
    kind = draw(st.sampled_from(LOSSLESS[mode]))
    height, width = draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    if draw(st.booleans()):
        width = draw(st.sampled_from([1, 2, 1000]))
    orientation = draw(st.integers(1, 8)) if kind in TURNABLE else 1
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    image, values = picture(mode, height, width, rng)
    return encode(image, kind, orientation), orientation, values


@given(files(), st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_a_file_is_the_picture_that_was_stored(drawn, size):
    """Upright, in RGB, on white; and one step to any size is the two (P48, P50, P51, P54, P55)."""
    content, orientation, stored = drawn
    decoded = clear(lambda: images.decode(content, "x.png")).value
    expected = shown(stored, orientation)
    assert decoded.dtype == np.uint8 and decoded.shape == expected.shape
    # Half a step where values are rounded; blending on white rounds twice.
    assert np.abs(decoded - expected).max() <= 1.01
    np.testing.assert_array_equal(
        images.load(content, "x.png", *size), images.resize(decoded, *size)
    )
    np.testing.assert_array_equal(decoded, images.to_rgb(Image.open(io.BytesIO(content)), "x"))
    again = images.decode(images.to_ppm(decoded), "x.ppm")
    np.testing.assert_array_equal(again, decoded)


def samples() -> list[bytes]:
    """One file of each format and mode, small."""
    rng = np.random.default_rng(0)
    found = [
        encode(picture(mode, 12, 9, rng)[0], kind, 6)
        for mode, kinds in sorted(LOSSLESS.items())
        for kind in kinds
    ]
    rgb = picture("RGB", 12, 9, rng)[0]
    frames = [picture("P", 12, 9, rng)[0] for _ in range(3)]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        found.append(encode(frames[0], kind, save_all=True, append_images=frames[1:]))
    for compression in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg"):
        found.append(encode(rgb, "TIFF", compression=compression))
    found.append(encode(rgb, "JPEG", progressive=True))
    found.append(encode(rgb.convert("CMYK"), "JPEG"))
    found.append(encode(rgb, "AVIF", speed=10))
    return found


SAMPLES = samples()
SPOT = st.floats(0, 1, exclude_max=True)


@st.composite
def damaged(draw):
    """Draws the bytes of a file that were cut, changed, joined or moved."""
    content = bytearray(draw(st.sampled_from(SAMPLES)))
    for _ in range(draw(st.integers(1, 4))):
        start = int(draw(SPOT) * len(content))
        how = draw(st.sampled_from(["cut", "flip", "long", "splice", "drop", "prefix"]))
        if how == "cut":
            del content[start:]
        elif how == "flip":
            content[start : start + 1] = bytes([draw(st.integers(0, 255))])
        elif how == "long":  # Most fields of lengths, sizes and offsets have four bytes.
            number = draw(st.sampled_from([0, 1, 0x7FFFFFFF, 0xFFFFFFFF]) | st.integers(0, 1 << 31))
            content[start : start + 4] = struct.pack(draw(st.sampled_from("<>")) + "I", number)
        elif how == "splice":
            other = draw(st.sampled_from(SAMPLES))
            content[start:] = other[int(draw(SPOT) * len(other)) :]
        elif how == "drop":
            del content[start : start + draw(st.integers(1, 100))]
        else:
            content[:0] = draw(st.binary(min_size=1, max_size=20))
    return bytes(content)


@pytest.mark.timeout(600)
@given(damaged())
def test_damaged_bytes_are_a_picture_or_one_clear_line(content):
    """Whatever is wrong, the file is named; what is taken is a picture of its size (P52, P53)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of damaged EXIF.
        outcome = clear(lambda: images.decode(content, "cam\x1b/3.png"), names="cam\\x1b/3.png: ")
        if outcome.refusal:
            return
        assert outcome.value.dtype == np.uint8 and outcome.value.ndim == 3
        assert outcome.value.shape[2] == 3
        height, width, _ = outcome.value.shape
        assert 1 <= height * width <= images.MAX_PIXELS
        assert sorted((height, width)) == sorted(Image.open(io.BytesIO(content)).size)
        if height * width < 1 << 20:
            np.testing.assert_array_equal(
                images.load(content, "x", 8, 4), images.resize(outcome.value, 8, 4)
            )


# A name is any bytes but these two.
BYTES = st.binary(min_size=1, max_size=30).map(
    lambda name: name.replace(b"\0", b"0").replace(b"/", b"1")
)
STEMS = BYTES | st.text(min_size=1, max_size=30).map(
    lambda name: name.encode("utf-8", "replace").replace(b"\0", b"0").replace(b"/", b"1")
)
SUFFIX = st.sampled_from(
    [b".jpg", b".JPG", b".jPeG", b".png", b".WebP", b".tif", b".bmp", b".avif"]
)
NAMES = st.tuples(
    STEMS
    | st.sampled_from([b".", b"..", b" ", b"-", b"a\nb", b"n" * 250, b".hidden", b"*", b"a."]),
    SUFFIX | st.sampled_from([b"", b".txt", b".jpg ", b".jpg.part", b".heic", b"jpg"]),
).map(lambda parts: b"".join(parts)[-255:])
SUFFIXES = {suffix.encode() for suffix in sources.SUFFIXES}
KINDS = st.sampled_from(["image", "text", "empty", "pipe", "circle", "folder"])
IMAGE = encode(Image.new("RGB", (3, 2), (1, 2, 3)), "PNG")


def make(path: bytes, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "circle":
        os.symlink(os.path.basename(path), path)
    elif kind == "folder":
        os.mkdir(path)
    else:
        with open(path, "wb") as file:
            file.write({"image": IMAGE, "text": b"no image", "empty": b""}[kind])


@given(st.dictionaries(NAMES, KINDS, max_size=3), st.dictionaries(NAMES, KINDS, max_size=1))
def test_a_folder_of_any_names_is_read_or_named(names, deeper):
    """What has an image's suffix is listed once, and read or refused by name (P52, P56, P112)."""
    top = Path(tempfile.mkdtemp())
    try:
        folder = os.fsencode(top) + b"/images"
        os.makedirs(folder + b"/deep")
        expected = {}
        for below, chosen in ((b"", names), (b"deep/", deeper)):
            for name, kind in chosen.items():
                stem, _, suffix = name.rpartition(b".")
                # Dots alone before the last: no suffix, or one, as the version of Python has it.
                if (b"." in name and not stem.strip(b".")) or name == b"deep":
                    continue
                make(folder + b"/" + below + name, kind)
                if stem and b"." + suffix.lower() in SUFFIXES and kind != "folder":
                    expected[below + name] = kind
        outcome = clear(lambda: sources.open_source(os.fsdecode(folder), top))
        if not expected:
            assert "no image is in there" in outcome.refusal
            return
        source = outcome.value
        listed = (top / sources.LISTING).read_bytes().split(b"\0")[:-1]
        assert sorted(listed) == sorted(expected) and source.size == len(expected)
        for number, name in enumerate(listed):
            readable = expected[name] == "image"
            content = clear(lambda number=number: source.read(number))
            if expected[name] in ("pipe", "circle"):
                assert "cannot be read" in content.refusal
            else:
                assert not content.refusal
            place, name = Path(os.fsdecode(folder)), os.fsdecode(name)
            seen = clear(lambda at=(place, name): images.decode(index.read(*at), at[1]))
            assert bool(seen.refusal) is not readable
            if readable:
                assert seen.value.tolist() == [[[1, 2, 3]] * 3] * 2
            assert source.path(number).encode()  # Captions are UTF-8.
    finally:
        shutil.rmtree(top)
