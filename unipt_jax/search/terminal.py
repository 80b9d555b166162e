"""What was found, as a table and as a contact sheet."""

import io
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unipt_jax.core.errors import DataError, printable
from unipt_jax.core.files import write_bytes
from unipt_jax.search.gallery import Gallery, Hit

log = logging.getLogger(__name__)

_COLUMNS = 10
_CELL, _GAP, _LINE = (96, 216), 8, 16  # pixels
_MOST_JPEG = 65_500  # pixels, as libjpeg has it


def tell_faults(gallery: Gallery) -> None:
    """Says how many images of the folder could not be read, and why the first could not."""
    if gallery.faults:
        first = printable(gallery.faults[0])
        log.warning("%d image(s) left out; first: %s", len(gallery.faults), first)


def table(query: str, hits: Sequence[Hit], size: int) -> Table:
    """Returns ranks, scores, paths and, where there are any, captions."""
    # Texts, not markup: they may hold brackets.
    title = Text(f"{printable(query)} (among {size:,} images)")
    made = Table(title=title, title_justify="left")
    made.add_column("rank", justify="right")
    made.add_column("score", justify="right")
    # A path is for copying: it goes on in the next line rather than lose its end.
    made.add_column("image", overflow="fold")
    captioned = any(hit.caption for hit in hits)
    if captioned:
        made.add_column("caption")
    for rank, hit in enumerate(hits, 1):
        cells = [str(rank), f"{hit.score:.3f}", Text(printable(hit.path))]
        made.add_row(*cells, *([Text(printable(hit.caption))] if captioned else []))
    return made


def show(made: Table) -> None:
    """Prints a table; as wide as it comes where no terminal has to hold it."""
    console = Console()
    (console if console.is_terminal else Console(width=10_000)).print(made)


def sheet(pictures: Sequence[np.ndarray], scores: Sequence[float]) -> Image.Image:
    """Draws pictures, uint8[H, W, 3] and at least one, side by side with their ranks and scores."""
    columns = min(_COLUMNS, len(pictures))
    lines = -(-len(pictures) // columns)
    (width, height), step = _CELL, (_CELL[0] + _GAP, _CELL[1] + _LINE + _GAP)
    made = Image.new("RGB", (columns * step[0] + _GAP, lines * step[1] + _GAP), "white")
    draw, font = ImageDraw.Draw(made), ImageFont.load_default(11)
    for at, (pixels, score) in enumerate(zip(pictures, scores, strict=True)):
        left, top = _GAP + at % columns * step[0], _GAP + at // columns * step[1]
        picture = fitted(pixels, width, height)
        made.paste(picture, (left + (width - picture.width) // 2, top))
        draw.text((left, top + height + 2), f"{at + 1}  {score:.3f}", "black", font)
    return made


def fitted(image: np.ndarray, width: int, height: int) -> Image.Image:
    """Fits uint8[H, W, 3] into so many pixels, with its proportions."""
    scale = min(width / image.shape[1], height / image.shape[0])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)


def write_sheet(gallery: Gallery, hits: Sequence[Hit], path: str | Path) -> None:
    """Writes a contact sheet, as PNG or JPEG, as the file's name says.

    Raises:
        DataError: nothing was found, an image can no longer be read, or JPEG cannot be that high.
    """
    if not hits:
        raise DataError("nothing was found, so that there is nothing to draw")
    pictures = [gallery.image(hit.number) for hit in hits]
    made, content = sheet(pictures, [hit.score for hit in hits]), io.BytesIO()
    kind = "PNG" if Path(path).suffix.lower() == ".png" else "JPEG"
    if kind == "JPEG" and made.height > _MOST_JPEG:
        raise DataError(f"sheet={path}: {len(hits)} images are too many for a JPEG; take .png")
    made.save(content, kind)
    write_bytes(path, content.getvalue())
