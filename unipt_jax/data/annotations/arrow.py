"""Arrow files, which hold the images' bytes beside their captions.

They are mapped into memory, not read into it: of the images only what is asked for is touched.
"""

import bisect
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from etils import epath

from unipt_jax.core.errors import DataError
from unipt_jax.data.annotations.records import listed

# Each column's names; all but the last must be there.
_COLUMNS = {
    "image": ("image", "image_bytes"),
    "caption": ("caption", "captions"),
    "image_id": ("image_id",),
    "split": ("split",),
}
_ROWS_AT_ONCE = 4096


def rows(file: epath.Path) -> Iterator[tuple[dict[str, Any], bool]]:
    """Yields each row without its image, and whether it has one.

    Raises:
        DataError: as `image_bytes`.
    """
    table = _open(file)
    import pyarrow as pa
    import pyarrow.compute as pc

    names = table["image_id"]
    columns = {name: table[name] for name in table.column_names} | {
        "image": pc.binary_length(table["image"]),
        "image_id": names.cast(pa.string()) if pa.types.is_integer(names.type) else names,
    }
    for batch in pa.table(columns).to_batches(_ROWS_AT_ONCE):
        for row in batch.to_pylist():
            yield row, bool(row.pop("image"))


def image_bytes(files: Sequence[epath.Path]) -> Callable[[int], bytes]:
    """Returns what reads the image of a row, counted over all files; threads may share it.

    Raises:
        DataError: pyarrow is not installed, or a file is damaged, empty or lacks a column.
    """
    images = [_open(file)["image"] for file in files]
    starts = [0, *itertools.accumulate(map(len, images))]

    def read(row: int) -> bytes:
        number = bisect.bisect_right(starts, row) - 1
        return images[number][row - starts[number]].as_py() or b""

    return read


def _open(file: epath.Path) -> Any:
    """Maps a table whose columns have the names of `_COLUMNS`, and only those."""
    try:
        import pyarrow as pa
    except ModuleNotFoundError:
        raise DataError(
            f"{file}: reading Arrow files needs pyarrow; run: pip install 'unipt-jax[arrow]'"
        ) from None
    try:
        table = pa.ipc.open_file(pa.memory_map(os.fspath(file))).read_all()
        table.validate(full=True)  # Damaged offsets would be followed anywhere.
        present = table.column_names
    except (pa.ArrowException, OSError, ValueError) as error:
        why = " ".join(str(error).split())
        raise DataError(f"{file} is no Arrow file, or damaged ({why}); fetch it again") from None
    if not len(table):
        raise DataError(f"{file} holds no row; fetch it again or move it away")
    chosen = {}
    for column, names in _COLUMNS.items():
        found = [number for number, name in enumerate(present) if name in names]
        if len(found) > 1 or (not found and column != "split"):
            raise DataError(
                f"{file} has {'several columns' if found else 'no column'} "
                f"{' or '.join(map(repr, names))} (columns found: {listed(present)})"
            )
        if found:
            chosen[column] = table.column(found[0])
    kind = chosen["image"].type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise DataError(f"{file}: its images are {kind}, not the bytes of image files (binary)")
    return pa.table(chosen)
