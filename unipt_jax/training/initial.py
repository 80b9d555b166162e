"""Where training starts from: other weights in place of random ones."""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unipt_jax.core import trees
from unipt_jax.core.errors import ConversionError
from unipt_jax.interop import huggingface
from unipt_jax.models.bert import TextSpec
from unipt_jax.models.clip import ClipTextSpec
from unipt_jax.models.dual_encoder import DualEncoderSpec
from unipt_jax.models.positions import resize_positions
from unipt_jax.models.vit import VisionSpec
from unipt_jax.training import model_file
from unipt_jax.training.checkpoints import Checkpoints

log = logging.getLogger(__name__)


def read(source: str) -> tuple[Any, Mapping[str, Any]]:
    """Reads the specification and the parameters of a run, a conversion or foreign weights.

    Raises:
        CheckpointError: the run holds no complete checkpoint.
        ConversionError: the foreign weights cannot be read.
    """
    if not model_file.exists(source):
        # BertModel is BERT without its MLM head.
        foreign = huggingface.load(source, allow_missing=("mlm_head",))
        return foreign.spec, foreign.params
    with Checkpoints.open_read_only(source) as checkpoints:
        return model_file.read(source).spec, checkpoints.restore_params()


def start_from(
    spec: DualEncoderSpec, *, image: str, text: str
) -> tuple[DualEncoderSpec, dict[str, Any]]:
    """Reads the weights that a dual encoder starts from.

    Args:
        spec: the dual encoder.
        image: where the image encoder's come from (see `read`); empty: they start at random.
        text: the same of the text encoder's and, where the source has one, the MLM head's.

    Returns:
        The specification, with what belongs to the weights (activation, LayerNorm epsilon, rows of
        the word table beyond the tokenizer's), and the parameters found, rooted as the model's.

    Raises:
        CheckpointError, ConversionError: a source cannot be read or is of another shape.
    """
    params: dict[str, Any] = {}
    if image:
        found, weights = read(image)
        source = _require(found, VisionSpec, "image", image)
        encoder = dict(weights["image_encoder"])
        encoder["position_embedding"] = resize(
            encoder["position_embedding"], source, spec.image.image_size
        )
        spec = dataclasses.replace(spec, image=_adopt(spec.image, source, "image", image))
        params["image_encoder"] = encoder
    if text:
        found, weights = read(text)
        source = _require(found, type(spec.text), "text", text)
        spec = dataclasses.replace(spec, text=_adopt(spec.text, source, "text", text))
        params["text_encoder"] = weights["text_encoder"]
        if spec.mlm and "mlm_head" in weights:
            params["mlm_head"] = weights["mlm_head"]
    for name in ("image_encoder", "text_encoder", *(["mlm_head"] if spec.mlm else [])):
        origin = image if name == "image_encoder" else text
        log.info("%s starts %s", name, f"from {origin}" if name in params else "at random")
    return spec, params


def resize(table: Any, source: VisionSpec, image_size: tuple[int, int]) -> np.ndarray:
    """Returns the position embeddings of `source` for images of another size."""
    target = dataclasses.replace(source, image_size=image_size)
    if source.grid != target.grid:
        log.info("position embeddings: %sx%s patches -> %sx%s", *source.grid, *target.grid)
    table = jnp.asarray(table)
    return np.asarray(resize_positions(table, source.grid, target.grid, source.prefix))


def put(params: Any, initial: Mapping[str, Any]) -> Any:
    """Returns `params` with the leaves of `initial` in their places, laid out as they were."""
    found = trees.flatten(initial)

    def replace(path: str, leaf: jax.Array) -> jax.Array:
        if path not in found:
            return leaf
        array = np.asarray(found[path], leaf.dtype)
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: array[index])

    return trees.map_with_path(replace, params)


def _require(found: Any, kind: type, side: str, origin: str) -> Any:
    """Returns the encoder of one side of what was read."""
    encoder = getattr(found, side) if isinstance(found, DualEncoderSpec) else found
    if not isinstance(encoder, kind):
        names = {VisionSpec: "an image encoder", TextSpec: "a BERT", ClipTextSpec: "a CLIP text"}
        raise ConversionError(
            f"init.{side}={origin!r} holds {names[type(encoder)]}, not {names[kind]}"
        )
    return encoder


def _adopt(wanted: Any, source: Any, side: str, origin: str) -> Any:
    """Returns `wanted` with what belongs to the weights; their shapes must be equal."""
    ours = ("image_size", "mean", "std", "dropout")  # Of the run, not of the weights.
    theirs = ["layer_norm_eps", "activation"]
    if side == "text" and source.vocab_size > wanted.vocab_size:
        theirs.append("vocab_size")  # Tables are often padded beyond the tokenizer's ids.
    differences = [
        f"{item.name} {getattr(source, item.name)}, not {getattr(wanted, item.name)}"
        for item in dataclasses.fields(wanted)
        if item.name not in (*ours, *theirs)
        and getattr(source, item.name) != getattr(wanted, item.name)
    ]
    if differences:
        raise ConversionError(
            f"init.{side}={origin!r} does not fit model.{side}: it has {'; '.join(differences)}"
        )
    return dataclasses.replace(wanted, **{name: getattr(source, name) for name in theirs})
