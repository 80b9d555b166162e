"""Encoded images to pixels: the one door, so that every stage sees the same picture."""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from unipt_jax.core.errors import DataError

# About 0.5 GB of RGB; the size at which Pillow itself refuses to decode.
MAX_PIXELS = 178_956_970

# Only formats of single pictures that Pillow decodes itself: EPS, for one, would run Ghostscript.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

_ORIENTATION_TAG = 0x0112
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


def decode(content: bytes, where: str) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes an image file to RGB, upright by its EXIF orientation.

    Transparent pixels are composited on white. Grey values of 16 bits and more are read as
    0..65535, those of floating point as 0..255. Of an animation the first frame counts.

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
    if image.width * image.height > MAX_PIXELS:
        raise _undecodable(where, f"{image.width} x {image.height} pixels are too many")
    try:
        image.load()
        return _to_rgb(_upright(image))
    except Exception as error:  # Pillow's plugins raise many kinds on damaged bytes.
        raise _undecodable(where, str(error) or type(error).__name__) from error


def _resized(image: Image.Image, height: int, width: int) -> Image.Image:
    return image.resize((width, height), Image.Resampling.BICUBIC)


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
        return _grey(np.asarray(image, np.float64) / 257)
    if image.mode == "F":
        return _grey(np.asarray(image, np.float64))
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        white = Image.new("RGBA", colours.size, "white")
        return Image.alpha_composite(white, colours).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey(values: np.ndarray) -> Image.Image:
    if not np.isfinite(values).all():
        raise ValueError("grey values are not finite")
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8)).convert("RGB")
