"""One picture, whatever its encoding."""

import errno
import io
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from unipt_jax.core.errors import DataError, printable
from unipt_jax.data import images


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def photo(height: int = 40, width: int = 20) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + body))
    return struct.pack(">I", len(body)) + kind + body + checksum


def png(width: int, height: int, bits: int, kind: int, data: bytes, extra: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def tiff(data: bytes, **tags: int) -> bytes:
    """Grey of 8 bits, deflated; tags by number, as `t322`, each one long integer."""
    tags = {"t258": 8, "t259": 8, "t262": 1, "t277": 1} | tags
    entries = [
        struct.pack("<HHII", number, 4, 1, value)
        for number, value in sorted((int(name[1:]), value) for name, value in tags.items())
    ]
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory


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
    """Transparent pixels are white, whatever colour hides beneath them (P48, P50)."""
    decoded = images.decode(encode(Image.new(mode, (3, 2), colour), kind), "x")
    assert decoded.shape == (2, 3, 3) and decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, np.broadcast_to(np.uint8(expected), (2, 3, 3)))


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("La", (3, 2), (20, 51)), (224, 224, 224)),  # 20 is a fifth of 100.
        (Image.new("RGBa", (3, 2), (20, 20, 20, 51)), (224, 224, 224)),
        (Image.new("RGBa", (3, 2), (0, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBX", (3, 2), (10, 20, 30, 0)), (10, 20, 30)),
        (Image.new("YCbCr", (3, 2), (100, 128, 128)), (100, 100, 100)),
        (Image.new("HSV", (3, 2), (0, 255, 255)), (255, 0, 0)),
        (Image.new("LAB", (3, 2), (255, 128, 128)), (255, 255, 255)),
        (Image.new("I;16B", (3, 2), 25700), (100, 100, 100)),
        (Image.new("I;16N", (3, 2), 25700), (100, 100, 100)),
        (Image.new("PA", (3, 2), (0, 0)), (255, 255, 255)),
    ],
    ids=lambda value: getattr(value, "mode", None),
)
def test_modes_that_files_seldom_have(image, expected):
    """Pillow's images from elsewhere in a program are taken in each of its modes (P48, P50)."""
    rgb = images.to_rgb(image, "x")
    assert rgb.dtype == np.uint8
    expected = np.broadcast_to(np.uint8(expected), (2, 3, 3))
    if image.mode == "LAB":  # Whose colours pass through a profile.
        np.testing.assert_allclose(rgb.astype(int), expected, atol=1)
    else:
        np.testing.assert_array_equal(rgb, expected)


def test_the_transparent_value_of_16_bits():
    """PNG names one; 25701 and it are the same grey of 8 bits (P50)."""
    row = b"\0" + struct.pack(">3H", 25700, 25701, 0)
    hole = png_chunk(b"tRNS", struct.pack(">H", 25700))
    decoded = images.decode(png(3, 1, 16, 0, zlib.compress(row), hole), "x")
    assert decoded[0].tolist() == [[255] * 3, [100] * 3, [0] * 3]


@pytest.mark.parametrize(("transparency", "expected"), [(None, (255, 0, 255)), (0, (255,) * 3)])
def test_palettes(transparency, expected):
    """A palette with a transparent entry (P48, P50)."""
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
    """Pedestrians stand, as viewers show them (P51)."""
    upright = np.asarray(photo(5, 3))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    options = {"lossless": True} if kind == "WEBP" else {}
    decoded = images.decode(encode(stored, kind, exif=exif, **options), "x")
    np.testing.assert_array_equal(decoded, upright)


def test_exif_turn_of_jpeg():
    """A JPEG stored on its side; the upper half is red (P51)."""
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


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (200, 1), (3, 3), (3, 200), (4000, 2)])
def test_layout_is_never_guessed(size):
    """Red stays red in extreme shapes, (width, height), and no side becomes 0 (P54, P55)."""
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
    """The file and the reason; nothing is filled up with grey (P52)."""
    with pytest.raises(DataError, match=said) as caught:
        images.decode(content, "imgs/3.jpg")
    assert str(caught.value).startswith("imgs/3.jpg: ")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def bombs() -> dict[str, bytes]:
    """Small files that become large, or say so."""
    zeros = zlib.compress(bytes(100 << 20), 1)
    side = struct.pack("<HH", 9000, 9000)
    claims = struct.pack("<IiiHHIIiiII", 40, 9000, 9000, 1, 24, 0, 0, 0, 0, 0, 0)
    return {
        "bits.png": png(20_000, 10_000, 1, 0, zeros),  # as P53 has it: 25 MB of bits
        "claims.png": png(100_000, 100_000, 8, 2, b""),
        "wide.png": png(9000, 9000, 8, 0, zeros),
        "profile.png": png(2, 2, 8, 0, b"", png_chunk(b"iCCP", b"name\0\0" + zeros)),
        "text.png": png(2, 2, 8, 0, b"", 9 * png_chunk(b"zTXt", b"name\0\0" + zeros)),
        "tile.tif": tiff(zeros, t256=16, t257=16, t322=16384, t323=16384, t324=8, t325=len(zeros)),
        "strip.tif": tiff(zeros, t256=9000, t257=9000, t278=9000, t273=8, t279=len(zeros)),
        "claims.bmp": b"BM" + struct.pack("<IHHI", 100, 0, 0, 54) + claims,
        "claims.ppm": b"P6 9000 9000 255\n",
        "frame.gif": b"GIF89a\1\0\1\0\0\0\0," + bytes(4) + side + b"\0\2\2\x44\1\0;",
    }


def film() -> bytes:
    """A GIF of 3000 frames."""
    content = encode(Image.new("P", (500, 500)), "GIF")
    start = content.index(b",")
    return content[:start] + 3000 * content[start:-1] + b";"


def large() -> dict[str, bytes]:
    """What is taken, and is dear: modes that are changed, in pictures that are turned."""
    exif = Image.Exif()
    exif[0x0112] = 6
    size = (SIDE, SIDE)
    return {
        "alpha.png": encode(Image.new("RGBA", size), exif=exif, compress_level=1),
        "float.tif": encode(Image.new("F", size), "TIFF", exif=exif),
        "grey.png": encode(Image.new("I;16", size), exif=exif, compress_level=1),
        "photo.jpg": encode(Image.new("CMYK", size), "JPEG", exif=exif),
        "alpha.webp": encode(Image.new("RGBA", size), "WEBP", exif=exif, quality=0, method=0),
    }


SIDE = 1024
PEAKS = """
import json, pathlib, resource, sys
from unipt_jax.core.errors import DataError
from unipt_jax.data import images

peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
images.decode(images.to_ppm(images.np.zeros((64, 64, 3), "uint8")), "")
before = peak()
for name in sys.argv[1:]:
    path = pathlib.Path(name)
    try:
        said = images.decode(images.read(path), path.name).shape
    except DataError as error:
        said = str(error)
    print(json.dumps([path.name, said, peak() - before]))
"""


def peaks(folder: Path, files: dict[str, bytes]) -> dict[str, tuple[object, int]]:
    """What becomes of each file, and how much memory a process had needed until then."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    command = [sys.executable, "-W", "ignore", "-c", PEAKS, *(str(folder / name) for name in files)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return {name: (said, peak) for name, said, peak in map(json.loads, run.stdout.splitlines())}


def test_bombs_take_little_memory(tmp_path):
    """A file is refused by what it claims, named with its size; or is as dear as it is large (P53).

    Decoding takes 32 bytes a pixel at the most, so that `MAX_PIXELS` take a GiB.
    """
    found = peaks(tmp_path, {**bombs(), "film.gif": film(), **large()})
    for name in bombs():
        said = found[name][0]
        assert said.startswith(f"{name}: cannot be decoded ("), said
        assert "pixels" in said or "too large" in said, said
    assert found["film.gif"][0] == [500, 500, 3]
    assert found["film.gif"][1] < 20e6, found  # Its peak, and that of all before it.
    assert all(found[name][0] == [SIDE, SIDE, 3] for name in large()), found
    assert max(peak for _, peak in found.values()) < 32 * SIDE**2 + 4e6, found
    assert 32 * images.MAX_PIXELS == 1 << 30 and images.MAX_PIXELS > 7680 * 4320
    assert Image.MAX_IMAGE_PIXELS == 178_956_970 // 2  # Pillow's own


def test_resize_averages_where_it_shrinks():
    """A fine black and white pattern becomes grey, instead of aliasing to either (P96)."""
    board = (np.indices((64, 32)).sum(0) % 2 * 255).astype(np.uint8)
    resized = images.resize(np.repeat(board[..., None], 3, axis=2), 8, 4)
    assert resized.shape == (8, 4, 3) and resized.dtype == np.uint8
    assert abs(resized.astype(int) - 127.5).max() < 8


def bicubic(length: int, size: int) -> np.ndarray:
    """Returns f64[size, length]: Keys' kernel (a = -0.5), as wide as the pixels that it makes."""
    scale = length / size
    width = max(scale, 1.0)
    centres = (np.arange(size) + 0.5) * scale
    distance = np.abs(np.arange(length) + 0.5 - centres[:, None]) / width
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("size", [(48, 16), (32, 32), (12, 8), (200, 90)])
def test_resize_is_bicubic_whatever_the_shape(size):
    """One filter for all, larger or smaller, square or not: sums in double precision (P22, P96)."""
    board = (np.indices((100, 50)).sum(0) % 2 * 255)[..., None]
    picture = np.where(np.arange(3) == 0, board, np.asarray(photo(100, 50))).astype(np.uint8)
    down, across = bicubic(100, size[0]), bicubic(50, size[1])
    rows = np.clip(np.einsum("xw,hwc->hxc", across, picture), 0, 255)
    expected = np.clip(np.einsum("yh,hxc->yxc", down, rows), 0, 255)
    # Pillow rounds between the two.
    assert np.abs(images.resize(picture, *size) - expected).max() < 1.6


def test_resize_takes_height_first_and_keeps_what_fits():
    image = np.asarray(photo(6, 4))
    np.testing.assert_array_equal(images.resize(image, 6, 4), image)
    assert images.resize(image, 3, 8).shape == (3, 8, 3)


@pytest.mark.parametrize("size", [(30, 12), (40, 20), (96, 32)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "PPM"])
def test_load_is_what_pillow_decodes_and_resizes(kind, size):
    """Whatever the shape that is asked for (P22)."""
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


def test_a_file_is_read_whole_and_an_endless_one_not_at_all(tmp_path):
    """Pipes, devices and circles are named; storage that fails is another matter (P52, P53)."""
    good = tmp_path / "good.png"
    good.write_bytes(b"any bytes")
    (tmp_path / "link.png").symlink_to(good)
    assert images.read(good) == images.read(str(tmp_path / "link.png")) == b"any bytes"
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zeros.png").symlink_to("/dev/zero")
    (tmp_path / "circle.png").symlink_to("circle.png")
    (tmp_path / "folder.png").mkdir()
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(images.MAX_BYTES + 1)  # Takes no room.
    names = {
        "pipe.png": "not an ordinary file",
        "zeros.png": "not an ordinary file",
        "folder.png": "not an ordinary file",
        "huge.png": "536,870,913 bytes, more than 536,870,912",
        "circle.png": "Too many levels of symbolic links",
        "gone.png": "No such file",
        "good.png/below.png": "Not a directory",
        "l" * 300 + ".png": "File name too long",
        "zero\0.png": "not a path",
        "half \ud800.png": "not a path",
    }
    for name, why in names.items():
        with pytest.raises(DataError) as caught:
            images.read(tmp_path / name)
        message = str(caught.value)
        assert message.startswith(printable(f"{tmp_path / name}: cannot be read ({why}")), message
        with pytest.raises(DataError, match=r"^record 3: cannot be read \("):
            images.read(tmp_path / name, "record 3")


def test_storage_that_fails_is_not_the_files_fault(tmp_path, monkeypatch):
    def fail(path):
        raise OSError(errno.EIO, "Input/output error", str(path))

    (tmp_path / "a.png").touch()
    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(OSError, match="Input/output error"):
        images.read(tmp_path / "a.png")
