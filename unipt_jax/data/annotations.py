"""Annotation files of the benchmarks, and of one's own pairs, to checked records.

Every fault and oddity is collected; none is mended or skipped in silence. Four layouts are read,
each a JSON list of records (UTF-8, with or without a byte-order mark):

    cuhk_pedes  `reid_raw.json`; images below `imgs/`
    icfg_pedes  `ICFG-PEDES.json`; images below `imgs/`
    rstp_reid   `data_captions.json`; images below `imgs/`
                each with `{"file_path" or "img_path", "captions": [str, ...], "id", "split"}`
    pairs       `pairs.json`; `{"image": path below the source, "captions": [str, ...] or
                "caption": str}`, and optionally "identity" (str or int; without it an image is its
                own) and "split" ("train" if absent)

Rules that hold for all of them:

* `split` is one of `SPLIT_ALIASES`, in any case; anything else is a fault.
* An identity's name is its text: 2 and "2" are one person, "0002" is another.
* An identity belongs to one split. Where it is in several, its records of the split that comes
  first among test, val, train stay and the others are faulty.
* An image belongs to one identity. Listed again with the same one, its captions are joined.
* Paths are relative to the source and never leave it by their text; backslashes count as slashes.
  Symbolic links are followed, since image folders are often linked to another disk.
"""

import dataclasses
import re
import reprlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np
from etils import epath

from unipt_jax.core.errors import DataError
from unipt_jax.core.files import read_json

SPLITS = ("train", "val", "test")
SPLIT_ALIASES: Mapping[str, str] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}

MISSING_IMAGE = "image file is missing"
BACKSLASHES = "backslashes in the image path were read as slashes"
CJK_CAPTION = "caption holds CJK or full-width characters"
LITERAL_CAPTION = "caption holds the text of a Python list"
SHARED_CAPTION = "caption also describes another identity"
JOINED_IMAGE = "image is listed again; its captions were joined to the first record's"

# CJK punctuation, kana, ideographs, Hangul, and full-width forms (RSTPReid holds some).
_CJK = re.compile(
    r"[\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef]"
)
_LITERAL = re.compile(r"\[\s*(['\"]).*\1\s*,?\s*\]", re.DOTALL)
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_DRIVE = re.compile(r"[A-Za-z]:")


@dataclasses.dataclass(frozen=True)
class Record:
    """One image with its captions.

    `image` is a POSIX path relative to the source; `identity` starts with the data set's name
    ("cuhk_pedes/12"); `split` is one of `SPLITS`; `position` counts from 0 in the annotation file.
    """

    image: str
    captions: tuple[str, ...]
    identity: str
    split: str
    position: int


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is wrong ("fault") or odd but kept ("notice") with a record of the annotation file."""

    record: int
    image: str
    what: str
    kind: Literal["fault", "notice"]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where a data set keeps what; `folder` is where its image paths start."""

    files: tuple[str, ...]
    folder: str
    image: tuple[str, ...] = ("file_path", "img_path")
    captions: tuple[str, ...] = ("captions",)
    identity: str = "id"
    complete: bool = True  # Identity and split are required.


LAYOUTS: Mapping[str, Layout] = {
    "cuhk_pedes": Layout(("reid_raw.json", "caption_all.json", "captions.json"), "imgs"),
    "icfg_pedes": Layout(("ICFG-PEDES.json", "ICFG_PEDES.json"), "imgs"),
    "rstp_reid": Layout(("data_captions.json",), "imgs"),
    "pairs": Layout(
        ("pairs.json",), "", ("image",), ("captions", "caption"), "identity", complete=False
    ),
}


@dataclasses.dataclass
class _Draft:
    """A record whose split may still be open (None)."""

    image: str
    captions: tuple[str, ...]
    identity: str
    split: str | None
    position: int


def read(
    dataset: str,
    source: epath.PathLike,
    annotations: str = "",
    *,
    validation: float = 0.0,
    seed: int = 0,
) -> tuple[list[Record], list[Problem]]:
    """Reads and checks an annotation file, and that each of its images is there.

    Args:
        dataset: a key of `LAYOUTS`.
        source: directory of annotation file and images.
        annotations: annotation file inside `source`; empty: the layout's usual names.
        validation: share in [0, 1] of the records without a split that go to "val"; whole
            identities are drawn until the share is reached.
        seed: of that draw.

    Returns:
        The records without a fault, and all faults and notices, both in the file's order.

    Raises:
        DataError: the source or the annotation file is missing, is not a JSON list of records,
            has no splits although its layout needs them, or leaves nothing to draw `validation`
            from.
    """
    layout = LAYOUTS[dataset]
    source = epath.Path(source)
    file = _find_annotations(layout, source, annotations)
    rows = _check_rows(read_json(file), layout, file)
    drafts, problems = [], []
    for position, row in enumerate(rows):
        draft, found = _parse(row, layout, dataset, position, source)
        drafts += [draft] if draft else []
        problems += found
    if validation and drafts and all(draft.split for draft in drafts):
        raise DataError(
            f"validation={validation} is a share of the records without a split, but every record "
            f"of {file} has one; pass --config.validation=0"
        )
    drafts, found = _without_ambiguous_images(drafts)
    problems += found
    _fill_splits(drafts, validation, seed)
    drafts, found = _without_overlaps(drafts)
    problems += found
    records, found = _joined(drafts)
    problems += found
    if layout.complete:
        problems += _shared_captions(records)
    return records, sorted(problems, key=lambda problem: problem.record)


def missing_by_folder(problems: Iterable[Problem]) -> dict[str, int]:
    """Counts missing images by the first two folders of their paths ("imgs/Market": 3)."""
    folders = (
        "/".join(PurePosixPath(problem.image).parts[:-1][:2]) or "."
        for problem in problems
        if problem.what == MISSING_IMAGE
    )
    return dict(sorted(Counter(folders).items()))


def natural_order(text: str) -> tuple[list[tuple[int, int | str]], str]:
    """Returns a sort key by which "id/2" comes before "id/10"; distinct texts never tie."""
    pieces = re.split(r"([0-9]+)", text)
    return [(0, int(piece)) if piece.isdecimal() else (1, piece) for piece in pieces], text


# ---------------------------------------------------------------------------- the file


def _find_annotations(layout: Layout, source: epath.Path, annotations: str) -> epath.Path:
    if not source.is_dir():
        raise DataError(f"source={str(source)!r}: no such directory; pass --config.source=DIR")
    for name in (annotations,) if annotations else layout.files:
        if (source / name).is_file():
            return source / name
    wanted = annotations or " or ".join(layout.files)
    present = sorted(path.name for path in source.glob("*.json")) or ["no .json file"]
    raise DataError(
        f"{source} has no {wanted}; it holds {', '.join(present)}. Name the file with "
        "--config.annotations=FILE; join files of single splits into one list whose records "
        'have "split": "train", "val" or "test"'
    )


def _check_rows(rows: Any, layout: Layout, file: epath.Path) -> list[Any]:
    if not isinstance(rows, list) or not rows:
        kind = "an empty list" if rows == [] else f"a JSON {type(rows).__name__}"
        raise DataError(f"{file} is {kind}; it must be a list of records, one an image")
    fields = sorted({name for row in rows if isinstance(row, dict) for name in row})
    if layout.complete and "split" not in fields:
        raise DataError(
            f"{file}: no record has the field 'split' (fields found: {', '.join(fields)}). Take "
            f"the published file with splits ({layout.files[0]}), or add "
            '"split": "train", "val" or "test" to each record'
        )
    return rows


# ---------------------------------------------------------------------------- one record


def _parse(
    row: Any, layout: Layout, dataset: str, position: int, source: epath.Path
) -> tuple[_Draft | None, list[Problem]]:
    """Returns the record, or None where it has a fault, and what was found."""
    if not isinstance(row, dict):
        what = f"is {reprlib.repr(row)}, not an object with fields"
        return None, [Problem(position, "", what, "fault")]
    faults: list[str] = []
    notices: list[str] = []
    path = _parse_path(row, layout.image, faults, notices)
    captions = _parse_captions(row, layout.captions, faults, notices)
    identity = _parse_identity(row, layout, faults)
    split = _parse_split(row, layout, faults)
    image = path
    if path:
        image, exists = _locate(path, layout.folder, source)
        faults += [] if exists else [MISSING_IMAGE]
    problems = [Problem(position, image, what, "fault") for what in faults]
    problems += [Problem(position, image, what, "notice") for what in notices]
    if faults:
        return None, problems
    name = f"{dataset}/image:{image}" if identity is None else f"{dataset}/{identity}"
    return _Draft(image, captions, name, split, position), problems


def _pick(row: dict[str, Any], names: Sequence[str], faults: list[str]) -> Any:
    """Returns the value under the one of `names` that the record has, or None with a fault."""
    found = {name: row[name] for name in names if name in row}
    if not found:
        fields = ", ".join(map(str, row)) or "none"
        faults.append(f"has no field {' or '.join(map(repr, names))} (fields found: {fields})")
        return None
    name, value = next(iter(found.items()))
    if any(other != value for other in found.values()):
        faults.append(f"has {' and '.join(map(repr, found))} with different values; keep one")
        return None
    if value is None:
        faults.append(f"field {name!r} is null; give it a value")
    return value


def _parse_path(
    row: dict[str, Any], names: Sequence[str], faults: list[str], notices: list[str]
) -> str:
    value = _pick(row, names, faults)
    if value is None:
        return ""
    if not isinstance(value, str) or not value.strip() or _SURROGATE.search(value) or "\0" in value:
        faults.append(f"image path is {reprlib.repr(value)}; give a path relative to the source")
        return ""
    # Checked after normalisation: "..\\x" must not slip through.
    path = PurePosixPath(value.replace("\\", "/"))
    if path.is_absolute() or _DRIVE.match(value) or ".." in path.parts or not path.name:
        faults.append(
            f"image path {value!r} is absolute or leaves the source; give a path relative to it"
        )
        return ""
    if "\\" in value:
        notices.append(BACKSLASHES)
    return str(path)


def _locate(path: str, folder: str, source: epath.Path) -> tuple[str, bool]:
    """Returns the path relative to the source, and whether a file is there."""
    below = str(PurePosixPath(folder) / path)
    for candidate in (below, path):
        if (source / candidate).is_file():
            return candidate, True
    return path if PurePosixPath(path).parts[0] == folder else below, False


def _parse_captions(
    row: dict[str, Any], names: Sequence[str], faults: list[str], notices: list[str]
) -> tuple[str, ...]:
    value = _pick(row, names, faults)
    if value is None:
        return ()
    captions = [value] if isinstance(value, str) else value
    if not isinstance(captions, list):
        faults.append(f"captions are {reprlib.repr(value)}; give a list of strings")
        return ()
    if not captions:
        faults.append("has an empty list of captions; give at least one")
    for number, caption in enumerate(captions):
        if not isinstance(caption, str):
            faults.append(f"caption {number} is {reprlib.repr(caption)}, not a string")
        elif not caption.strip():
            faults.append(f"caption {number} is empty; write one or remove it")
        elif _SURROGATE.search(caption):
            faults.append(f"caption {number} holds half a surrogate pair; write it in UTF-8")
        else:
            notices += [CJK_CAPTION] if _CJK.search(caption) else []
            notices += [LITERAL_CAPTION] if _LITERAL.search(caption) else []
    return tuple(caption for caption in captions if isinstance(caption, str))


def _parse_identity(row: dict[str, Any], layout: Layout, faults: list[str]) -> str | None:
    if not layout.complete and layout.identity not in row:
        return None
    value = _pick(row, (layout.identity,), faults)
    is_int = isinstance(value, int) and not isinstance(value, bool)
    text = str(value).strip() if is_int or isinstance(value, str) else ""
    if value is not None and (not text or _SURROGATE.search(text)):
        faults.append(
            f"field {layout.identity!r} is {reprlib.repr(value)}; give an integer or a string"
        )
    return text


def _parse_split(row: dict[str, Any], layout: Layout, faults: list[str]) -> str | None:
    if not layout.complete and "split" not in row:
        return None
    before = len(faults)
    value = _pick(row, ("split",), faults)
    split = SPLIT_ALIASES.get(value.strip().lower()) if isinstance(value, str) else None
    if split is None and len(faults) == before:
        faults.append(
            f"field 'split' is {reprlib.repr(value)}; known, in any case: "
            f"{', '.join(SPLIT_ALIASES)}"
        )
    return split


# ---------------------------------------------------------------------------- between records


def _without_ambiguous_images(drafts: list[_Draft]) -> tuple[list[_Draft], list[Problem]]:
    """Removes every record of an image that is listed under several identities."""
    identities = defaultdict(set)
    for draft in drafts:
        identities[draft.image].add(draft.identity)
    kept = [draft for draft in drafts if len(identities[draft.image]) == 1]
    problems = []
    for draft in drafts:
        if len(identities[draft.image]) > 1:
            names = ", ".join(sorted(identities[draft.image], key=natural_order))
            what = f"image is listed under several identities ({names}); keep the right one"
            problems.append(Problem(draft.position, draft.image, what, "fault"))
    return kept, problems


def _fill_splits(drafts: list[_Draft], validation: float, seed: int) -> None:
    """Gives open records a split: "val" for the drawn identities, "train" for the others."""
    settled = {draft.identity for draft in drafts if draft.split is not None}
    sizes = Counter(
        draft.identity for draft in drafts if draft.split is None and draft.identity not in settled
    )
    names = sorted(sizes, key=natural_order)
    wanted, drawn = validation * sum(sizes.values()), set()
    for number in np.random.default_rng(seed).permutation(len(names)):
        if wanted <= 0:
            break
        drawn.add(names[number])
        wanted -= sizes[names[number]]
    for draft in drafts:
        if draft.split is None:
            draft.split = "val" if draft.identity in drawn else "train"


def _without_overlaps(drafts: list[_Draft]) -> tuple[list[_Draft], list[Problem]]:
    """Keeps each identity in one split; evaluation first, so that test sets stay whole."""
    splits = defaultdict(set)
    for draft in drafts:
        splits[draft.identity].add(draft.split)
    home = {name: max(present, key=SPLITS.index) for name, present in splits.items()}
    problems = [
        Problem(
            draft.position,
            draft.image,
            f"identity {draft.identity} of split {draft.split!r} is also in split "
            f"{home[draft.identity]!r}; give each identity one split, and different persons "
            "different names",
            "fault",
        )
        for draft in drafts
        if draft.split != home[draft.identity]
    ]
    return [draft for draft in drafts if draft.split == home[draft.identity]], problems


def _joined(drafts: list[_Draft]) -> tuple[list[Record], list[Problem]]:
    """Makes one record an image; in a gallery, an image listed twice would be found twice."""
    first: dict[str, _Draft] = {}
    problems = []
    for draft in drafts:
        if draft.image not in first:
            first[draft.image] = draft
            continue
        kept = first[draft.image]
        kept.captions += draft.captions
        problems.append(Problem(draft.position, draft.image, JOINED_IMAGE, "notice"))
    return [Record(**dataclasses.asdict(draft)) for draft in first.values()], problems


def _shared_captions(records: list[Record]) -> list[Problem]:
    identities = defaultdict(set)
    for record in records:
        for caption in record.captions:
            identities[caption.strip()].add(record.identity)
    return [
        Problem(record.position, record.image, SHARED_CAPTION, "notice")
        for record in records
        for caption in record.captions
        if len(identities[caption.strip()]) > 1
    ]
