"""Annotation files to rows: finding them, and what each form of file holds."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from etils import epath

from unipt_jax.core.errors import DataError
from unipt_jax.core.files import is_file, read_json
from unipt_jax.data.annotations import arrow
from unipt_jax.data.annotations.layouts import Layout
from unipt_jax.data.annotations.records import listed, natural_order


class Repeated(dict):
    """An object that names something more than once; `pairs` holds all its names and values."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs


class Row(NamedTuple):
    """One entry as it was found.

    `file` is as in `Record`; `has_image` says whether the entry holds the image itself, None where
    the image is a file of its own.
    """

    value: Any
    file: str
    has_image: bool | None


def find(layout: Layout, source: epath.Path, annotations: str) -> list[epath.Path]:
    """Returns the annotation files, in natural order.

    Raises:
        DataError: there is none, or not all of those that caption the same images.
    """
    if not source.is_dir():
        raise DataError(f"source={str(source)!r}: no such directory; pass --config.source=DIR")
    patterns = (annotations,) if annotations else layout.files
    files = next(filter(None, (_matches(source, pattern) for pattern in patterns)), [])
    if not files:
        raise _not_found(layout, source, patterns)
    if layout.views and not annotations and len(files) != layout.views:
        raise DataError(
            f"{source} should have {layout.views} files of captions and has {len(files)}: "
            f"{', '.join(path.name for path in files)}. Fetch those that are missing and move "
            "others away, or name those to read with --config.annotations=PATTERN"
        )
    return files


def rows(layout: Layout, source: epath.Path, files: Sequence[epath.Path]) -> Iterator[Row]:
    """Yields what the files hold, one file in memory at a time.

    Raises:
        DataError: a file cannot be read, does not have its form, or is empty; or none of a list's
            records has the split that its layout needs.
    """
    for file in files:
        name = str(file.relative_to(source)) if len(files) > 1 else ""
        if layout.form == "arrow":
            yield from (Row(value, name, has_image) for value, has_image in arrow.rows(file))
        else:
            yield from (Row(value, name, None) for value in _entries(layout, file))


def _matches(source: epath.Path, pattern: str) -> list[epath.Path]:
    if is_file(source / pattern):
        return [source / pattern]
    try:
        files = list(filter(is_file, source.glob(pattern)))
    except (NotImplementedError, ValueError):  # An absolute or a malformed pattern.
        return []
    return sorted(files, key=lambda path: natural_order(str(path)))


def _not_found(layout: Layout, source: epath.Path, patterns: Sequence[str]) -> DataError:
    suffix = ".arrow" if layout.form == "arrow" else ".json"
    present = sorted(path.name for path in source.glob(f"*{suffix}") if is_file(path))
    hint = "Name the file with --config.annotations=FILE"
    if "split" in layout.required:
        hint += (
            "; join files of single splits into one list whose records have "
            '"split": "train", "val" or "test"'
        )
    return DataError(
        f"{source} has no {' or '.join(patterns)}; it holds "
        f"{listed(present) if present else f'no {suffix} file'}. {hint}"
    )


def _entries(layout: Layout, file: epath.Path) -> Iterable[Any]:
    content = read_json(file, _make_object)
    wanted, each = {
        "list": (list, "a list of records, one an image"),
        "object": (dict, "an object of image paths, each with its caption"),
    }[layout.form]
    if not isinstance(content, wanted) or not content:
        kind = "object" if isinstance(content, dict) else type(content).__name__
        found = f"an empty {layout.form}" if content == wanted() else f"a JSON {kind}"
        raise DataError(f"{file} is {found}; it must be {each}")
    if layout.form == "object":
        pairs = content.pairs if isinstance(content, Repeated) else content.items()
        return ({"image": path, "caption": caption} for path, caption in pairs)
    if "split" in layout.required:
        _require_splits(content, layout, file)
    return content


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    return fields if len(fields) == len(pairs) else Repeated(pairs)


def _require_splits(entries: list[Any], layout: Layout, file: epath.Path) -> None:
    fields = sorted({name for row in entries if isinstance(row, dict) for name in row})
    if "split" not in fields:
        raise DataError(
            f"{file}: no record has the field 'split' (fields found: {listed(fields)}). Take "
            f"the published file with splits ({layout.files[0]}), or add "
            '"split": "train", "val" or "test" to each record'
        )
