"""From a prepared split to training batches, as a Grain data set.

Batch `k` is a pure function of the data set, the seed and `k`: neither the number of processes nor
that of workers nor an interruption changes which captions it holds, how their images are augmented
or which tokens are masked. The whole state of the pipeline is therefore the next batch's number.
"""

import dataclasses
import logging
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import resource_tracker
from typing import Any, Literal

import grain
import numpy as np
from absl import flags
from jaxtyping import Int

from unipt_jax.core.errors import ConfigError, DataError, WorkerError
from unipt_jax.core.random import host_generator
from unipt_jax.data import images, masking, sampling, text_noise, transforms
from unipt_jax.data.buckets import bucket
from unipt_jax.data.builders import Split
from unipt_jax.data.tokenization import ROLES, Tokenizer

log = logging.getLogger(__name__)

Example = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """How one pair of an image and a caption becomes an example.

    Attributes:
        height: of the image, in pixels; as `width`.
        flip: probability of mirroring left and right.
        length: most tokens of a text, special ones included.
        buckets: shorter lengths that the texts of a batch may be padded to instead.
        mlm_probability: share of the tokens that are masked for the language model.
        whole_word: mask whole words.
        padding: pixels added on each side before the crop back to size, as in
            `transforms.pad_and_crop`; 0: none (IRRA: 10).
        pool: number of augmentations drawn from `transforms.random_pool`; 0: none (TBPS-CLIP: 2).
        erase: probability of `transforms.random_erase`, in 0..1 (IRRA: 0.5).
        fill: RGB, 0..255, of pixels that these pad, rotate in or erase: the model's mean pixel,
            by default that of mean 0.5. (TBPS-CLIP's code takes black; IRRA's pads with black, and
            erases with (156, 147, 133), since its mean is put in after normalisation.)
        text_noise: what becomes of the text. "none": it is the caption. "mask": it is the masked
            copy, as IRRA's code has it; `text` and `masked_text` are equal then, and an objective
            may encode either of them for all of its losses. "corrupt": `text_noise.corrupt_tokens`,
            as RDE; its wrong tokens would be labels of the language model, too, which RDE does
            without. "delete": `text_noise.delete_words`, as TBPS-CLIP.
        text_noise_probability: of a token to be corrupted (RDE: 0.2), or of a word to be deleted
            (TBPS-CLIP: 0.05), in 0..1.
    """

    height: int
    width: int
    flip: float
    length: int
    buckets: tuple[int, ...]
    mlm_probability: float
    whole_word: bool
    padding: int = 0
    pool: int = 0
    erase: float = 0.0
    fill: transforms.Fill = (128, 128, 128)
    text_noise: Literal["none", "mask", "corrupt", "delete"] = "none"
    text_noise_probability: float = 0.0


@dataclasses.dataclass(frozen=True)
class LoadRows:
    """Maps the positions and pairs of a whole batch to this process's `rows` of it.

    Every random number follows from the seed and a pair's position. Text is padded to the shortest
    bucket that holds the whole batch's longest caption. The lengths are those stored with the data
    set, so that every process arrives at the same shape without asking the others; without them
    (`text_lengths` empty) text keeps its full length. Where tokens are stored too (`tokens` not
    empty), those are read, and captions are not.

    The arrays of B rows:
        image: uint8[B, H, W, 3]
        text, masked_text: int32[B, L], padded; text_mask: bool[B, L], True on tokens
        mlm_positions, mlm_labels: int32[B, M], mlm_mask: bool[B, M], True on predictions
        identity, record: int32[B], the person's label in the split and the pair's number
        valid: bool[B], False where the record could not be read and `quarantine` is on
    """

    split: Split
    tokenizer: Tokenizer
    preprocess: Preprocess
    seed: int
    quarantine: bool
    text_lengths: np.ndarray
    tokens: Sequence[np.ndarray]
    rows: np.ndarray

    def __call__(self, batch: tuple[np.ndarray, np.ndarray]) -> Example:
        """Reads, decodes, resizes and augments images; then tokenises and masks their captions."""
        how = self.preprocess
        positions, pairs = (numbers[self.rows].tolist() for numbers in batch)
        image = np.empty((len(pairs), how.height, how.width, 3), np.uint8)
        # All images first: between two of them, code for text would meet cold caches.
        loaded = [
            self._load_image(position, pair, row)
            for position, pair, row in zip(positions, pairs, image, strict=True)
        ]
        length, pad = self._length(batch[1]), self.tokenizer.pad
        tokens, masked, chosen = zip(
            *(
                self._load_text(position, text, rng, length)
                for position, (text, _, rng) in zip(positions, loaded, strict=True)
            ),
            strict=True,
        )
        labels = [row[places] for row, places in zip(tokens, chosen, strict=True)]
        predictions = masking.maximum_predictions(length, how.mlm_probability)
        return {
            "image": image,
            "text": _stack(masked if how.text_noise == "mask" else tokens, length, pad),
            "text_mask": _real(tokens, length),
            "masked_text": _stack(masked, length, pad),
            "mlm_positions": _stack(chosen, predictions, 0),
            "mlm_labels": _stack(labels, predictions, 0),
            "mlm_mask": _real(chosen, predictions),
            "identity": self.split.identities[self.split.pairs[0][pairs]],
            "record": np.array(pairs, np.int32),
            "valid": np.array([valid for _, valid, _ in loaded]),
        }

    def _load_image(
        self, position: int, pair: int, row: np.ndarray
    ) -> tuple[str | np.ndarray, bool, np.random.Generator]:
        """Writes an image to its row.

        Returns its text as `_read` does, whether it could be read, and what the text is masked by.
        """
        how = self.preprocess
        rng = host_generator(self.seed, "example", position)
        try:
            (image, text), valid = self._read(pair), True
        except DataError:
            if not self.quarantine:
                raise
            image, text, valid = np.zeros(row.shape, np.uint8), "", False
        transforms.random_flip(image, how.flip, rng, out=row)
        if how.padding or how.pool or how.erase:
            row[...] = self._augment(row, position)
        return text, valid, rng

    def _read(self, pair: int) -> tuple[np.ndarray, str | np.ndarray]:
        """Returns a pair's pixels, and its caption or the stored tokens of it."""
        split, how = self.split, self.preprocess
        number = int(split.pairs[0][pair])
        pixels = split.images.pixels(number)
        if pixels is not None:
            captions = () if self.tokens else split.images.captions(number)
        else:
            entry = split.images[number]
            where = f"{split.name} {entry['path']}"
            pixels = images.load(entry["image"], where, how.height, how.width)
            captions = entry["captions"]
        return pixels, self.tokens[pair] if self.tokens else captions[split.pairs[1][pair]]

    def _load_text(
        self, position: int, text: str | np.ndarray, rng: np.random.Generator, length: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns a text's tokens, their masked copy and the positions that are predicted."""
        how = self.preprocess
        tokens = self._encode(text, position, length)
        masked, positions = masking.mask_tokens(
            tokens,
            is_special=self.tokenizer.is_special,
            is_continuation=self.tokenizer.is_continuation,
            mask=self.tokenizer.mask,
            probability=how.mlm_probability,
            whole_word=how.whole_word,
            rng=rng,
        )
        return tokens, masked, positions

    def _length(self, pairs: np.ndarray) -> int:
        """Returns the length that the texts of a batch are padded to."""
        if not len(self.text_lengths):
            return self.preprocess.length
        longest = int(self.text_lengths[pairs].max())
        return bucket(longest, self.preprocess.buckets, self.preprocess.length)

    # Streams of their own: turned on, these leave what is drawn for flips and masks alone.

    def _augment(self, image: np.ndarray, position: int) -> np.ndarray:
        how = self.preprocess
        rng = host_generator(self.seed, "augmentation", position)
        image = transforms.pad_and_crop(image, how.padding, how.fill, rng)
        image = transforms.random_pool(image, how.pool, how.fill, rng)
        return transforms.random_erase(image, how.erase, how.fill, rng)

    def _encode(self, text: str | np.ndarray, position: int, length: int) -> np.ndarray:
        how, tokenizer = self.preprocess, self.tokenizer
        if how.text_noise == "delete":
            rng = host_generator(self.seed, "text noise", position)
            text = text_noise.delete_words(text, how.text_noise_probability, rng)
        known = isinstance(text, np.ndarray)
        tokens = tokenizer.cut(text, length) if known else tokenizer.encode(text, length)
        if how.text_noise == "corrupt":
            rng = host_generator(self.seed, "text noise", position)
            return text_noise.corrupt_tokens(
                tokens,
                is_special=self.tokenizer.is_special,
                mask=self.tokenizer.mask,
                probability=how.text_noise_probability,
                rng=rng,
            )
        return tokens


def longest_batch(how: Preprocess, batch_size: int) -> dict[str, tuple[tuple[int, ...], type]]:
    """Returns shape and type of each array of a batch whose texts have their full length."""
    tokens, predictions = how.length, masking.maximum_predictions(how.length, how.mlm_probability)
    shapes: dict[str, tuple[tuple[int, ...], type]] = {
        "image": ((how.height, how.width, 3), np.uint8),
        "text": ((tokens,), np.int32),
        "text_mask": ((tokens,), np.bool_),
        "masked_text": ((tokens,), np.int32),
        "mlm_positions": ((predictions,), np.int32),
        "mlm_labels": ((predictions,), np.int32),
        "mlm_mask": ((predictions,), np.bool_),
        "identity": ((), np.int32),
        "record": ((), np.int32),
        "valid": ((), np.bool_),
    }
    return {name: ((batch_size, *shape), dtype) for name, (shape, dtype) in shapes.items()}


def train_batches(
    split: Split,
    tokenizer: Tokenizer,
    preprocess: Preprocess,
    *,
    batch_size: int,
    seed: int,
    instances: int = 0,
    epoch: Int[np.ndarray, "E"] | None = None,
    quarantine: bool = False,
    rows: Int[np.ndarray, "R"] | None = None,
) -> grain.MapDataset:
    """Returns an endless random-access data set: element `k` is batch `k`, or rows of it.

    Each epoch is a fresh permutation of all pairs, or of those that `epoch` lists; a batch may span
    two epochs, and none is dropped. With `instances`, batches hold as many pairs of each of their
    identities instead, as `sampling.IdentityBatches` tells, and `epoch` has no say. `batch_size` is
    global; `rows` are those of a batch that this process reads, by default all.

    Raises:
        ConfigError: the instances do not divide the batch, there are too few identities, or the
            tokenizer cannot mask so.
        DataError: the split is empty, or stores pixels of another size.
    """
    pairs = len(split.pairs[0])
    if pairs == 0:
        raise DataError(f"{split.directory}: split {split.name!r} is empty; nothing to train on")
    split.require_size(preprocess.height, preprocess.width)
    _require_masking(tokenizer, preprocess)
    buckets = preprocess.buckets
    known = split.tokenizer_fingerprint == tokenizer.fingerprint
    if buckets and not known:
        log.warning(
            "%s stores caption lengths of tokenizer %r, not of %r: text is padded to %d tokens "
            "always; prepare the data with this tokenizer to use buckets",
            split.directory,
            split.tokenizer_fingerprint,
            tokenizer.fingerprint,
            preprocess.length,
        )
    load = LoadRows(
        split,
        tokenizer,
        preprocess,
        seed,
        quarantine,
        split.text_lengths if buckets and known else np.zeros(0, np.int32),
        # Words can be deleted from captions alone.
        split.tokens if known and preprocess.text_noise != "delete" else (),
        np.arange(batch_size) if rows is None else rows,
    )
    if instances:
        balanced = sampling.identity_batches(
            split.pairs[0],
            split.identities,
            batch_size=batch_size,
            instances=instances,
            seed=seed,
        )
        return grain.MapDataset.range(sys.maxsize).map(balanced).map(load)
    order = grain.MapDataset.range(pairs) if epoch is None else grain.MapDataset.source(epoch)
    order = order.seed(seed).shuffle().repeat()
    # There is no remainder; asked to keep it, Grain counts batches in floats, and of 1 too many.
    return order.map_with_index(_number).batch(batch_size, drop_remainder=True).map(load)


# A terminal's Ctrl-C and a cluster's SIGTERM go to all processes. The first one needs the others
# until it has saved, and what they would say of it would bury its own words.
_NOT_FOR_WORKERS = (signal.SIGINT, signal.SIGTERM)


class Batches(Iterator[Example]):
    """Iterates over a data set of batches from number `start`, reading ahead.

    Reading ahead happens in threads, or in `workers` processes. `state()` names the next batch
    that this iterator has not given out; it restores under any number of workers and processes.
    """

    def __init__(self, dataset: grain.MapDataset, *, start: int = 0, workers: int = 0):
        self._next, self._workers = start, workers
        # More threads than cores, in all, would only take the interpreter from one another.
        threads = min(4, max(1, _cores() // max(1, workers)))
        # One element is a whole batch, so a few of them are far enough ahead.
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4)
        ahead = dataset[start:].to_iter_dataset(options)
        if workers:
            if not flags.FLAGS.is_parsed():  # Grain's worker processes read absl's flags
                flags.FLAGS(["unipt_jax"], known_only=True)
            how = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1)
            ahead = ahead.mp_prefetch(how, worker_init_fn=_begin_worker)
        self._iterator = iter(ahead)
        if workers:
            # Workers are deaf from birth, since imports take seconds, as are the threads that Grain
            # starts them in; but the thread that starts multiprocessing's own helper hears again.
            resource_tracker.ensure_running()
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _NOT_FOR_WORKERS)
            try:
                self._iterator.get_state()  # Else there are no iterators yet to start.
                self._iterator.start_prefetch()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def __next__(self) -> Example:
        """Returns the next batch.

        Raises:
            DataError: a record cannot be read, and the pipeline does not quarantine.
            WorkerError: a worker process is gone.
        """
        if self._iterator is None:
            raise ValueError("these batches are closed")
        try:
            batch = next(self._iterator)
        except RuntimeError as error:
            # Grain has no type for it.
            died = re.search(r"terminated unexpectedly with exit code (-?\w+)", str(error))
            if not died:
                raise
            raise WorkerError(
                f"a process that reads images ended with exit code {died[1]} (-9: killed, as "
                "systems do that run out of memory; else see what it said above); go on with "
                "--resume, and with a lower --config.workers"
            ) from error
        self._next += 1
        if not self._workers:
            return batch
        # Out of the memory that workers share, of which an exit would complain that it is held:
        # an error's traceback holds a batch, and so may JAX.
        return {name: np.array(value) for name, value in batch.items()}

    def state(self) -> Mapping[str, Any]:
        """Returns the JSON-ready state: pass `state()["next_batch"]` as `start` to go on."""
        return {"next_batch": self._next}

    def close(self) -> None:
        """Stops reading ahead; without it, interpreter exit is noisy."""
        # Grain's iterator is let go of too: one that lives until the exit is noisy though closed.
        iterator, self._iterator = self._iterator, None
        if iterator is not None:
            iterator.close()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _begin_worker(index: int, count: int) -> None:
    """Ties a worker process to the one that started it, which alone tells it when to end."""
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process once its parent has: one that is killed has no time to tell."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _cores() -> int:
    """Returns the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _require_masking(tokenizer: Tokenizer, preprocess: Preprocess) -> None:
    if preprocess.text_noise == "mask" and not preprocess.mlm_probability:
        raise ConfigError(
            "text.noise='mask' takes the masked copy of the text, and mlm.probability=0 masks "
            "nothing; set mlm.probability=0.15, or text.noise='none'"
        )
    if preprocess.text_noise == "corrupt" and tokenizer.mask is None:
        raise ConfigError(
            f"tokenizer {tokenizer.name!r} has no mask token {' or '.join(ROLES['mask'])}, which "
            "text.noise='corrupt' puts in the place of words; set text.noise='delete', or choose "
            "another text.tokenizer"
        )
    if not preprocess.mlm_probability:
        return
    if tokenizer.mask is None:
        raise ConfigError(
            f"tokenizer {tokenizer.name!r} has no mask token {' or '.join(ROLES['mask'])}, which "
            "the masked language model needs; set mlm.probability=0 to do without that model, or "
            "choose another text.tokenizer"
        )
    if preprocess.whole_word and tokenizer.is_continuation is None:
        raise ConfigError(
            f"mlm.whole_word=True: the pieces of tokenizer {tokenizer.name!r} do not show which of "
            "them begin a word; set mlm.whole_word=False, or choose another text.tokenizer"
        )


def _number(index: int, pair: int) -> tuple[int, int]:
    return index, pair


def _stack(rows: Sequence[np.ndarray], length: int, filler: int) -> np.ndarray:
    """Returns int32[B, length]: rows cut or padded at the end."""
    stacked = np.full((len(rows), length), filler, np.int32)
    for place, row in zip(stacked, rows, strict=True):
        place[: len(row)] = row[:length]
    return stacked


def _real(rows: Sequence[np.ndarray], length: int) -> np.ndarray:
    """Returns bool[B, length], False where `_stack` pads."""
    return np.arange(length) < np.array([[len(row)] for row in rows])
