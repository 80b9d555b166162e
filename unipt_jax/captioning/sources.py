"""Where images to caption come from: a folder, a list of files, or a prepared data set."""

import codecs
import dataclasses
import itertools
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from unipt_jax.core.errors import DataError
from unipt_jax.core.files import write_stream
from unipt_jax.data import builders
from unipt_jax.data import images as images_lib

log = logging.getLogger(__name__)

LISTING = "images.list"  # Paths, each ended by a zero byte, the one that no path can hold.

SUFFIXES = {
    name for name, kind in Image.registered_extensions().items() if kind in images_lib.FORMATS
}
_CHUNK = 1 << 24  # bytes


@dataclasses.dataclass(frozen=True)
class Source:
    """Numbered images.

    Attributes:
        size: how many there are.
        splits: the numbers of each split, which follow one another.
        path: names an image, by its number.
        identity: who is in it; empty if nobody knows.
        read: returns its encoded bytes; raises `DataError` if it is not there or forbidden, and
            `OSError` where the storage fails, which is no fault of the image.
    """

    size: int
    splits: Mapping[str, range]
    path: Callable[[int], str]
    identity: Callable[[int], str]
    read: Callable[[int], bytes]


def open_source(images: str, workdir: Path) -> Source:
    """Opens a folder (any depth), a text file with a path a line, or a prepared data set.

    What a folder or a text file names is listed in the work directory once: a run that goes on sees
    the same images under the same numbers, whatever became of the folder. The paths stay on disk.

    Raises:
        DataError: as `require_place`, or there is no image in it.
    """
    place, listing = Path(images), workdir / LISTING
    require_place(images)
    if (place / builders.MANIFEST).is_file():
        return _prepared(images)
    if not listing.exists():
        others: Counter[str] = Counter()
        paths = walk(place, others) if place.is_dir() else _lines(place)
        write_stream(listing, (os.fsencode(path) + b"\0" for path in paths))
        log_others(others)
    source = _listed(listing, place if place.is_dir() else place.parent)
    if not source.size:
        listing.unlink()
        raise no_image(images)
    return source


def no_image(images: str) -> DataError:
    """Returns the error of a folder or list without an image in it."""
    return DataError(f"images={images}: no image is in there ({', '.join(sorted(SUFFIXES))})")


def log_others(others: Counter[str]) -> None:
    """Tells how many files were passed over, as `walk` counts them by suffix."""
    if others:
        counts = ", ".join(f"{suffix} {count}" for suffix, count in others.most_common(5))
        log.info("%d other files passed over (%s)", others.total(), counts)


def require_place(images: str) -> None:
    """Checks that there is something to open.

    Raises:
        DataError: there is not, or it is a single image, or images were resized when prepared:
            resized again for CLIP they would be others than the images that came.
    """
    if not (Path(images).is_dir() or Path(images).is_file()):
        raise DataError(f"images={images}: no such folder, list or prepared data set")
    if Path(images).is_file() and Path(images).suffix.lower() in SUFFIXES:
        raise DataError(f"images={images} is one image; name its folder, or a list of paths")
    if (Path(images) / builders.MANIFEST).is_file():
        stored = builders.read_manifest(images)["pixels"]
        if stored:
            raise DataError(
                f"images={images} stores pixels of {stored[0]}x{stored[1]}, which are for training "
                "alone; name the folder of the images, or a data set prepared without "
                "--config.pixels"
            )


def _listed(listing: Path, root: Path) -> Source:
    # Mapped, not read: the paths stay on disk. An empty file cannot be mapped.
    content = np.memmap(listing, np.uint8, "r") if listing.stat().st_size else np.zeros(0, np.uint8)
    starts = range(0, len(content), _CHUNK)
    parts = [np.flatnonzero(content[start : start + _CHUNK] == 0) + start for start in starts]
    ends = np.concatenate([np.zeros(0, np.int64), *parts])

    def name(number: int) -> bytes:
        start = ends[number - 1] + 1 if number else 0
        return content[start : ends[number]].tobytes()

    def path(number: int) -> str:
        # Captions and data sets are UTF-8, which names of files need not be.
        return name(number).decode("utf-8", "backslashreplace")

    def read(number: int) -> bytes:
        file = root / os.fsdecode(name(number))
        try:
            return images_lib.read(file)
        except DataError:
            os.stat(root)  # Fails where not this image, but all of them are out of reach.
            raise

    return Source(len(ends), {"train": range(len(ends))}, path, lambda number: "", read)


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
        names, label = identities[split], int(splits[split].identities[place])
        return names[label] if label < len(names) else ""

    return Source(
        starts[-1],
        {
            name: range(*bounds)
            for name, bounds in zip(names, itertools.pairwise(starts), strict=True)
        },
        lambda number: entry(number)["path"],
        identity,
        lambda number: entry(number)["image"],
    )


def walk(folder: Path, others: Counter[str]) -> Iterator[str]:
    """Yields the paths of images below a folder, relative to it, whatever the file system's order.

    Counts the suffixes of other files in `others`. Links are followed, but never in a circle.

    Raises:
        DataError: a folder cannot be listed.
    """

    def stop(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be listed ({error.strerror or error})")

    seen: set[tuple[int, int]] = set()
    for directory, folders, names in os.walk(folder, onerror=stop, followlinks=True):
        status = os.stat(directory)
        if (status.st_dev, status.st_ino) in seen:  # A link that leads back.
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        for name in sorted(names):
            suffix = Path(name).suffix.lower()
            if suffix in SUFFIXES:
                yield os.path.relpath(os.path.join(directory, name), folder)
            else:
                others[suffix or "without suffix"] += 1


def _lines(file: Path) -> Iterator[str]:
    """Yields the paths of a list, which may have been written on Windows.

    Raises:
        DataError: it is no text.
    """
    with file.open("rb") as lines:
        for number, line in enumerate(lines):
            path = (line.removeprefix(codecs.BOM_UTF8) if number == 0 else line).strip()
            if b"\0" in path:
                raise DataError(
                    f"{file}: line {number + 1} holds a zero byte; save the list as UTF-8, a path "
                    "a line"
                )
            if b"\\" in path and not os.path.lexists(os.path.join(os.fsencode(file.parent), path)):
                path = path.replace(b"\\", b"/")
            if path:
                yield os.fsdecode(path)
