"""Features of a split: every image and every caption through the encoders once, on all devices.

A batch is split over the devices of all processes, each of which loads its own rows of it; the last
one is padded. The features come back to every process.
"""

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int

from unipt_jax.core.errors import DataError
from unipt_jax.core.sharding import batch_rows, batch_sharding, make_mesh, put_batch
from unipt_jax.data import images
from unipt_jax.data.buckets import by_length
from unipt_jax.data.builders import Split
from unipt_jax.data.pipeline import Batches
from unipt_jax.data.tokenization import Tokenizer
from unipt_jax.models.dual_encoder import DualEncoder
from unipt_jax.models.specs import abstract_batch

log = logging.getLogger(__name__)

CONCATENATED = "concatenated"

_LOG_EVERY = 10.0  # seconds
_PADDING = -1

Named = dict[str, np.ndarray]
Encode = Callable[[Any, Mapping[str, Any]], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """What the encoders make of a split: N images that could be read and their P captions.

    Attributes:
        image: each feature's rows f32[N, F] by its name, as the model gives them.
        text: the same of the captions, f32[P, F].
        images: the images' numbers in the split, ascending.
        pairs: the captions' numbers in the split, ascending.
        faults: why each of the other images cannot be read, by its number.
    """

    image: Named
    text: Named
    images: Int[np.ndarray, "N"]
    pairs: Int[np.ndarray, "P"]
    faults: Mapping[int, str]


def names(model: DualEncoder, params: Any) -> list[str]:
    """Lists the features that a model gives, and, of several, their concatenation."""
    pixels = abstract_batch(model.spec, 1)["image"]
    apply = functools.partial(model.apply, method="image_features")
    shapes = jax.eval_shape(apply, {"params": params}, pixels)
    return [*shapes, CONCATENATED] if len(shapes) > 1 else list(shapes)


def concatenated(features: Sequence[Float[np.ndarray, "N _"]]) -> Float[np.ndarray, "N S"]:
    """Puts the unit rows of several features side by side.

    The cosine of two such rows is the mean of their features' cosines, where no row is zero.
    """
    made = np.empty((len(features[0]), sum(each.shape[1] for each in features)), np.float32)
    start = 0
    for each in features:
        rows = np.asarray(each, np.float32)
        lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows))[:, None]
        end = start + rows.shape[1]
        np.divide(rows, np.maximum(lengths, 1e-12), out=made[:, start:end])
        start = end
    return made


def extract(
    model: DualEncoder,
    params: Any,
    split: Split,
    tokenizer: Tokenizer,
    *,
    text_length: int,
    batch_size: int,
    quarantine: bool = False,
    mesh: Mesh | None = None,
) -> Features:
    """Encodes each image and each caption of a split once.

    Memory is constant beyond the features. An image that cannot be read is left out with its
    captions where `quarantine` is on.

    Args:
        model: gives the features, by `image_features` and `text_features`.
        params: its parameters, whole on every process, or laid out on `mesh`.
        split: what to encode.
        tokenizer: the model's.
        text_length: tokens to which captions are cut. Those of about one length are padded to a
            bucket (`data.buckets`), if the data set stores their lengths and padding is not pooled
            over.
        batch_size: global; taken up to the next multiple of the devices that split it.
        quarantine: whether to leave out what cannot be read, instead of stopping at it.
        mesh: of all devices; by default each takes its part of a batch.

    Raises:
        DataError: the split is empty or stores pixels of another size than the model takes; an
            image cannot be read and `quarantine` is off, or none can; a feature is not finite.
    """
    if not len(split.images):
        raise DataError(f"{split.directory}: split {split.name!r} is empty; nothing to evaluate")
    image_size = model.spec.image.image_size
    split.require_size(*image_size)
    mesh = make_mesh() if mesh is None else mesh
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    size = -(-batch_size // ways) * ways
    params = _replicated(params, mesh)

    numbers = np.arange(len(split.images))
    load = LoadImages(split, *image_size)
    found, faults = None, {}
    encode = _encoder(model, "image", ("image",), mesh)
    progress = _Progress(f"images of {split.name}", len(numbers))
    with jax.set_mesh(mesh):
        for rows, result in _encoded(encode, params, load, _batches(numbers, size), mesh):
            valid = result.pop("valid")
            for number in rows[~valid]:
                # The other processes know no more than that it is unreadable.
                faults[int(number)] = _fault(split, int(number), *image_size)
                if not quarantine:
                    raise DataError(
                        f"{faults[int(number)]}; or leave such images out with "
                        "--config.on_bad_record=quarantine"
                    )
            found = _filled(found, rows[valid], {k: v[valid] for k, v in result.items()}, numbers)
            progress.advance(len(rows))
    kept = np.setdiff1d(numbers, np.array(list(faults), np.int64))
    if not len(kept):
        raise DataError(
            f"{split.directory}: none of the {len(numbers)} images of split {split.name!r} can be "
            f"read; first: {faults[0]}"
        )
    image = {name: rows[kept] if faults else rows for name, rows in found.items()}
    _require_finite(image, lambda row: f"image {split.images[kept[row]]['path']!r}")

    readable = np.isin(split.pairs[0], kept)
    pairs = np.flatnonzero(readable)
    if not len(pairs):
        raise DataError(f"{split.directory}: no image of split {split.name!r} has a caption")
    lengths = _lengths(split, tokenizer, text_length, model.spec.pool_padding)[pairs]
    encode, found = _encoder(model, "text", ("text", "text_mask"), mesh), None
    progress = _Progress(f"captions of {split.name}", len(pairs))
    with jax.set_mesh(mesh):
        for length, chosen in by_length(lengths, size, text_length).items():
            load = LoadTexts(split, tokenizer, length)
            batches = _batches(pairs[chosen], size)
            for rows, result in _encoded(encode, params, load, batches, mesh):
                found = _filled(found, np.searchsorted(pairs, rows), result, pairs)
                progress.advance(len(rows))
    _require_finite(found, lambda row: f"caption {caption_of(split, int(pairs[row]))!r}")
    return Features(image, found, kept, pairs, faults)


@dataclasses.dataclass(frozen=True)
class LoadImages:
    """Maps numbers of images to `image` uint8[B, H, W, 3] and `valid` bool[B]: could be read.

    Safe to share among threads. A row that cannot be read, or is padding, is black.
    """

    split: Split
    height: int
    width: int

    def __call__(self, numbers: Int[np.ndarray, "B"]) -> Named:
        """Reads, decodes and resizes."""
        image = np.zeros((len(numbers), self.height, self.width, 3), np.uint8)
        valid = np.zeros(len(numbers), bool)
        for row, number in enumerate(numbers.tolist()):
            if number == _PADDING:
                continue
            try:
                image[row] = _load(self.split, number, self.height, self.width)
                valid[row] = True
            except DataError:
                pass  # Every process tells of it, once it is known to all.
        return {"image": image, "valid": valid}


@dataclasses.dataclass(frozen=True)
class LoadTexts:
    """Maps numbers of captions to `text` int32[B, L] and `text_mask` bool[B, L], True on tokens.

    Safe to share among threads. Padding is an empty caption.
    """

    split: Split
    tokenizer: Tokenizer
    length: int

    def __call__(self, numbers: Int[np.ndarray, "B"]) -> Named:
        """Reads and tokenises."""
        text = np.full((len(numbers), self.length), self.tokenizer.pad, np.int32)
        mask = np.zeros(text.shape, bool)
        for row, number in enumerate(numbers.tolist()):
            caption = "" if number == _PADDING else caption_of(self.split, number)
            tokens = self.tokenizer.encode(caption, self.length)
            text[row, : len(tokens)], mask[row, : len(tokens)] = tokens, True
        return {"text": text, "text_mask": mask}


def caption_of(split: Split, pair: int) -> str:
    """Returns a caption by its number in the split."""
    image, caption = (int(numbers[pair]) for numbers in split.pairs)
    return split.images.captions(image)[caption]


def _load(split: Split, number: int, height: int, width: int) -> np.ndarray:
    pixels = split.images.pixels(number)
    if pixels is not None:
        return pixels
    entry = split.images[number]
    return images.load(entry["image"], f"{split.name} {entry['path']}", height, width)


def _fault(split: Split, number: int, height: int, width: int) -> str:
    try:
        _load(split, number, height, width)
    except DataError as error:
        return str(error)
    return f"{split.name} image {number} could not be read a moment ago"


# A run measures the same model at each of its checkpoints: compiled once a side.
@functools.lru_cache(maxsize=2)
def _encoder(model: DualEncoder, side: str, inputs: tuple[str, ...], mesh: Mesh) -> Encode:
    """Jits one side's features of batches that lie split over the devices; they come back whole.

    So does what else is in the batch: each process knows its own rows' alone.
    """

    def encode(params: Any, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        arguments = [batch[name] for name in inputs]
        features = model.apply({"params": params}, *arguments, method=f"{side}_features")
        return {**features, **{name: batch[name] for name in batch if name not in inputs}}

    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.jit(
        encode, in_shardings=(everywhere, batch_sharding(mesh)), out_shardings=everywhere
    )


def _replicated(params: Any, mesh: Mesh) -> Any:
    """Puts parameters whole on all devices."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    if not all(getattr(leaf, "is_fully_addressable", True) for leaf in jax.tree.leaves(params)):
        return jax.jit(lambda params: params, out_shardings=everywhere)(params)
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(
            everywhere, np.asarray(leaf), np.shape(leaf)
        ),
        params,
    )


def _lengths(
    split: Split, tokenizer: Tokenizer, text_length: int, pool_padding: bool
) -> Int[np.ndarray, "P"]:
    """Returns each caption's tokens, of which the full length stands for what is not known."""
    known = split.tokenizer_fingerprint == tokenizer.fingerprint and len(split.text_lengths)
    if pool_padding or not known:
        return np.full(len(split.pairs[0]), text_length)
    return split.text_lengths


def _batches(numbers: np.ndarray, size: int) -> list[np.ndarray]:
    """Cuts numbers into batches of one size, the last one padded."""
    padded = np.full(-(-len(numbers) // size) * size, _PADDING)
    padded[: len(numbers)] = numbers
    return np.split(padded, len(padded) // size)


def _encoded(
    encode: Encode,
    params: Any,
    load: Callable[[np.ndarray], Named],
    batches: Sequence[np.ndarray],
    mesh: Mesh,
) -> Iterator[tuple[np.ndarray, Named]]:
    """Yields the numbers of each batch and what they become, on every process; no padding."""
    own = batch_rows(len(batches[0]), mesh)
    parts = grain.MapDataset.source([batch[own] for batch in batches]).map(load)
    with Batches(parts) as loaded:
        for numbers, batch in zip(batches, loaded, strict=True):
            result = encode(params, put_batch(batch, mesh))
            real = numbers != _PADDING
            yield numbers[real], {name: np.asarray(each)[real] for name, each in result.items()}


def _filled(found: Named | None, rows: np.ndarray, values: Named, of: np.ndarray) -> Named:
    """Writes rows into arrays as long as `of`, made when first needed."""
    if found is None:
        found = {
            name: np.zeros((len(of), *each.shape[1:]), np.float32) for name, each in values.items()
        }
    for name, each in values.items():
        found[name][rows] = each
    return found


def _require_finite(features: Named, called: Callable[[int], str]) -> None:
    """Names the first image or caption that the model has no number for."""
    for name, rows in features.items():
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if len(bad):
            raise DataError(
                f"{called(int(bad[0]))}: the model's feature {name!r} of it is not finite, nor are "
                f"those of {len(bad) - 1} more of {len(rows)}; its parameters are damaged, or its "
                "arithmetic overflows"
            )


class _Progress:
    """Logs now and then how many are done."""

    def __init__(self, what: str, total: int):
        self._what, self._total, self._done = what, total, 0
        self._logged = time.monotonic()

    def advance(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._logged >= _LOG_EVERY or self._done == self._total:
            self._logged = now
            log.info("%d of %d %s encoded", self._done, self._total, self._what)
