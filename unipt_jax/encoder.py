"""The library's door: a trained dual encoder that turns images and sentences into unit vectors."""

import dataclasses
import json
import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Float, UInt8
from PIL import Image

from unipt_jax.core import trees
from unipt_jax.core.errors import CheckpointError, DataError
from unipt_jax.core.files import CONFIG_FILE, is_run
from unipt_jax.data import images, tokenization
from unipt_jax.data.buckets import by_length
from unipt_jax.models import specs
from unipt_jax.models.dual_encoder import DualEncoder, DualEncoderSpec
from unipt_jax.models.heads import unit_rows
from unipt_jax.models.vit import VisionSpec
from unipt_jax.training import conversion, model_file
from unipt_jax.training.model_file import MODEL_FILE

log = logging.getLogger(__name__)

ImageLike = str | Path | Image.Image | np.ndarray


@dataclasses.dataclass(frozen=True)
class Processor:
    """How images and sentences become arrays; sizes in pixels and tokens."""

    height: int
    width: int
    tokenizer: tokenization.Tokenizer
    length: int

    def images(self, batch: Sequence[ImageLike], *, first: int = 0) -> UInt8[np.ndarray, "N H W 3"]:
        """Reads paths, Pillow images or uint8[H, W, 3] arrays and resizes them.

        Messages number the images from `first`.

        Raises:
            DataError: an image cannot be read (named), or an array is of another shape or type.
        """
        decoded = [_pixels(image, index) for index, image in enumerate(batch, first)]
        return np.stack([images.resize(image, self.height, self.width) for image in decoded])

    def texts(self, batch: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns `text: int32[N, L]` and `text_mask: bool[N, L]`, True on tokens.

        Raises:
            DataError: one of them is no text.
        """
        for row, sentence in enumerate(batch):
            if not isinstance(sentence, str):
                raise DataError(f"text {row} is {sentence!r}; expected a sentence")
        text = np.full((len(batch), self.length), self.tokenizer.pad, np.int32)
        mask, cut = np.zeros(text.shape, bool), 0
        for row, whole in enumerate(self.tokenizer.encode_whole(batch)):
            tokens = self.tokenizer.cut(whole, self.length)
            text[row, : len(tokens)], mask[row, : len(tokens)] = tokens, True
            cut += len(tokens) < len(whole)
        if cut:
            log.warning(
                "%d of %d sentences have more than %d tokens; what is beyond is not read",
                *(cut, len(batch), self.length),
            )
        return {"text": text, "text_mask": mask}


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A model, its parameters and its processor. `model.apply` is the pure function beneath."""

    model: DualEncoder
    params: Any = dataclasses.field(repr=False)
    processor: Processor = dataclasses.field(repr=False)
    batch_size: int = 64

    def encode_images(self, batch: Sequence[ImageLike]) -> Float[np.ndarray, "N D"]:
        """Embeds paths, Pillow images or uint8[H, W, 3] arrays; rows have length 1.

        Raises:
            DataError: as `Processor.images`, or `batch` is a bare string, or an embedding is not
                finite.
        """
        _require_list(batch)
        parts = [
            self.embed_images(
                self.params, self.processor.images(part, first=index * self.batch_size)
            )
            for index, part in enumerate(self._cut(batch))
        ]
        return _finite(self._join(parts), "image")

    def encode_texts(self, batch: Sequence[str]) -> Float[np.ndarray, "N D"]:
        """Embeds sentences, cut to the model's text length; rows have length 1.

        Those of about one length are encoded together, with little padding (`data.buckets`).

        Raises:
            DataError: `batch` is a bare string, one of them is no text, or an embedding is not
                finite.
        """
        _require_list(batch)
        texts, full = self.processor.texts(batch), self.processor.length
        lengths = texts["text_mask"].sum(axis=1)
        if self.model.spec.pool_padding:  # The embedding depends on the padded length.
            lengths[:] = full
        found = []
        for length, chosen in by_length(lengths, self.batch_size, full).items():
            for rows in self._cut(chosen.tolist()):
                # The last batch is filled up to a power of two, with its last text: a compilation
                # for each size from 1 on would take longer.
                size = min(1 << (len(rows) - 1).bit_length(), self.batch_size)
                filled = np.pad(rows, (0, size - len(rows)), "edge")
                part = {name: each[filled, :length] for name, each in texts.items()}
                found.append((rows, self._texts(self.params, **part)))
        embeddings = np.zeros((len(batch), self.model.spec.embedding_dim), np.float32)
        for rows, part in found:
            embeddings[rows] = np.asarray(part)[: len(rows)]
        return _finite(embeddings, "text")

    @cached_property
    def fingerprint(self) -> str:
        """What tells the model from another: its description and parameters."""
        description = json.dumps(specs.to_dict(self.model.spec), sort_keys=True).encode()
        return trees.fingerprint([np.frombuffer(description, np.uint8), self.params])

    @cached_property
    def embed_images(self) -> Callable[[Any, jax.Array | np.ndarray], jax.Array]:
        """The jitted `(params, uint8[B, H, W, 3]) -> f32[B, D]`, unit rows; devices as theirs."""
        return jax.jit(
            lambda params, image: unit_rows(
                self.model.apply({"params": params}, image, method="encode_image")
            )
        )

    @cached_property
    def _texts(self) -> Any:
        return jax.jit(
            lambda params, text, text_mask: unit_rows(
                self.model.apply({"params": params}, text, text_mask, method="encode_text")
            )
        )

    def _cut(self, batch: Sequence[Any]) -> list[Sequence[Any]]:
        return [batch[at : at + self.batch_size] for at in range(0, len(batch), self.batch_size)]

    def _join(self, parts: list[jax.Array]) -> np.ndarray:
        width = self.model.spec.embedding_dim
        return np.concatenate([np.zeros((0, width), np.float32), *map(np.asarray, parts)])


def load(source: str | Path) -> Encoder:
    """Loads the best checkpoint of a run, or the latest if none was measured, or a CLIP's weights.

    Args:
        source: a work directory of training or of `launch/convert.py`; else whatever
            `interop.huggingface.load` reads: a Hugging Face directory or name, a file of weights.
            Images are resized to the model's size as a whole: nothing is cropped.

    Raises:
        CheckpointError: the run holds no complete checkpoint, or not one of a dual encoder, of what
            its `model.json` says and finite; or `model.json` is damaged or of another version.
        ConversionError: foreign weights or their tokenizer cannot be read or do not fit.
        DataError: the tokenizer of a run is missing or damaged.
    """
    path = epath.Path(source)
    if model_file.exists(path):
        described = model_file.read(path)
        _require_dual_encoder(described.spec, source)
        tokenizer = model_file.tokenizer(path)
        params = model_file.params(path, described.spec)
    elif is_run(path):
        exported = path / "model" / CONFIG_FILE
        hint = f"; load {exported.parent}" if exported.exists() else ""
        raise CheckpointError(f"{path} is a work directory without a model ({MODEL_FILE}){hint}")
    else:
        converted = conversion.read(str(source))
        described, tokenizer = converted.model, converted.tokenizer
        _require_dual_encoder(described.spec, source)
        params = jax.device_put(converted.params, jax.local_devices()[0])
    model = DualEncoder(described.spec, dtype=jnp.dtype(described.dtype))
    height, width = described.spec.image.image_size
    return Encoder(model, params, Processor(height, width, tokenizer, described.text_length))


def _require_list(batch: Sequence[Any]) -> None:
    if isinstance(batch, str):  # A sequence too: of letters.
        raise DataError(f"expected a list, not the bare string {batch!r}; put it in brackets")


def _finite(embeddings: np.ndarray, side: str) -> np.ndarray:
    """Returns embeddings, and names the first that is none."""
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(bad):
        raise DataError(
            f"{side} {bad[0]}: its embedding is not finite; the model's parameters are damaged, or "
            "its arithmetic overflows"
        )
    return embeddings


def _require_dual_encoder(spec: specs.Spec, source: str | Path) -> None:
    if not isinstance(spec, DualEncoderSpec):
        side = "image" if isinstance(spec, VisionSpec) else "text"
        raise CheckpointError(
            f"{source} holds one encoder alone, for --config.init_{side} of launch/train.py; "
            "encoding needs both"
        )


def _pixels(image: ImageLike, index: int) -> np.ndarray:
    if isinstance(image, str | Path):
        where = f"image {index}: {image}"
        return images.decode(images.read(image, where), where)
    if isinstance(image, Image.Image):
        return images.to_rgb(image, f"image {index}")
    if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8 or not image.size:
        raise DataError(f"image {index} is {image.dtype}{image.shape}, expected uint8[H, W, 3]")
    return image
