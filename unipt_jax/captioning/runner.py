"""Captions for a collection of images: scored in batches, written in parts, joined at the end.

A part is whole or absent and holds the same images in every run, and each image has the same place
in a device's batch of the same size, whatever the number of processes and devices, so that a run
that was killed at any moment goes on to the same bytes. Of an image no more is kept than a few
numbers.
"""

import contextlib
import dataclasses
import itertools
import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np

from unipt_jax.captioning import frequencies, lexicon, sources
from unipt_jax.captioning.captioner import Captioner, Clip, require_temperature
from unipt_jax.captioning.lexicon import Lexicon
from unipt_jax.captioning.sources import Source
from unipt_jax.config import schema
from unipt_jax.core import distributed, trees
from unipt_jax.core.errors import ConfigError, DataError
from unipt_jax.core.files import (
    read_json,
    read_json_lines,
    remove_leftovers,
    write_json,
    write_json_lines,
)
from unipt_jax.core.sharding import make_mesh
from unipt_jax.data import builders, images
from unipt_jax.data.annotations import Record

log = logging.getLogger(__name__)

CAPTIONS, STATISTICS, PARTS = "captions.jsonl", "statistics.json", "parts"

_BATCHES_A_PART = 8
_LOG_EVERY = 10.0  # seconds


def read_lexicon(config: schema.Caption) -> Lexicon:
    """Reads the attributes and templates that a configuration names.

    Raises:
        DataError: the file is missing or wrong.
        ConfigError: it has fewer wrappers than are to be averaged over.
    """
    words = lexicon.load(config.lexicon) if config.lexicon else lexicon.english()
    if config.wrappers > len(words.wrappers):
        raise ConfigError(
            f"wrappers={config.wrappers}, but {config.lexicon or 'English'} has "
            f"{len(words.wrappers)}"
        )
    return words


def caption(config: schema.Caption, workdir: Path, clip: Clip) -> None:
    """Captions every image that has no caption yet, then joins all into the results.

    `workdir` then holds `captions.jsonl`, `statistics.json`, `frequencies.png`, `quarantine.jsonl`
    if an image could not be read, and the data set that pre-training reads.

    Raises:
        DataError: there is no image, one cannot be read and `on_bad_record` is "stop", the
            tokenizer or the lexicon cannot be read, or, in a run that goes on, the lexicon or the
            weights are no longer the same.
        ConfigError: as `require_temperature`.
        UserError: another process has stopped.
        OSError: the storage fails; the run can go on later.
    """
    require_temperature(clip.model)
    words = read_lexicon(config)
    with distributed.together():
        if distributed.is_first():
            _make_ready(config, workdir, clip)
    if (workdir / builders.MANIFEST).exists():
        log.info("%s is complete", workdir)
        return
    with distributed.together():
        source = sources.open_source(config.images, workdir)
        write_parts(config, workdir, clip, words, source)
    with distributed.together():
        if distributed.is_first():
            join(config, workdir, words, source)


def _make_ready(config: schema.Caption, workdir: Path, clip: Clip) -> None:
    """Removes what a kill has left, and lists the images, whose list all processes then read."""
    remove_leftovers(workdir)
    remove_leftovers(workdir / PARTS)
    if (workdir / builders.MANIFEST).exists():
        shutil.rmtree(workdir / PARTS, ignore_errors=True)
        return
    _require_same_inputs(config, workdir, clip)
    sources.open_source(config.images, workdir)


def _require_same_inputs(config: schema.Caption, workdir: Path, clip: Clip) -> None:
    """Checks that what was captioned before had the same lexicon and weights."""
    now = {
        "lexicon": lexicon.fingerprint(config.lexicon or lexicon.ENGLISH),
        "clip": trees.fingerprint(clip.params),
    }
    path = workdir / PARTS / "inputs.json"
    before = read_json(path) if path.exists() else now
    changed = [name for name, value in now.items() if before.get(name) != value]
    if changed:
        raise DataError(
            f"{workdir} was begun with another {' and another '.join(changed)} than "
            f"{', '.join(f'{name}={getattr(config, name)}' for name in changed)} holds now; "
            "begin anew with --overwrite"
        )
    write_json(path, now)


def write_parts(
    config: schema.Caption, workdir: Path, clip: Clip, words: Lexicon, source: Source
) -> None:
    """Writes this process's parts that are missing."""
    size = _part_size(config)
    missing = [
        part
        for part in range(jax.process_index(), _parts(config, source), jax.process_count())
        if not _part_file(workdir, part).exists()
    ]
    spans = [range(part * size, min((part + 1) * size, source.size)) for part in missing]
    # Each process judges images of its own on devices of its own, a batch on each.
    mesh = make_mesh(devices=jax.local_devices())
    rows = config.device_batch_size * mesh.size
    log.info("encoding the prompts, then compiling")
    captioner = Captioner(
        clip, words, mesh, wrappers=config.wrappers, threshold=config.threshold, seed=config.seed
    )
    load = LoadImages(source, *captioner.image_size, rows, config.on_bad_record == "stop")
    progress = Progress("captioned", sum(map(len, spans)))
    written: list[dict[str, Any]] = []

    def finish(batch: Mapping[str, Any], result: tuple[jax.Array, jax.Array]) -> None:
        indices, probabilities = map(np.asarray, result)
        numbers = batch["numbers"]
        for row, number in enumerate(numbers):
            path, fault = batch["paths"][row], batch["faults"][row]
            if fault:
                written.append({"record": number, "image": path, "faults": [fault]})
            else:
                written.append(captioner.row(path, indices[row], probabilities[row]))
        if (numbers[-1] + 1) % size == 0 or numbers[-1] + 1 == source.size:
            write_json_lines(_part_file(workdir, numbers[0] // size), written)
            written.clear()
        progress.advance(len(numbers))

    waiting = None
    with contextlib.closing(load_batches(load, spans, rows)) as loaded:
        for batch in loaded:
            result = captioner.judge(batch["image"])
            # The device works on this batch while the host writes the one before.
            if waiting:
                finish(*waiting)
            waiting = batch, result
        if waiting:
            finish(*waiting)


def join(config: schema.Caption, workdir: Path, words: Lexicon, source: Source) -> None:
    """Joins the parts into `captions.jsonl`, the data set and the statistics."""
    parts = [_part_file(workdir, part) for part in range(_parts(config, source))]

    def rows() -> Iterator[dict[str, Any]]:
        return itertools.chain.from_iterable(map(read_json_lines, parts))

    captioned = lambda: (row for row in rows() if "caption" in row)  # noqa: E731
    faulty = lambda: (row for row in rows() if "faults" in row)  # noqa: E731
    kinds = Counter("faults" in row for row in rows())
    found, left_out = kinds[False], kinds[True]
    if kinds.total() != source.size:
        raise DataError(
            f"{workdir / PARTS} holds {kinds.total()} lines of {source.size} images; begin anew "
            "with --overwrite"
        )
    if not found:
        first = next(faulty())["faults"][0]
        shutil.rmtree(workdir / PARTS)  # So that a run that goes on tries again.
        raise DataError(f"none of the {source.size} images can be read; first: {first}")
    if left_out:
        write_json_lines(workdir / builders.QUARANTINE, faulty())
        log.warning(
            "%d image(s) could not be read; they are listed in %s",
            left_out,
            workdir / builders.QUARANTINE,
        )
    write_json_lines(workdir / CAPTIONS, captioned())
    counts = frequencies.count(words.sets, captioned())
    write_json(workdir / STATISTICS, {"quarantined": left_out, **counts})
    frequencies.plot(words.sets, counts, workdir / "frequencies.png")
    progress = Progress("written to the data set", found)

    def records(split: str) -> Iterator[Record]:
        numbers = source.splits[split]
        for number, row in itertools.islice(enumerate(rows()), numbers.start, numbers.stop):
            if "caption" in row:
                identity = source.identity(number)
                yield Record(row["image"], (row["caption"],), identity, split, number)
                progress.advance(1)

    builders.write_splits(
        {split: records(split) for split, numbers in source.splits.items() if numbers},
        read=lambda record: _read_again(source, record.position),
        name="captions",
        workdir=workdir,
        tokenizer=config.tokenizer,
        quarantined=left_out,
        notices={},
    )
    shutil.rmtree(workdir / PARTS)
    print(builders.summary(builders.read_manifest(workdir)))


def _read_again(source: Source, number: int) -> bytes:
    try:
        return source.read(number)
    except DataError as error:
        raise DataError(
            f"{error}, though it could be when it was captioned; put it back and go on with "
            "--resume, or begin anew with --overwrite"
        ) from None


@dataclasses.dataclass(frozen=True)
class LoadImages:
    """Maps the numbers of a batch to its pixels, padded to `rows`; safe to share among threads.

    The result: `image` uint8[rows, H, W, 3]; `numbers`, and for each of them in `paths` the image's
    path and in `faults` a text, empty where the image could be read.
    """

    source: Source
    height: int
    width: int
    rows: int
    stop: bool

    def __call__(self, numbers: Sequence[int]) -> dict[str, Any]:
        """Reads, decodes and resizes."""
        image = np.zeros((self.rows, self.height, self.width, 3), np.uint8)
        paths = [self.source.path(number) for number in numbers]
        faults = [""] * len(numbers)
        for row, number in enumerate(numbers):
            try:
                decoded = images.decode(self.source.read(number), paths[row])
                image[row] = images.resize(decoded, self.height, self.width)
            except DataError as error:
                if self.stop:
                    raise DataError(
                        f"{error}; mend it, or leave such images out with "
                        "--config.on_bad_record=quarantine"
                    ) from None
                faults[row] = str(error)
        return {"image": image, "numbers": numbers, "paths": paths, "faults": faults}


def load_batches(
    load: Callable[[Sequence[int]], dict[str, Any]], spans: Sequence[range], rows: int
) -> Iterator[dict[str, Any]]:
    """Loads the images of spans of numbers in batches of `rows`, ahead of time, in order."""
    batches = [numbers[at : at + rows] for numbers in spans for at in range(0, len(numbers), rows)]
    # Reading waits for the storage: some threads more than there are cores.
    threads = 4 + (os.cpu_count() or 1)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    loaded = iter(grain.MapDataset.source(batches).map(load).to_iter_dataset(options))
    try:
        yield from loaded
    finally:
        loaded.close()


class Progress:
    """Logs how many images of this run are done, how fast, and how long the rest takes."""

    def __init__(self, what: str, total: int):
        self._what, self._total, self._done = what, total, 0
        self._started = self._logged = time.monotonic()

    def advance(self, count: int) -> None:
        """Counts images that were done."""
        self._done += count
        now = time.monotonic()
        if now - self._logged < _LOG_EVERY and self._done < self._total:
            return
        self._logged = now
        speed = self._done / max(now - self._started, 1e-9)
        left = int((self._total - self._done) / speed)
        log.info(
            "%d of %d images %s, %.3g images/s, %d:%02d:%02d left",
            self._done,
            self._total,
            self._what,
            speed,
            left // 3600,
            left // 60 % 60,
            left % 60,
        )


def _part_size(config: schema.Caption) -> int:
    """Returns how many images a part holds, whatever the number of those who write them."""
    return _BATCHES_A_PART * config.device_batch_size


def _parts(config: schema.Caption, source: Source) -> int:
    return -(-source.size // _part_size(config))


def _part_file(workdir: Path, part: int) -> Path:
    return workdir / PARTS / f"{part:08}.jsonl"
