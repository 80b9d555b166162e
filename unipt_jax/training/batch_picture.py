"""The first examples of a batch as a picture: the pixels and the texts that the model is given."""

import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from unipt_jax.data.tokenization import Tokenizer

Piece = tuple[str, str]  # of a text, and its manner: one of the next three
_PLAIN, _NOTE, _SET_OFF = "plain", "note", "set off"

_WIDTH = 1600  # of the picture, at most, in pixels, as what follows
_TEXT = 340  # of a text
_GAP = 16
_LINE = 21
_INK, _GREY, _MARK = "#202020", "#707070", "#ffc46b"


def draw(
    batch: Mapping[str, np.ndarray],
    tokenizer: Tokenizer,
    *,
    title: str,
    masked: bool,
    most: int = 12,
) -> Image.Image:
    """Draws at most `most` examples of a batch as `data.pipeline` makes it.

    Each has its pixels, enlarged by a whole number if they are few, and its text, decoded from
    tokens; an example that could not be read says so.

    Args:
        batch: of B examples, unsharded.
        tokenizer: of its texts.
        title: the first line.
        masked: whether to show the masked copy of the texts, its places set off, and what is to be
            predicted there.
        most: number of examples.
    """
    shown = min(most, len(batch["image"]))
    height, width = batch["image"].shape[1:3]
    scale = max(1, 256 // height)
    height, width = scale * height, scale * width
    cell = width + _TEXT + 3 * _GAP
    columns = max(1, min(shown, _WIDTH // cell))
    texts = [_lines(batch, row, tokenizer, masked) for row in range(shown)]
    rows = [texts[start : start + columns] for start in range(0, shown, columns)]
    heights = [max(height, *(_LINE * len(lines) for lines in row)) + 2 * _GAP for row in rows]
    size = (columns * cell + _GAP, sum(heights) + 3 * _GAP)
    picture = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(picture)
    pen.text((_GAP, _GAP), title, _INK, _font(bold=True))
    top = 3 * _GAP
    for number, row in enumerate(rows):
        for column, lines in enumerate(row):
            left = _GAP + column * cell
            image = Image.fromarray(np.asarray(batch["image"][number * columns + column]))
            picture.paste(image.resize((width, height), Image.Resampling.NEAREST), (left, top))
            for at, line in enumerate(lines):
                _write(pen, (left + width + _GAP, top + at * _LINE), line)
        top += heights[number]
    return picture


def _lines(
    batch: Mapping[str, np.ndarray], row: int, tokenizer: Tokenizer, masked: bool
) -> list[list[Piece]]:
    """Returns what stands beside an image."""
    head = f"pair {batch['record'][row]}, person {batch['identity'][row]}"
    if not batch["valid"][row]:
        return [[(f"{head}: cannot be read", _NOTE)]]
    ids = batch["masked_text" if masked else "text"][row]
    predicted = np.zeros(len(ids), bool)
    chosen = batch["mlm_positions"][row][batch["mlm_mask"][row]]
    predicted[chosen] = masked
    around = np.isin(ids, [tokenizer.start, tokenizer.end, tokenizer.pad])
    real = batch["text_mask"][row] & ~around
    manners = [_SET_OFF if place else _PLAIN for place in predicted[real]]
    pieces = list(zip(tokenizer.pieces(ids[real]), manners, strict=True))
    lines = [[(head, _NOTE)], *_wrapped(pieces)]
    if masked:
        labels = batch["mlm_labels"][row][batch["mlm_mask"][row]]
        answers = [tokenizer.pieces(labels[at : at + 1])[0].strip() for at in range(len(labels))]
        note = " predicts " + " · ".join(answers)
        lines += [[], *_wrapped([(f" {word}", _NOTE) for word in note.split()])]
    return lines


def _wrapped(pieces: list[Piece]) -> list[list[Piece]]:
    """Breaks a text before pieces that begin with a space, so that lines fit their column."""
    words: list[list[Piece]] = []
    for piece in pieces:
        if not words or piece[0].startswith(" "):
            words.append([])
        words[-1].append(piece)
    lines: list[list[Piece]] = [[]]
    for word in words:
        if lines[-1] and _length([*lines[-1], *word]) > _TEXT:
            lines.append([])
        lines[-1] += word
    return lines


def _length(pieces: list[Piece]) -> float:
    return _font().getlength("".join(text for text, _ in pieces).strip())


def _write(pen: ImageDraw.ImageDraw, place: tuple[int, int], line: list[Piece]) -> None:
    left, top = place
    for number, (text, manner) in enumerate(line):
        text = text if number else text.lstrip()
        width = _font().getlength(text)
        if manner == _SET_OFF:
            blank = _font().getlength(text[: len(text) - len(text.lstrip())])
            pen.rounded_rectangle((left + blank - 2, top, left + width + 2, top + 19), 4, _MARK)
        pen.text((left, top), text, _GREY if manner == _NOTE else _INK, _font())
        left += width


@functools.cache
def _font(bold: bool = False) -> ImageFont.FreeTypeFont:
    import matplotlib  # for its font, of more scripts than Pillow's, and slow to import

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, 15)
