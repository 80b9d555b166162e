"""What annotations become: records, and what is wrong or odd with them."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Literal

SPLITS = ("train", "val", "test")

MISSING_IMAGE = "image file is missing"
EMPTY_IMAGE = "image column is null or holds no bytes"
OTHER_IMAGE = "image_id is that of an earlier record with other bytes; give each image its own"
BACKSLASHES = "backslashes in the image path were read as slashes"
BROKEN_CAPTION = "caption holds control characters or U+FFFD, as a wrong encoding leaves them"
CJK_CAPTION = "caption holds CJK or full-width characters"
LITERAL_CAPTION = "caption holds the text of a Python list"
SHARED_CAPTION = "caption also describes another identity"
JOINED_IMAGE = "image is listed again; its captions were joined to the first record's"


@dataclasses.dataclass(frozen=True)
class Record:
    """One image with its captions.

    `image` is a POSIX path relative to the source; `identity` starts with the data set's name
    ("cuhk_pedes/12"), empty is one that no other record has; `split` is one of `SPLITS`;
    `position` counts from 0 over all annotation files; `file` is the one that holds the record,
    relative to the source, empty if there is but one.
    """

    image: str
    captions: tuple[str, ...]
    identity: str
    split: str
    position: int
    file: str = ""


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is wrong ("fault") or odd but kept ("notice") with a record, by its position."""

    record: int
    image: str
    what: str
    kind: Literal["fault", "notice"]
    file: str = ""


@dataclasses.dataclass(slots=True)
class Draft:
    """A record whose captions may still grow and whose split may still be open (None)."""

    image: str
    captions: list[str]
    identity: str
    split: str | None
    position: int
    file: str

    def problem(self, what: str, kind: Literal["fault", "notice"]) -> Problem:
        """Returns a problem of this record."""
        return Problem(self.position, self.image, what, kind, self.file)


def missing_by_folder(problems: Iterable[Problem]) -> dict[str, int]:
    """Counts missing images by the first two folders of their paths ("imgs/Market": 3)."""
    folders = (
        "/".join(PurePosixPath(problem.image).parts[:-1][:2]) or "."
        for problem in problems
        if problem.what == MISSING_IMAGE
    )
    return dict(sorted(Counter(folders).items()))


def natural_order(text: str) -> tuple[list[tuple[int | str, ...]], str]:
    """Returns a sort key by which "id/2" comes before "id/10"; distinct texts never tie."""
    pieces = re.split(r"([0-9]+)", text)
    return [(0, *_size(piece)) if piece.isdecimal() else (1, piece) for piece in pieces], text


def _size(digits: str) -> tuple[int, str]:
    """Returns what sorts as the number does, of which `int` reads a few thousand digits alone."""
    significant = digits.lstrip("0")
    return len(significant), significant


def listed(names: Sequence[str]) -> str:
    """Returns names for a message: the first twenty, shortened, and how many more there are."""
    first = ", ".join(name if len(name) <= 60 else f"{name[:60]}..." for name in names[:20])
    return (first or "none") + (f" and {len(names) - 20} more" if len(names) > 20 else "")
