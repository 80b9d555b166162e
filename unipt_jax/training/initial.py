"""Where training starts from: other weights in place of random ones."""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from unipt_jax.core import trees
from unipt_jax.core.errors import CheckpointError, ConversionError
from unipt_jax.data import tokenization
from unipt_jax.interop import huggingface
from unipt_jax.models import specs
from unipt_jax.models.bert import TextSpec
from unipt_jax.models.clip import ClipTextSpec
from unipt_jax.models.dual_encoder import DualEncoderSpec
from unipt_jax.models.positions import resize_positions
from unipt_jax.models.vit import VisionSpec
from unipt_jax.training import model_file

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Source:
    """Weights to start from.

    Attributes:
        spec: of the dual encoder, or of one encoder.
        params: its parameters, in host memory.
        vocabulary: ids of the tokens that the text encoder was trained with; None if nothing tells.
    """

    spec: specs.Spec
    params: Mapping[str, Any]
    vocabulary: Mapping[str, int] | None


def read(name: str) -> Source:
    """Reads a run, a conversion or foreign weights.

    Raises:
        CheckpointError: the run holds no complete checkpoint, or not of what its `model.json` says.
        ConversionError: the foreign weights cannot be read.
        DataError: the tokenizer beside the weights is damaged.
    """
    if model_file.exists(name):
        spec = model_file.read(name).spec
        params = jax.device_get(model_file.params(name, spec))
        beside = epath.Path(name) / model_file.TOKENIZER_DIRECTORY
        tokenizer = model_file.tokenizer(name) if tokenization.is_in(beside) else None
    else:
        # BertModel is BERT without its MLM head.
        foreign = huggingface.load(name, allow_missing=("mlm_head",))
        spec, params, beside = foreign.spec, foreign.params, foreign.directory
        tokenizer = tokenization.load(str(beside)) if tokenization.is_in(beside) else None
    return Source(spec, params, tokenizer.vocabulary if tokenizer else None)


def start_from(
    spec: DualEncoderSpec,
    vocabulary: Mapping[str, int],
    *,
    whole: str = "",
    image: str = "",
    text: str = "",
) -> tuple[DualEncoderSpec, dict[str, Any]]:
    """Reads the weights that a dual encoder starts from.

    Args:
        spec: the dual encoder.
        vocabulary: ids of the tokens in its texts.
        whole: where all of it comes from (see `read`): both encoders, their heads, and what else
            has the same shape there (a temperature, the MLM head, granularity-unified features),
            but no classifier of identities: its identities were others. Empty: see the next two.
        image: where the image encoder's come from; empty: they start at random.
        text: the same of the text encoder's and, where the source has one, the MLM head's.

    Returns:
        The specification, with what belongs to the weights (activation, LayerNorm epsilon, DeiT's
        second token, rows of the word table beyond the tokenizer's), and the parameters found,
        rooted as the model's. Pixels stay normalised as `spec` says; with `whole`, as there.

    Raises:
        CheckpointError, ConversionError: a source cannot be read, is of another shape, or gives the
            tokens of a text other ids.
    """
    params: dict[str, Any] = {}
    image_field, text_field = ("init", "init") if whole else ("init_image", "init_text")
    image, text = (whole, whole) if whole else (image, text)
    # One source of both is read once.
    fields = {image: image_field, text: text_field}
    sources = {origin: _read(origin, field) for origin, field in fields.items() if origin}
    if whole:
        found = sources[whole].spec
        _require_heads(found, spec, whole)
        mean, std = found.image.mean, found.image.std
        spec = dataclasses.replace(spec, image=dataclasses.replace(spec.image, mean=mean, std=std))
    if image:
        found = _require(sources[image].spec, VisionSpec, "image", image_field, image)
        adopted = _adopt(spec.image, found, "image", image_field, image)
        params["image_encoder"] = resize(
            sources[image].params["image_encoder"], found, adopted.image_size
        )
        spec = dataclasses.replace(spec, image=adopted)
    if text:
        found = _require(sources[text].spec, type(spec.text), "text", text_field, text)
        spec = dataclasses.replace(spec, text=_adopt(spec.text, found, "text", text_field, text))
        _require_vocabulary(sources[text].vocabulary, vocabulary, text_field, text)
        params["text_encoder"] = sources[text].params["text_encoder"]
    if whole:
        params |= _same_parts(spec, sources[whole])
    elif text and spec.mlm and not spec.cross_modal and "mlm_head" in sources[text].params:
        params["mlm_head"] = sources[text].params["mlm_head"]
    return spec, params


def _require_heads(found: Any, wanted: DualEncoderSpec, origin: str) -> None:
    """Checks that a source is a dual encoder whose embeddings are made as those wanted."""
    if not isinstance(found, DualEncoderSpec):
        raise ConversionError(
            f"init={origin!r} holds one encoder alone; name it as init_image or init_text"
        )
    faults = [
        f"{name} {getattr(found, name)!r}, not {getattr(wanted, name)!r}"
        for name in ("embedding_dim", "pooling")
        if getattr(found, name) != getattr(wanted, name)
    ]
    if faults:
        raise ConversionError(
            f"init={origin!r} does not fit model: it has {'; '.join(faults)}; name other weights "
            "or change these fields of model"
        )


def _same_parts(spec: DualEncoderSpec, source: Source) -> dict[str, Any]:
    """Returns the parameters beside the encoders that have the same name and shape in `source`."""
    wanted = specs.abstract_params(spec)
    never = ("image_encoder", "text_encoder", "identity_head", "pgu_identity_head")
    return {
        name: part
        for name, part in source.params.items()
        if name in wanted and name not in never and not trees.shape_differences(part, wanted[name])
    }


def resize(
    encoder: Mapping[str, Any], source: VisionSpec, image_size: tuple[int, int]
) -> dict[str, Any]:
    """Returns an image encoder's parameters for images of another size than `source`'s."""
    target = dataclasses.replace(source, image_size=image_size)
    table = jnp.asarray(encoder["position_embedding"])
    table = np.asarray(resize_positions(table, source.grid, target.grid, source.prefix))
    return {**encoder, "position_embedding": table}


def put(params: Any, initial: Mapping[str, Any]) -> Any:
    """Returns `params` with the leaves of `initial` in their places, laid out as they were."""
    found = trees.flatten(initial)

    def replace(path: str, leaf: jax.Array) -> jax.Array:
        if path not in found:
            return leaf
        array = np.asarray(found[path], leaf.dtype)
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: array[index])

    return trees.map_with_path(replace, params)


def _read(name: str, field: str) -> Source:
    try:
        return read(name)
    except (CheckpointError, ConversionError) as error:
        raise ConversionError(f"{field}: {error}; --config.{field}= starts at random") from error


def _require(found: Any, kind: type, side: str, field: str, origin: str) -> Any:
    """Returns the encoder of one side of what was read."""
    encoder = getattr(found, side) if isinstance(found, DualEncoderSpec) else found
    if not isinstance(encoder, kind):
        names = {
            VisionSpec: "an image encoder",
            TextSpec: "a BERT",
            ClipTextSpec: "a CLIP text encoder",
        }
        raise ConversionError(
            f"{field}={origin!r} holds {names[type(encoder)]}, not {names[kind]}; name another"
        )
    return encoder


def _adopt(wanted: Any, source: Any, side: str, field: str, origin: str) -> Any:
    """Returns `wanted` with what belongs to the weights; their shapes must be equal."""
    ours = ("image_size", "mean", "std", "dropout")  # Of the run, not of the weights.
    theirs = ["layer_norm_eps", "activation"]
    if side == "image":
        theirs.append("distillation_token")
    elif source.vocab_size > wanted.vocab_size:
        theirs.append("vocab_size")  # Tables are often padded beyond the tokenizer's ids.
    differences = [
        f"{item.name} {getattr(source, item.name)}, not {getattr(wanted, item.name)}"
        for item in dataclasses.fields(wanted)
        if item.name not in (*ours, *theirs)
        and getattr(source, item.name) != getattr(wanted, item.name)
    ]
    if differences:
        raise ConversionError(
            f"{field}={origin!r} does not fit model.{side}: it has {'; '.join(differences)}; "
            "name other weights or another variant"
        )
    adopted = dataclasses.replace(wanted, **{name: getattr(source, name) for name in theirs})
    told = [
        f"{name} {getattr(adopted, name)!r} of the weights, not {getattr(wanted, name)!r}"
        for name in theirs
        if getattr(adopted, name) != getattr(wanted, name)
    ]
    if side == "image" and source.image_size != wanted.image_size:
        told.append(f"positions resized from image_size {source.image_size} to {wanted.image_size}")
    if told:
        log.info("%s=%r: %s", field, origin, "; ".join(told))
    return adopted


def _require_vocabulary(
    theirs: Mapping[str, int] | None, ours: Mapping[str, int], field: str, origin: str
) -> None:
    """Checks that a token has the embedding of that very token."""
    if theirs is None:
        log.warning(
            "%s=%r comes without a tokenizer: that text.tokenizer numbers tokens as it was trained "
            "to read them is not checked",
            field,
            origin,
        )
        return
    others = [token for token, number in ours.items() if theirs.get(token) != number]
    if others:
        token = others[0]
        raise ConversionError(
            f"{field}={origin!r} was trained with another vocabulary: {len(others)} of "
            f"{len(ours)} tokens differ, such as {token!r}, {theirs.get(token, 'unknown')} there "
            f"and {ours[token]} in text.tokenizer; use its tokenizer, for the data too"
        )
