"""Specifications as plain values, so that a file beside the weights can say what they are."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from unipt_jax.core.errors import CheckpointError
from unipt_jax.models.bert import Bert, TextSpec
from unipt_jax.models.clip import ClipTextSpec
from unipt_jax.models.cross_modal import CrossModalSpec
from unipt_jax.models.dual_encoder import DualEncoder, DualEncoderSpec
from unipt_jax.models.heads import MlmHead
from unipt_jax.models.pgu import PguSpec
from unipt_jax.models.token_selection import TokenSelectionSpec
from unipt_jax.models.vit import VisionSpec, VisionTransformer

# A dual encoder, or one encoder to start one from.
Spec = DualEncoderSpec | VisionSpec | TextSpec
# Either of these, or a part of one.
Part = Spec | ClipTextSpec | CrossModalSpec | PguSpec | TokenSelectionSpec

KINDS: Mapping[str, type] = {
    "dual_encoder": DualEncoderSpec,
    "vit": VisionSpec,
    "bert": TextSpec,
    "clip_text": ClipTextSpec,
    "cross_modal": CrossModalSpec,
    "pgu": PguSpec,
    "token_selection": TokenSelectionSpec,
}


def to_dict(spec: Part) -> dict[str, Any]:
    """Returns the fields of `spec`, JSON-ready, with its `kind`."""
    values: dict[str, Any] = {
        "kind": next(kind for kind, cls in KINDS.items() if cls is type(spec))
    }
    for item in dataclasses.fields(spec):
        value = getattr(spec, item.name)
        if dataclasses.is_dataclass(value):
            value = to_dict(value)
        values[item.name] = list(value) if isinstance(value, tuple) else value
    return values


def from_dict(values: Mapping[str, Any]) -> Part:
    """Returns what `to_dict` was given.

    Raises:
        CheckpointError: the kind or a field is unknown, or a field is missing: another version of
            this library wrote it.
        ConfigError: values do not fit together.
    """
    kind = values.get("kind")
    cls = KINDS.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise CheckpointError(f"unknown kind of model {kind!r:.50}")
    fields = {item.name for item in dataclasses.fields(cls)}
    have = set(values) - {"kind"}
    if have != fields:
        raise CheckpointError(
            f"model of kind {kind!r} has other fields than this version of unipt_jax: "
            f"unknown {sorted(have - fields)}, missing {sorted(fields - have)}"
        )
    return cls(
        **{
            name: from_dict(value)
            if isinstance(value, Mapping)
            else tuple(value)
            if isinstance(value, list)
            else value
            for name, value in values.items()
            if name != "kind"
        }
    )


def abstract_batch(spec: DualEncoderSpec, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes and types of the shortest batch that a dual encoder takes."""
    shapes = {
        "image": ((*spec.image.image_size, 3), jnp.uint8),
        "text": ((3,), jnp.int32),
        "text_mask": ((3,), jnp.bool_),
        "masked_text": ((3,), jnp.int32),
        "mlm_positions": ((1,), jnp.int32),
    }
    return {
        name: jax.ShapeDtypeStruct((batch_size, *shape), dtype)
        for name, (shape, dtype) in shapes.items()
    }


def abstract_params(spec: Spec) -> Any:
    """Returns the shapes and types of a model's parameters; nothing is allocated.

    One encoder has the place that it has in a dual encoder: `image_encoder`, or `text_encoder` with
    BERT's `mlm_head`.
    """

    def initialise(key: jax.Array) -> Any:
        if isinstance(spec, DualEncoderSpec):
            shapes = abstract_batch(spec, 1)
            batch = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
            return DualEncoder(spec).init(key, batch, train=False)["params"]
        if isinstance(spec, VisionSpec):
            images = jnp.zeros((1, *spec.image_size, 3), jnp.float32)
            encoder = VisionTransformer(spec).init(key, images, train=False)
            return {"image_encoder": encoder["params"]}
        text, mask = jnp.zeros((1, 3), jnp.int32), jnp.ones((1, 3), jnp.bool_)
        encoder = Bert(spec).init(key, text, mask, train=False)["params"]
        tokens = jnp.zeros((1, 3, spec.hidden_size), jnp.float32)
        table = jnp.zeros((spec.vocab_size, spec.hidden_size), jnp.float32)
        head = MlmHead(spec.layer_norm_eps, spec.activation).init(key, tokens, text, table)
        return {"text_encoder": encoder, "mlm_head": head["params"]}

    return nn.meta.unbox(jax.eval_shape(initialise, jax.random.key(0)))
