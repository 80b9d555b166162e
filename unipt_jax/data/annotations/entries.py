"""One entry of an annotation file to a draft of a record, and what is wrong or odd with it."""

import re
import reprlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Any

from etils import epath

from unipt_jax.core.files import is_file
from unipt_jax.data.annotations.files import Repeated, Row
from unipt_jax.data.annotations.layouts import SPLIT_ALIASES, Layout
from unipt_jax.data.annotations.records import (
    BACKSLASHES,
    BROKEN_CAPTION,
    CJK_CAPTION,
    EMPTY_IMAGE,
    LITERAL_CAPTION,
    MISSING_IMAGE,
    Draft,
    Problem,
    listed,
)

# CJK punctuation, kana, ideographs, Hangul, and full-width forms (RSTPReid holds some).
_CJK = re.compile(
    r"[\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef]"
)
# What else separates words stays: captions may have several lines.
_BROKEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd]")
_LITERAL = re.compile(r"\[\s*(['\"]).*\1\s*,?\s*\]", re.DOTALL)
# "[hair description]" and "<hair>": what a language model left of its instructions.
_TEMPLATE = re.compile(r"description\]|<")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_DRIVE = re.compile(r"[A-Za-z]:")
_PATHS = reprlib.Repr()
_PATHS.maxstring = 200  # All folders of a path count.
# With it begin the names of those who are only known by their image.
_OWN_IMAGE = "image:"


def parse(
    row: Row, layout: Layout, dataset: str, position: int, source: epath.Path
) -> tuple[Draft | None, list[Problem]]:
    """Returns the record, or None where it has a fault, and what was found."""
    fields = row.value
    if not isinstance(fields, dict):
        what = f"is {reprlib.repr(fields)}, not an object with fields"
        return None, [Problem(position, "", what, "fault", row.file)]
    faults: list[str] = []
    if isinstance(fields, Repeated):
        names = Counter(name for name, _ in fields.pairs)
        twice = listed([repr(name) for name, count in names.items() if count > 1])
        faults.append(f"names {twice} more than once; keep one of each")
    notices: list[str] = []
    path = _parse_path(fields, layout, faults, notices)
    captions = _parse_captions(fields, layout, faults, notices)
    identity = _parse_identity(fields, layout, faults)
    split = _parse_split(fields, layout, faults)
    image = path
    if row.has_image is None and path:
        image, exists = _locate(path, layout, source)
        faults += [] if exists else [MISSING_IMAGE]
    elif row.has_image is False:
        faults.append(EMPTY_IMAGE)
    name = f"{dataset}/{_OWN_IMAGE}{image}" if identity is None else f"{dataset}/{identity}"
    draft = Draft(image, captions, name, split, position, row.file)
    problems = [draft.problem(what, "fault") for what in faults]
    problems += [draft.problem(what, "notice") for what in notices]
    return None if faults else draft, problems


def _pick(fields: dict[str, Any], names: Sequence[str], faults: list[str]) -> Any:
    """Returns the value under the one of `names` that the record has, or None with a fault."""
    found = {name: fields[name] for name in names if name in fields}
    if not found:
        faults.append(
            f"has no field {' or '.join(map(repr, names))} (fields found: {listed(list(fields))})"
        )
        return None
    (name, value), *others = found.items()
    if any(other != value for _, other in others):
        faults.append(f"has {' and '.join(map(repr, found))} with different values; keep one")
        return None
    if value is None:
        faults.append(f"field {name!r} is null; give it a value")
        return None
    return value


def _parse_path(
    fields: dict[str, Any], layout: Layout, faults: list[str], notices: list[str]
) -> str:
    value = _pick(fields, layout.image, faults)
    if value is None:
        return ""
    if not isinstance(value, str) or _is_blank(value) or _SURROGATE.search(value) or "\0" in value:
        faults.append(f"image path is {reprlib.repr(value)}; give a path relative to the source")
        return ""
    # Checked after normalisation: "..\\x" must not slip through.
    path = PurePosixPath(value.replace("\\", "/"))
    outside = path.is_absolute() or bool(_DRIVE.match(str(path))) or ".." in path.parts
    if outside and layout.views:
        path = PurePosixPath(path.name)  # Such files name images on the machine that wrote them.
        outside = path.name == ".."
    if outside or not path.name:
        faults.append(
            f"image path {_PATHS.repr(value)} is absolute or leaves the source; give a path "
            "relative to it"
        )
        return ""
    if "\\" in value:
        notices.append(BACKSLASHES)
    return str(path)


def _locate(path: str, layout: Layout, source: epath.Path) -> tuple[str, bool]:
    """Returns the path relative to the source, and whether a file is there."""
    name = PurePosixPath(path).name if layout.views else path
    usual = str(PurePosixPath(layout.folder) / name)
    for candidate in dict.fromkeys((usual, path, name)):
        if is_file(source / candidate):
            return candidate, True
    return path if PurePosixPath(path).parts[0] == layout.folder else usual, False


def _parse_captions(
    fields: dict[str, Any], layout: Layout, faults: list[str], notices: list[str]
) -> list[str]:
    value = _pick(fields, layout.captions, faults)
    if value is None:
        return []
    captions = [value] if isinstance(value, str) else value
    if not isinstance(captions, list):
        faults.append(f"captions are {reprlib.repr(value)}; give a list of strings")
        return []
    if not captions:
        faults.append("has an empty list of captions; give at least one")
    for number, caption in enumerate(captions):
        if not isinstance(caption, str):
            faults.append(f"caption {number} is {reprlib.repr(caption)}, not a string")
        elif _SURROGATE.search(caption):
            faults.append(f"caption {number} holds half a surrogate pair; write it in UTF-8")
        elif _is_blank(caption):
            faults.append(f"caption {number} is empty; write one or remove it")
        elif layout.templates and (leak := _TEMPLATE.search(caption)):
            faults.append(
                f"caption {number} holds {leak.group()!r}, a piece of the template it was to be "
                "written by; write another or remove it"
            )
        else:
            notices += [BROKEN_CAPTION] if _BROKEN.search(caption) else []
            notices += [CJK_CAPTION] if _CJK.search(caption) else []
            notices += [LITERAL_CAPTION] if _LITERAL.search(caption) else []
    return [caption for caption in captions if isinstance(caption, str)]


def _parse_identity(fields: dict[str, Any], layout: Layout, faults: list[str]) -> str | None:
    if _is_left_out(layout.identity, fields, layout.required):
        return None
    value = _pick(fields, (layout.identity,), faults)
    is_int = isinstance(value, int) and not isinstance(value, bool)
    text = str(value).strip() if is_int or isinstance(value, str) else ""
    if value is not None and (_is_blank(text) or _SURROGATE.search(text)):
        faults.append(
            f"field {layout.identity!r} is {reprlib.repr(value)}; give an integer or a string"
        )
    elif text.startswith(_OWN_IMAGE):
        faults.append(
            f"field {layout.identity!r} is {reprlib.repr(value)}; names that begin with "
            f"{_OWN_IMAGE!r} are those of images without one"
        )
    return text


def _parse_split(fields: dict[str, Any], layout: Layout, faults: list[str]) -> str | None:
    if _is_left_out("split", fields, layout.required):
        return None
    before = len(faults)
    value = _pick(fields, ("split",), faults)
    split = SPLIT_ALIASES.get(value.strip().lower()) if isinstance(value, str) else None
    if split is None and len(faults) == before:
        faults.append(
            f"field 'split' is {reprlib.repr(value)}; known, in any case: "
            f"{', '.join(SPLIT_ALIASES)}"
        )
    return split


def _is_blank(text: str) -> bool:
    """Tells whether nobody could see the text: spaces, control and zero-width characters."""
    return not any(each.isprintable() and not each.isspace() for each in text)


def _is_left_out(name: str, fields: Iterable[str], required: Iterable[str]) -> bool:
    return not name or (name not in fields and name not in required)
