"""A folder's images as rows on disk: encoded once, then mapped into memory.

Rows are only ever added, to `features.f32` and then to `images.jsonl`, so that a build that was
killed goes on where it was: what lies beyond the last whole row of both is cut off. A file that was
changed gets a new row, one that was removed loses its own the next time the folder is looked at.
"""

import array
import contextlib
import dataclasses
import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Float, Int

from unipt_jax.captioning import lexicon, sources
from unipt_jax.captioning.captioner import Captioner
from unipt_jax.captioning.runner import Progress, load_batches
from unipt_jax.core.errors import DataError
from unipt_jax.core.files import append_json_lines, is_aside, read_json, write_json
from unipt_jax.core.sharding import batch_sharding, make_mesh
from unipt_jax.data import images
from unipt_jax.encoder import Encoder
from unipt_jax.search.neighbours import APPROXIMATE

FEATURES, ROWS, ORIGIN = "features.f32", "images.jsonl", "index.json"

_FORMAT = 1
_LINE = 4096  # bytes; a row with 14 attributes has about half of that


class Rows(Sequence[dict[str, Any]]):
    """Lines of `images.jsonl`, each read when it is asked for: a million stay on disk."""

    def __init__(self, path: Path, starts: np.ndarray):
        self._content = np.memmap(path, np.uint8, "r")
        self._starts = starts

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, number: Any) -> Any:
        start = int(self._starts[number])
        length = _LINE
        while True:  # Until the line's end is in sight.
            piece = self._content[start : start + length].tobytes()
            line, ended, _ = piece.partition(b"\n")
            if ended or len(piece) < length:
                return json.loads(line)
            length *= 2


@dataclasses.dataclass(frozen=True)
class Index:
    """The images of a folder that could be read, in the order in which they were first seen.

    Attributes:
        folder: where the images are.
        place: the index's directory.
        features: float32[rows, D], unit rows, mapped into memory; superseded rows among them.
        numbers: int64[N], each image's row in `features`, ascending.
        rows: for each image what `images.jsonl` says of it: `image`, its path relative to the
            folder, and `caption` and `attributes` if there was a captioner.
        phrases: of each attribute the phrases that were chosen, and int16[N], which of them holds
            of each image, -1 for none; empty without a captioner.
        faults: what is wrong with each of the images that could not be read.
    """

    folder: Path
    place: Path
    features: Float[np.ndarray, "rows D"]
    numbers: Int[np.ndarray, " N"]
    rows: Rows
    phrases: Mapping[str, tuple[tuple[str, ...], Int[np.ndarray, " N"]]]
    faults: tuple[str, ...]


def build(
    folder: Path,
    place: Path,
    encoder: Encoder,
    captioner: Captioner | None = None,
    *,
    batch_size: int = 64,
) -> Index:
    """Brings the index in the directory `place` up to date with a folder, and opens it.

    Args:
        folder: images, at any depth.
        place: made if it is not there; of several processes that share it one builds at a time.
        encoder: gives the features.
        captioner: writes a caption and attributes for each image; None writes neither.
        batch_size: images at a time, over all local devices, of which it becomes a multiple.

    Raises:
        DataError: `folder` is none, or holds no image that can be read; the model gives an
            embedding that is not finite; or `place` cannot be written to, or holds an index of
            another model, captioner or folder, or something else.
        OSError: the storage fails; the next build goes on where this one ended.
    """
    if not folder.is_dir():
        raise DataError(f"images={folder}: no such folder")
    folder = folder.resolve()  # The working directory may be another when an image is shown.
    origin = {
        "format": _FORMAT,
        "folder": os.fsencode(folder).decode("utf-8", "backslashreplace"),
        "model": encoder.fingerprint,
        "captioner": captioner.fingerprint if captioner else None,
        "lexicon": lexicon.fingerprint() if captioner else None,
    }
    width = encoder.model.spec.embedding_dim
    _require_index(place)
    with _alone(place):
        _require_same(place, origin)
        others: Counter[str] = Counter()
        stamps = {path: _stamp(folder / path) for path in sources.walk(folder, others)}
        if not stamps:
            raise sources.no_image(str(folder))
        table = _Table(array.array("q"), {}, {}, {}, {}, {})
        _read_on(table, place, width)
        new = [path for path, stamp in stamps.items() if table.stamps.get(path) != stamp]
        if new:
            sources.log_others(others)
            _add(
                folder, place, {path: stamps[path] for path in new}, encoder, captioner, batch_size
            )
            _read_on(table, place, width)
    live = np.sort(np.array([table.latest[path] for path in stamps], np.int64))
    well = live[[number not in table.faults for number in live.tolist()]]
    faults = tuple(table.faults[number] for number in live.tolist() if number in table.faults)
    if not len(well):
        raise DataError(f"none of the {len(live)} images can be read; first: {faults[0]}")
    shape = (len(table.starts), width)
    return Index(
        folder,
        place,
        np.memmap(place / FEATURES, np.float32, "r", shape=shape),
        well,
        Rows(place / ROWS, np.array(table.starts, np.int64)[well]),
        {name: (labels, codes[well]) for name, (labels, codes) in table.phrases().items()},
        faults,
    )


@contextlib.contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Lets one process at a time write to an index; one that cannot does not wait."""
    with contextlib.ExitStack() as stack:
        try:
            place.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((place / "lock").open("w"))
        except OSError as error:
            if not (place / ORIGIN).exists():
                raise DataError(
                    f"{place} cannot hold an index ({error.strerror}); name another directory: "
                    "--workdir, or index_directory"
                ) from None
        else:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _require_index(place: Path) -> None:
    """Checks, before anything is written there, that a directory is an index, empty or new."""
    names = sorted(child.name for child in place.iterdir()) if place.is_dir() else []
    others = [name for name in names if name != "lock" and not is_aside(name)]
    # Asked after the names, since another process may be making the index: this is its first file.
    if others and not (place / ORIGIN).exists():
        raise DataError(
            f"{place} is no index: it holds {others[0]}; name an empty or a new directory"
        )


def _require_same(place: Path, origin: dict[str, Any]) -> None:
    """Checks that an index was made of the same things, and marks a new one."""
    path = place / ORIGIN
    if not path.exists():
        write_json(path, origin)
    before = read_json(path)
    if not isinstance(before, dict):
        raise DataError(f"{path} is damaged; remove {place} and index again")
    changed = [name for name, value in origin.items() if before.get(name) != value]
    if changed:
        raise DataError(
            f"{place} is the index of another {' and '.join(changed)}; name another directory, or "
            "remove this one"
        )


@dataclasses.dataclass
class _Table:
    """What is kept in memory of all rows, superseded ones among them."""

    starts: array.array  # Of the lines, in bytes.
    latest: dict[str, int]  # The last row of a path is its newest.
    stamps: dict[str, list[int]]
    faults: dict[int, str]
    labels: dict[str, dict[str, int]]
    codes: dict[str, array.array]
    end: int = 0  # Of the last line.

    def phrases(self) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
        return {
            name: (tuple(labels), np.array(self.codes[name], np.int16))
            for name, labels in self.labels.items()
        }


def _read_on(table: _Table, place: Path, width: int) -> None:
    """Reads rows after the last, if both files hold them whole, and cuts off what a kill left."""
    features, lines = place / FEATURES, place / ROWS
    for path in (features, lines):
        if not path.exists():
            path.touch()
    whole = features.stat().st_size // (4 * width)
    with lines.open("rb") as file:
        file.seek(table.end)
        for number, line in enumerate(file, len(table.starts)):
            if number == whole or not line.endswith(b"\n"):
                break
            table.starts.append(table.end)
            table.end += len(line)
            try:
                _note(table, number, json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                raise DataError(
                    f"{lines}: line {number + 1} is damaged; remove {place} and index again"
                ) from None
    for path, size in ((features, 4 * width * len(table.starts)), (lines, table.end)):
        if path.stat().st_size > size:
            os.truncate(path, size)
            (place / APPROXIMATE).unlink(missing_ok=True)  # It may know rows that are gone.


def _note(table: _Table, number: int, row: Mapping[str, Any]) -> None:
    table.latest[row["image"]], table.stamps[row["image"]] = number, row["stamp"]
    if "fault" in row:
        table.faults[number] = row["fault"]
    attributes = row.get("attributes", {})
    for name in attributes.keys() - table.labels.keys():
        table.labels[name], table.codes[name] = {}, array.array("h", [-1] * number)
    for name, labels in table.labels.items():
        phrase = attributes.get(name, {}).get("phrase")
        table.codes[name].append(labels.setdefault(phrase, len(labels)) if phrase else -1)


def _stamp(path: Path) -> list[int]:
    """Tells a file from what it was before it was changed: bytes, and nanoseconds of its clock."""
    try:
        status = path.stat()
    except OSError:  # A link to nowhere; reading it says so.
        return []
    return [status.st_size, status.st_mtime_ns]


def _add(
    folder: Path,
    place: Path,
    stamps: Mapping[str, list[int]],
    encoder: Encoder,
    captioner: Captioner | None,
    batch_size: int,
) -> None:
    """Encodes images and appends their rows, a batch at a time."""
    mesh = make_mesh(devices=jax.local_devices())
    split = batch_sharding(mesh)
    params = jax.device_put(encoder.params, NamedSharding(mesh, PartitionSpec()))
    rows = -(-batch_size // mesh.size) * mesh.size
    load = _Load(
        folder,
        tuple(stamps),
        rows,
        encoder.model.spec.image.image_size,
        captioner.image_size if captioner else None,
    )
    progress = Progress("indexed", len(stamps))
    with contextlib.closing(load_batches(load, [range(len(stamps))], rows)) as batches:
        for batch in batches:
            embedding = encoder.embed_images(params, jax.device_put(batch["image"], split))
            judged = captioner.judge(batch["judged"]) if captioner else ()
            judged = [np.asarray(column) for column in judged]
            embedding = np.asarray(embedding, np.float32)
            lines = []
            for at, (path, fault) in enumerate(zip(batch["paths"], batch["faults"], strict=True)):
                line: dict[str, Any] = {"image": path, "stamp": stamps[path]}
                if fault:
                    line["fault"] = str(fault)
                    if isinstance(fault, _UnreadError):
                        line["stamp"] = []  # To be tried again: the file need not change for it.
                elif not np.isfinite(embedding[at]).all():
                    raise DataError(
                        f"{path}: the model's embedding of it is not finite; its parameters are "
                        "damaged, or its arithmetic overflows"
                    )
                elif captioner:
                    line |= captioner.row(path, *(column[at] for column in judged))
                lines.append(line)
            try:
                with (place / FEATURES).open("ab") as file:
                    file.write(embedding[: len(lines)].tobytes())
                append_json_lines(place / ROWS, lines)
            except OSError as error:  # A full disk does not say where.
                raise OSError(error.errno, error.strerror, str(place)) from None
            progress.advance(len(lines))


class _UnreadError(DataError):
    """An image could not be read, and perhaps can be the next time."""


@dataclasses.dataclass(frozen=True)
class _Load:
    """Maps the numbers of a batch to pixels for the model and the captioner, padded to `rows`."""

    folder: Path
    names: Sequence[str]
    rows: int
    size: tuple[int, int]
    judged_size: tuple[int, int] | None

    def __call__(self, numbers: Sequence[int]) -> dict[str, Any]:
        """Reads, decodes and resizes."""
        image = np.zeros((self.rows, *self.size, 3), np.uint8)
        judged = np.zeros((self.rows, *(self.judged_size or (0, 0)), 3), np.uint8)
        faults: list[DataError | None] = [None] * len(numbers)
        for row, number in enumerate(numbers):
            try:
                name = self.names[number]
                decoded = images.decode(read(self.folder, name), name)
            except DataError as error:
                faults[row] = error
                continue
            image[row] = images.resize(decoded, *self.size)
            if self.judged_size:
                judged[row] = images.resize(decoded, *self.judged_size)
        paths = [self.names[number] for number in numbers]
        return {"image": image, "judged": judged, "paths": paths, "faults": faults}


def read(folder: Path, name: str) -> bytes:
    """Reads the file of an image of an index.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return images.read(folder / name, name)
    except DataError as error:
        raise _UnreadError(str(error)) from None
    except OSError as error:
        raise _UnreadError(f"{name}: cannot be read ({error.strerror or error})") from None
