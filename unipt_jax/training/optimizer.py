"""AdamW or Adam with a schedule, a learning rate a group of parameters, and optional clipping."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from unipt_jax.core import trees

MAX_LOGIT_SCALE = math.log(100)  # CLIP (Radford et al., 2021), section 2.5


# A part of the model, as its parameters' paths begin, and its group; all others are "new".
_GROUPS = {
    "image_encoder": "image",
    "image_head": "image",
    "text_encoder": "text",
    "text_head": "text",
    "mlm_head": "text",
    "logit_scale": "text",
    "logit_bias": "text",
}


def learning_rate_schedule(
    *,
    peak: float,
    steps: int,
    warmup: float,
    decay: Literal["none", "linear", "cosine"],
    start: float = 0.0,
    end: float = 0.0,
) -> optax.Schedule:
    """Returns the learning rate by step: a linear rise over `warmup * steps`, then `decay`.

    Args:
        peak: the highest.
        steps: of the run.
        warmup: share of the steps in which it rises from `start`.
        decay: "none" stays at the peak, the others fall to `end` at `steps`.
        start: in shares of the peak (IRRA: 0.1).
        end: in shares of the peak (TBPS-CLIP: 0.05).
    """
    rise = round(warmup * steps)
    rest = max(1, steps - rise)
    after = {
        "none": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, end * peak, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest, alpha=end),
    }[decay]
    warm = optax.linear_schedule(start * peak, peak, max(1, rise))
    return optax.join_schedules([warm, after], [rise])


def decays(params: Any) -> Any:
    """Marks what weight decay shrinks: not biases, LayerNorms, `logit_scale` and `logit_bias`."""

    def decayed(path: str, _: Any) -> bool:
        *parents, name = path.split("/")
        in_norm = any("layer_norm" in parent for parent in parents)
        return name not in ("bias", "logit_scale", "logit_bias") and not in_norm

    return trees.map_with_path(decayed, params)


def make_optimizer(
    schedule: optax.Schedule,
    *,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
    clip_norm: float,
    name: Literal["adamw", "adam"] = "adamw",
    factors: Mapping[str, float] | None = None,
) -> optax.GradientTransformation:
    """Chains clipping of the global gradient norm (0: none), AdamW, and the bound on `logit_scale`.

    AdamW is Loshchilov and Hutter's (2019): the decay is decoupled, `learning_rate * weight_decay`
    a step. Adam adds `weight_decay * parameter` to the gradient instead, as torch's does.

    Args:
        schedule: learning rate by step.
        beta1: decay of the first moment.
        beta2: of the second.
        epsilon: added to the second moment's root.
        weight_decay: see `decays` for what it shrinks.
        clip_norm: largest global norm.
        name: "adamw" or "adam".
        factors: on the learning rate, by group: "image" and "text" (an encoder with its
            projection), "new" (what has no counterpart in a pre-trained model, its biases too),
            and "bias", on top of an encoder's. A group that is not named has 1.
    """
    clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    adam = optax.scale_by_adam(b1=beta1, b2=beta2, eps=epsilon)
    decay = optax.add_decayed_weights(weight_decay, mask=decays)
    order = [adam, decay] if name == "adamw" else [decay, adam]
    scale = [_scale_groups(factors), optax.scale_by_learning_rate(schedule)]
    return optax.chain(*clip, *order, *scale, _bound_logit_scale())


def rate_factor(path: str, factors: Mapping[str, float]) -> float:
    """Returns by what `make_optimizer` multiplies the learning rate of the parameter at a path."""
    names = path.split("/")
    group = _GROUPS.get(names[0], "new")
    factor = factors.get(group, 1.0)
    if names[-1] == "bias" and group != "new":
        factor *= factors.get("bias", 1.0)
    return factor


def _scale_groups(factors: Mapping[str, float] | None) -> optax.GradientTransformation:
    """Multiplies each update by the factor of its group and, of an encoder's biases, by theirs."""

    def scale(path: str, change: jax.Array) -> jax.Array:
        factor = rate_factor(path, factors or {})
        return change if factor == 1.0 else factor * change

    return optax.stateless(lambda updates, _: trees.map_with_path(scale, updates))


def _bound_logit_scale() -> optax.GradientTransformation:
    """Shortens an update that would carry the parameter `logit_scale` over ln 100."""

    def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
        def bound(path: str, change: jax.Array, value: jax.Array) -> jax.Array:
            if path.split("/")[-1] != "logit_scale":
                return change
            return jnp.minimum(change, MAX_LOGIT_SCALE - value)

        flat = trees.flatten(params)
        return trees.map_with_path(lambda p, change: bound(p, change, flat[p]), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
