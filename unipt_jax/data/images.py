"""Encoded images to pixels: the one door, so that every stage sees the same picture."""

import errno
import io
import os
import stat
from pathlib import Path

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from unipt_jax.core.errors import DataError
from unipt_jax.core.files import is_remote

# More than a frame of 8K video has. At its peak decoding takes up to 32 bytes a pixel, 1 GiB, in
# each thread. One bound for all: what one stage takes, every other does.
MAX_PIXELS = 1 << 25

# Of a file: more than so many pixels take, 16 bytes each.
MAX_BYTES = 16 * MAX_PIXELS

# Only formats of single pictures that Pillow decodes itself: EPS, for one, would run Ghostscript.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

# What one file or its name is to blame for; any other OSError is the storage's failure.
_OF_A_FILE = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
_OF_A_NAME = (errno.ELOOP, errno.ENAMETOOLONG)

_ORIENTATION_TAG = 0x0112
_TILE_TAGS = 0x0142, 0x0143  # TIFF 6.0, section 15
# EXIF 2.3, table 5: how to turn the stored picture so that it stands upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read(path: epath.PathLike, where: str = "") -> bytes:
    """Returns the encoded bytes of an image's file.

    Args:
        path: the file. A named pipe or a device is refused: reading it might never end.
        where: what the message calls it; empty: `path`.

    Raises:
        DataError: there is no such file, it is not an ordinary one, may not be read, or has more
            than `MAX_BYTES`.
        OSError: the storage fails, which is no fault of the file.
    """
    try:
        if is_remote(path):
            return epath.Path(path).read_bytes()
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise _unreadable(where or path, "not an ordinary file")
        if status.st_size > MAX_BYTES:
            raise _unreadable(where or path, f"{status.st_size:,} bytes, more than {MAX_BYTES:,}")
        return Path(path).read_bytes()
    except ValueError:  # A zero byte, or half a surrogate pair.
        raise _unreadable(where or path, "not a path") from None
    except OSError as error:
        if not isinstance(error, _OF_A_FILE) and error.errno not in _OF_A_NAME:
            raise
        raise _unreadable(where or path, error.strerror or str(error)) from error


def decode(content: bytes, where: str) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes an image file to RGB, upright by its EXIF orientation.

    Transparent pixels are composited on white. Grey values of 16 bits and more are read as
    0..65535, those of floating point as 0..255. Of an animation the first frame counts. Colour
    profiles are not applied.

    Args:
        content: the encoded file (`FORMATS`).
        where: name of the file or record, for the message.

    Returns:
        RGB values 0..255.

    Raises:
        DataError: the bytes are empty, truncated, no image, or of more than `MAX_PIXELS`.
    """
    return np.array(_open(content, where))


def load(
    content: bytes, where: str, height: int, width: int
) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """Returns what `resize` makes of what `decode` returns, for fewer copies; not to be written to.

    Raises:
        DataError: as `decode`.
    """
    return np.asarray(_resized(_open(content, where), height, width))


def to_rgb(image: Image.Image, where: str) -> UInt8[np.ndarray, "H W 3"]:
    """Turns an opened Pillow image of any mode into RGB values 0..255, as `decode` does.

    Raises:
        DataError: the image is truncated, or of more than `MAX_PIXELS`.
    """
    return np.array(_loaded(image, where))


def resize(
    image: UInt8[np.ndarray, "H W 3"], height: int, width: int
) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """Resizes RGB values 0..255 by Pillow's bicubic filter, which averages where it shrinks.

    An image that has that size already is returned as it is.
    """
    if image.shape[:2] == (height, width):
        return image
    return np.array(_resized(Image.fromarray(image), height, width))


def to_ppm(image: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """Encodes RGB values 0..255 as a binary PPM file: nothing is lost, and little done."""
    height, width, _ = image.shape
    return b"P6\n%d %d\n255\n" % (width, height) + image.tobytes()


def _open(content: bytes, where: str) -> Image.Image:
    """Opens an image file as RGB, upright."""
    if not content:
        raise _undecodable(where, "the file is empty")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return _loaded(image, where)
    except DataError:
        raise
    except Image.UnidentifiedImageError:
        start = content[:16]
        raise _undecodable(where, f"not an image; it starts with {start!r}") from None
    except Exception as error:  # Pillow's plugins raise many kinds on damaged bytes.
        raise _undecodable(where, str(error) or type(error).__name__) from error


def _loaded(image: Image.Image, where: str) -> Image.Image:
    # A TIFF is read in tiles, which may be larger than the picture.
    tile = [getattr(image, "tag_v2", {}).get(tag, 0) for tag in _TILE_TAGS]
    try:
        for width, height in (image.size, tile):
            if int(width) * int(height) > MAX_PIXELS:
                raise ValueError(f"{width} x {height} pixels, more than {MAX_PIXELS:,}")
        image.load()
        return _to_rgb(_upright(image))
    except Exception as error:  # Pillow's plugins raise many kinds on damaged bytes.
        raise _undecodable(where, str(error) or type(error).__name__) from error


def _resized(image: Image.Image, height: int, width: int) -> Image.Image:
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _unreadable(where: epath.PathLike, why: str) -> DataError:
    return DataError(f"{os.fspath(where)}: cannot be read ({why})")


def _undecodable(where: str, why: str) -> DataError:
    return DataError(f"{where}: cannot be decoded ({why}); replace the file or leave it out")


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION_TAG))
    except Exception:  # Damaged EXIF: every viewer shows the stored picture then.
        turn = None
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _grey(image, 257)
    if image.mode == "F":
        return _grey(image, 1)
    if image.mode == "La":  # Pillow knows of no way from here to RGBA but this.
        image = image.convert("LA")
    if image.has_transparency_data:
        colours = image if image.mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGBA", colours.size, "white")
        return Image.alpha_composite(white, colours).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey(image: Image.Image, unit: int) -> Image.Image:
    """Divides by `unit` what becomes 0..255; in place, and in 32 bits, which round alike."""
    values = np.array(image, np.float32)
    if not np.isfinite(values).all():
        raise ValueError("grey values are not finite")
    transparent = values == image.info.get("transparency")  # PNG names one value of 16 bits.
    values /= unit
    np.clip(np.rint(values, out=values), 0, 255, out=values)
    values[transparent] = 255
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")
