"""One picture, whatever its encoding."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from unipt_jax.core.errors import DataError
from unipt_jax.data import images


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def photo(height: int = 40, width: int = 20) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("mode", "colour", "kind", "expected"),
    [
        ("1", 1, "PNG", (255, 255, 255)),
        ("L", 100, "PNG", (100, 100, 100)),
        ("LA", (100, 255), "PNG", (100, 100, 100)),
        ("LA", (100, 0), "PNG", (255, 255, 255)),
        ("RGB", (10, 20, 30), "PNG", (10, 20, 30)),
        ("RGB", (10, 20, 30), "BMP", (10, 20, 30)),
        ("RGB", (10, 20, 30), "PPM", (10, 20, 30)),
        ("RGBA", (10, 20, 30, 255), "PNG", (10, 20, 30)),
        ("RGBA", (255, 0, 255, 0), "PNG", (255, 255, 255)),
        # 51 / 255 is a fifth: 0.2 * 100 + 0.8 * 255 = 224.
        ("RGBA", (100, 100, 100, 51), "PNG", (224, 224, 224)),
        ("CMYK", (0, 0, 0, 0), "TIFF", (255, 255, 255)),
        ("CMYK", (0, 255, 255, 0), "TIFF", (255, 0, 0)),
        # 16 bits: 257 * 100 = 25700.
        ("I;16", 25700, "PNG", (100, 100, 100)),
        ("I;16", 65535, "TIFF", (255, 255, 255)),
        ("I", 25700, "TIFF", (100, 100, 100)),
        ("I", -5, "TIFF", (0, 0, 0)),
        ("F", 100.4, "TIFF", (100, 100, 100)),
        ("F", 1e9, "TIFF", (255, 255, 255)),
    ],
)
def test_every_mode_becomes_rgb(mode, colour, kind, expected):
    """P50: transparent pixels are white, whatever colour hides beneath them."""
    decoded = images.decode(encode(Image.new(mode, (3, 2), colour), kind), "x")
    assert decoded.shape == (2, 3, 3) and decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, np.broadcast_to(np.uint8(expected), (2, 3, 3)))


@pytest.mark.parametrize(("transparency", "expected"), [(None, (255, 0, 255)), (0, (255,) * 3)])
def test_palettes(transparency, expected):
    """P50: a palette with a transparent entry."""
    image = Image.new("P", (3, 2), 0)
    image.putpalette([255, 0, 255, 0, 0, 0])
    options = {} if transparency is None else {"transparency": transparency}
    for kind in ("PNG", "GIF"):
        decoded = images.decode(encode(image, kind, **options), "x")
        np.testing.assert_array_equal(decoded[1, 2], expected)


# How EXIF's eight values store an upright picture: row 0 and column 0 of what is stored are the
# sides of the upright one that the standard names.
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright),
    7: lambda upright: np.rot90(upright.transpose(1, 0, 2), 2),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_exif_turns(orientation, kind):
    """P51: pedestrians stand, as viewers show them."""
    upright = np.asarray(photo(5, 3))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    options = {"lossless": True} if kind == "WEBP" else {}
    decoded = images.decode(encode(stored, kind, exif=exif, **options), "x")
    np.testing.assert_array_equal(decoded, upright)


def test_exif_turn_of_jpeg():
    """P51: a JPEG stored on its side; the upper half is red."""
    upright = np.zeros((32, 16, 3), np.uint8)
    upright[:16, :, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(upright)))
    decoded = images.decode(encode(stored, "JPEG", exif=exif, quality=95), "x")
    assert decoded.shape == (32, 16, 3)
    assert (decoded[:14, :, 0] > 200).all() and (decoded[18:, :, 0] < 50).all()


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"]
)
def test_damaged_exif_is_no_turn(exif):
    decoded = images.decode(encode(photo(), "JPEG", exif=exif), "x")
    assert decoded.shape == (40, 20, 3)


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (200, 1), (3, 3), (3, 200), (200, 3)])
def test_layout_is_never_guessed(size):
    """P54: red stays red in extreme shapes, (width, height)."""
    decoded = images.decode(encode(Image.new("RGB", size, (255, 0, 0))), "x")
    assert decoded.shape == (size[1], size[0], 3)
    resized = images.resize(decoded, 8, 4)
    np.testing.assert_array_equal(resized, np.broadcast_to(np.uint8([255, 0, 0]), (8, 4, 3)))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"hello", "not an image; it starts with b'hello'"),
        (b"<!DOCTYPE html><html>404</html>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", "not an image"),
        (encode(photo(), "JPEG")[:-100], "truncated"),
        (encode(photo(), "JPEG")[:30], "cannot be decoded"),
        (encode(photo())[:-200], "cannot be decoded"),
        (encode(photo(), "BMP")[:-200], "truncated"),
        (encode(photo(), "GIF")[:-200], "cannot be decoded"),
        (encode(photo(), "WEBP")[:-100], "cannot be decoded"),
        (encode(photo(), "TIFF")[:-200], "cannot be decoded"),
        (encode(Image.new("F", (2, 2), float("nan")), "TIFF"), "not finite"),
    ],
)
def test_damaged_bytes_are_named(content, said):
    """P52: the file and the reason; nothing is filled up with grey."""
    with pytest.raises(DataError, match=said) as caught:
        images.decode(content, "imgs/3.jpg")
    assert str(caught.value).startswith("imgs/3.jpg: ")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_enormous_image_is_refused_before_it_is_decoded():
    """A PNG whose header claims 100,000 x 100,000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    content = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    )
    with pytest.raises(DataError, match="pixels"):
        images.decode(content, "x")


def test_resize_averages_where_it_shrinks():
    """A fine black and white pattern becomes grey, instead of aliasing to either."""
    board = (np.indices((64, 32)).sum(0) % 2 * 255).astype(np.uint8)
    resized = images.resize(np.repeat(board[..., None], 3, axis=2), 8, 4)
    assert resized.shape == (8, 4, 3) and resized.dtype == np.uint8
    assert abs(resized.astype(int) - 127.5).max() < 8


def test_resize_takes_height_first_and_keeps_what_fits():
    image = np.asarray(photo(6, 4))
    np.testing.assert_array_equal(images.resize(image, 6, 4), image)
    assert images.resize(image, 3, 8).shape == (3, 8, 3)


@pytest.mark.parametrize("size", [(30, 12), (40, 20), (96, 32)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "PPM"])
def test_load_is_what_pillow_decodes_and_resizes(kind, size):
    content = encode(photo(), kind)
    theirs = Image.open(io.BytesIO(content)).resize(size[::-1], Image.Resampling.BICUBIC)
    loaded = images.load(content, "x", *size)
    np.testing.assert_array_equal(loaded, np.asarray(theirs))
    again = images.resize(images.decode(content, "x"), *size)
    np.testing.assert_array_equal(loaded, again)


def test_pixels_are_a_file_that_pillow_reads():
    pixels = np.asarray(photo(7, 4))
    content = images.to_ppm(pixels)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), pixels)
    np.testing.assert_array_equal(images.decode(content, "x"), pixels)


@pytest.mark.parametrize("size", [(0, 3), (3, 0), (60_000, 60_000)])
def test_pixels_of_no_or_too_great_a_size_are_refused(size):
    with pytest.raises(DataError, match="x: cannot be decoded"):
        images.decode(b"P6\n%d %d\n255\n" % size, "x")


def test_truncated_pixels_are_named():
    content = images.to_ppm(np.asarray(photo()))
    for load in (images.decode, lambda *given: images.load(*given, 40, 20)):
        with pytest.raises(DataError, match=r"imgs/3\.ppm: cannot be decoded .*truncated"):
            load(content[:-1], "imgs/3.ppm")
