"""Where images to caption come from: a folder, a list of files, or a prepared data set."""

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from unipt_jax.core.errors import DataError
from unipt_jax.core.files import write_stream
from unipt_jax.data import builders

LISTING = "images.list"  # Paths, each ended by a zero byte, the one that no path can hold.


@dataclasses.dataclass(frozen=True)
class Source:
    """Numbered images.

    Attributes:
        size: how many there are.
        path: names an image, by its number.
        identity: who is in it; in an unlabelled one, no one else's.
        read: returns its encoded bytes; raises `DataError` if it cannot be read.
    """

    size: int
    path: Callable[[int], str]
    identity: Callable[[int], str]
    read: Callable[[int], bytes]


def open_source(images: str, workdir: Path) -> Source:
    """Opens a folder (any depth), a text file with a path a line, or a prepared data set.

    What a folder or a text file names is listed in the work directory once: a run that goes on sees
    the same images under the same numbers, whatever became of the folder. The paths stay on disk.

    Raises:
        DataError: there is no such place, or no image in it.
    """
    place, listing = Path(images), workdir / LISTING
    if (place / builders.MANIFEST).is_file():
        return _prepared(images)
    require_place(images)
    if not listing.exists():
        paths = _walk(place) if place.is_dir() else _lines(place)
        write_stream(listing, (os.fsencode(path) + b"\0" for path in paths))
    source = _listed(listing, place if place.is_dir() else place.parent)
    if not source.size:
        raise DataError(f"images={images}: no image is in there")
    return source


def require_place(images: str) -> None:
    """Checks that there is something to open.

    Raises:
        DataError: there is not.
    """
    if not Path(images).exists():
        raise DataError(f"images={images}: no such folder, list or prepared data set")


def _listed(listing: Path, root: Path) -> Source:
    # Mapped, not read: the paths stay on disk. An empty file cannot be mapped.
    content = np.memmap(listing, np.uint8, "r") if listing.stat().st_size else np.zeros(0, np.uint8)
    ends = np.flatnonzero(content == 0)

    def name(number: int) -> bytes:
        start = ends[number - 1] + 1 if number else 0
        return content[start : ends[number]].tobytes()

    def path(number: int) -> str:
        # Captions and data sets are UTF-8, which names of files need not be.
        return name(number).decode("utf-8", "backslashreplace")

    def read(number: int) -> bytes:
        file = root / os.fsdecode(name(number))
        try:
            return file.read_bytes()
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror or error})") from None

    return Source(len(ends), path, path, read)


def _prepared(directory: str) -> Source:
    """The splits of a prepared data set, one after another."""
    names = list(builders.read_manifest(directory)["splits"])
    splits = [builders.open_split(directory, name) for name in names]
    identities = [builders.read_identities(directory, name) for name in names]
    starts = [0, *itertools.accumulate(len(split.images) for split in splits)]

    def find(number: int) -> tuple[int, int]:
        split = int(np.searchsorted(starts, number, side="right")) - 1
        return split, number - starts[split]

    def entry(number: int) -> dict:
        split, place = find(number)
        return splits[split].images[place]

    def identity(number: int) -> str:
        split, place = find(number)
        return identities[split][int(splits[split].identities[place])]

    return Source(
        starts[-1],
        lambda number: entry(number)["path"],
        identity,
        lambda number: entry(number)["image"],
    )


def _walk(folder: Path) -> Iterator[str]:
    """Yields the images below a folder, in an order that does not depend on the file system."""
    suffixes = Image.registered_extensions()
    seen: set[tuple[int, int]] = set()
    for directory, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(directory)
        if (status.st_dev, status.st_ino) in seen:  # A link that leads back.
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        for name in sorted(names):
            if Path(name).suffix.lower() in suffixes:
                yield os.path.relpath(os.path.join(directory, name), folder)


def _lines(file: Path) -> Iterator[str]:
    with file.open("rb") as lines:
        for line in lines:
            if line.strip():
                yield os.fsdecode(line.strip())
