"""Captions for a collection of images: scored in batches, written in parts, joined at the end.

A part is whole or absent, and holds the same batches in every run, so that a run that was killed at
any moment goes on to the same bytes. Nothing but small numbers is kept of an image.
"""

import dataclasses
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from jax.experimental import multihost_utils

from unipt_jax.captioning import composer, frequencies, lexicon, scorer, sources
from unipt_jax.captioning.lexicon import Lexicon
from unipt_jax.captioning.sources import Source
from unipt_jax.config import schema
from unipt_jax.core.errors import ConfigError, DataError
from unipt_jax.core.files import write_json, write_json_lines
from unipt_jax.core.sharding import batch_sharding, make_mesh, require_divisible
from unipt_jax.data import builders, images
from unipt_jax.data.annotations import Record
from unipt_jax.models.dual_encoder import DualEncoder

log = logging.getLogger(__name__)

CAPTIONS, STATISTICS, PARTS = "captions.jsonl", "statistics.json", "parts"

_BATCHES_A_PART = 8
_LOG_EVERY = 10.0  # seconds


@dataclasses.dataclass(frozen=True)
class Clip:
    """The model that judges: `encode_texts` gives unit rows, as `Encoder.encode_texts` does."""

    model: DualEncoder
    params: Any
    encode_texts: Callable[[Sequence[str]], np.ndarray]


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
        DataError: there is no image, one cannot be read and `on_bad_record` is "stop", or the
            tokenizer or the lexicon cannot be read.
        ConfigError: the batch cannot be split over the devices.
    """
    if (workdir / builders.MANIFEST).exists():
        shutil.rmtree(workdir / PARTS, ignore_errors=True)  # A kill may have left them.
        log.info("%s is complete", workdir)
        return
    require_divisible(config.batch_size, make_mesh())
    words, is_first = read_lexicon(config), jax.process_index() == 0
    if not is_first:
        _wait_for_all("listing")  # The first process lists the images; the others read its list.
    source = sources.open_source(config.images, workdir)
    if is_first:
        _wait_for_all("listing")
    # Each process judges images of its own on devices of its own.
    rows = config.batch_size // jax.process_count()
    write_parts(config, workdir, clip, words, source, make_mesh(devices=jax.local_devices()), rows)
    _wait_for_all("parts")
    if is_first:
        join(config, workdir, words, source, rows)


def _wait_for_all(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def write_parts(config, workdir, clip, words, source, mesh, rows) -> None:
    """Writes this process's parts that are missing."""
    missing = [
        part
        for part in range(jax.process_index(), _parts(source, rows), jax.process_count())
        if not _part_file(workdir, part).exists()
    ]
    batches = [batch for part in missing for batch in _batches_of(part, source, rows)]
    height, width = clip.model.spec.image.image_size
    stop = config.on_bad_record == "stop"
    load = LoadImages(source, height, width, rows, stop)
    features = jax.numpy.asarray(
        scorer.prompt_features(clip.encode_texts, words.sets, words.wrappers[: config.wrappers])
    )
    split = batch_sharding(mesh)
    score = scorer.make_scorer(clip.model, scorer.layout(words.sets), mesh, config.threshold)
    labels = {name: tuple(each.phrases) for name, each in words.sets.items()}
    progress = Progress(sum(len(batch) for batch in batches))
    written: list[dict[str, Any]] = []

    def finish(batch: Mapping[str, Any], result: tuple[jax.Array, jax.Array]) -> None:
        indices, probabilities = map(np.asarray, result)
        numbers = batch["numbers"]
        for row, (path, fault) in enumerate(zip(batch["paths"], batch["faults"], strict=True)):
            if fault:
                written.append({"image": path, "fault": fault})
            else:
                attributes = _attributes(labels, indices[row], probabilities[row])
                written.append(_row(words, path, attributes, config.seed))
        part = numbers[0] // (rows * _BATCHES_A_PART)
        if numbers[-1] + 1 in ((part + 1) * rows * _BATCHES_A_PART, source.size):
            write_json_lines(_part_file(workdir, part), written)
            written.clear()
        progress.advance(len(numbers))

    options = grain.ReadOptions(num_threads=4, prefetch_buffer_size=4)
    loaded = iter(grain.MapDataset.source(batches).map(load).to_iter_dataset(options))
    waiting = None
    try:
        for batch in loaded:
            # Not `put_batch`: the mesh is this process's own, and so is the whole batch.
            result = score(clip.params, features, jax.device_put(batch["image"], split))
            # The device works on this batch while the host writes the one before.
            if waiting:
                finish(*waiting)
            waiting = batch, result
        if waiting:
            finish(*waiting)
    finally:
        loaded.close()


def join(config, workdir: Path, words: Lexicon, source: Source, rows: int) -> None:
    """Joins the parts into `captions.jsonl`, the data set and the statistics."""
    parts = [_part_file(workdir, part) for part in range(_parts(source, rows))]

    def lines() -> Iterator[dict[str, Any]]:
        for part in parts:
            with part.open() as file:
                yield from map(json.loads, file)

    faults = [row for row in lines() if "fault" in row]
    if faults:
        write_json_lines(workdir / builders.QUARANTINE, faults)
        log.warning(
            "%d image(s) could not be read; they are listed in %s",
            len(faults),
            workdir / builders.QUARANTINE,
        )
    if len(faults) == source.size:
        raise DataError(
            f"none of the {source.size} images can be read; first: {faults[0]['fault']}"
        )
    write_json_lines(workdir / CAPTIONS, (row for row in lines() if "fault" not in row))
    counts = frequencies.count(words.sets, (row for row in lines() if "fault" not in row))
    write_json(workdir / STATISTICS, {"quarantined": len(faults), **counts})
    frequencies.plot(words.sets, counts, workdir / "frequencies.png")
    records = (
        Record(
            position=number,
            image=row["image"],
            captions=(row["caption"],),
            identity=source.identity(number),
            split="train",
        )
        for number, row in enumerate(lines())
        if "fault" not in row
    )
    builders.write_splits(
        {"train": records},
        read=lambda record: source.read(record.position),
        name="captions",
        workdir=workdir,
        tokenizer=config.tokenizer,
        quarantined=len(faults),
        notices={},
    )
    shutil.rmtree(workdir / PARTS)
    print(builders.summary(builders.read_manifest(workdir)))


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
                    raise
                faults[row] = str(error)
        return {"image": image, "numbers": numbers, "paths": paths, "faults": faults}


class Progress:
    """Logs how many images are done, how fast, and how long the rest takes."""

    def __init__(self, total: int):
        self._total, self._done = total, 0
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
            "%d of %d images, %.0f images/s, %d:%02d:%02d left",
            self._done,
            self._total,
            speed,
            left // 3600,
            left // 60 % 60,
            left % 60,
        )


def _parts(source: Source, rows: int) -> int:
    return -(-source.size // (rows * _BATCHES_A_PART))


def _part_file(workdir: Path, part: int) -> Path:
    return workdir / PARTS / f"{part:08}.jsonl"


def _batches_of(part: int, source: Source, rows: int) -> Iterator[range]:
    first = part * rows * _BATCHES_A_PART
    last = min(first + rows * _BATCHES_A_PART, source.size)
    return (range(start, min(start + rows, last)) for start in range(first, last, rows))


def _attributes(
    labels: Mapping[str, Sequence[str]], indices: np.ndarray, probabilities: np.ndarray
) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "phrase": phrases[index] if index >= 0 else None,
            "probability": round(float(probability), 4),
        }
        for (name, phrases), index, probability in zip(
            labels.items(), indices, probabilities, strict=True
        )
    }


def _row(words: Lexicon, path: str, attributes: Mapping[str, Any], seed: int) -> dict[str, Any]:
    choices = {name: chosen["phrase"] for name, chosen in attributes.items()}
    text = composer.compose(words, choices, seed=seed, path=path)
    return {"image": path, "caption": text, "attributes": attributes}
