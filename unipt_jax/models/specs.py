"""Specifications as plain values, so that a file beside the weights can say what they are."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from unipt_jax.core.errors import CheckpointError
from unipt_jax.models.bert import TextSpec
from unipt_jax.models.clip import ClipTextSpec
from unipt_jax.models.dual_encoder import DualEncoderSpec
from unipt_jax.models.vit import VisionSpec

Spec = DualEncoderSpec | VisionSpec | TextSpec | ClipTextSpec

KINDS: Mapping[str, type] = {
    "dual_encoder": DualEncoderSpec,
    "vit": VisionSpec,
    "bert": TextSpec,
    "clip_text": ClipTextSpec,
}


def to_dict(spec: Spec) -> dict[str, Any]:
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


def from_dict(values: Mapping[str, Any]) -> Spec:
    """Returns what `to_dict` was given.

    Raises:
        CheckpointError: the kind or a field is unknown, or a field is missing: another version of
            this library wrote it.
        ConfigError: values do not fit together.
    """
    cls = KINDS.get(values.get("kind"))
    if cls is None:
        raise CheckpointError(f"unknown kind of model {values.get('kind')!r}")
    fields = {item.name for item in dataclasses.fields(cls)}
    have = set(values) - {"kind"}
    if have != fields:
        raise CheckpointError(
            f"model of kind {values['kind']!r} has other fields than this version of unipt_jax: "
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
