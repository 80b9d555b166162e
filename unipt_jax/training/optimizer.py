"""AdamW with the paper's schedule, its decay mask, and optional gradient clipping."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from unipt_jax.core import trees

MAX_LOGIT_SCALE = math.log(100)  # CLIP (Radford et al., 2021), section 2.5


def learning_rate_schedule(*, peak: float, steps: int, warmup: float, decay: str) -> optax.Schedule:
    """Returns the learning rate by step: a linear rise from 0 over `warmup * steps`, then `decay`.

    `decay` is "none" (stays at the peak), "linear" or "cosine" (to 0 at `steps`).
    """
    rise = round(warmup * steps)
    rest = max(1, steps - rise)
    after = {
        "none": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest),
    }[decay]
    return optax.join_schedules([optax.linear_schedule(0.0, peak, max(1, rise)), after], [rise])


def decays(params: Any) -> Any:
    """Marks the parameters that weight decay shrinks: not biases, LayerNorms and `logit_scale`."""

    def decayed(path: str, _: Any) -> bool:
        *parents, name = path.split("/")
        in_norm = any("layer_norm" in parent for parent in parents)
        return name not in ("bias", "logit_scale") and not in_norm

    return trees.map_with_path(decayed, params)


def make_optimizer(
    schedule: optax.Schedule,
    *,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
    clip_norm: float,
) -> optax.GradientTransformation:
    """Chains clipping of the global gradient norm (0: none), AdamW, and the bound on `logit_scale`.

    AdamW is Loshchilov and Hutter's (2019): the decay is decoupled, `learning_rate * weight_decay`
    a step.
    """
    clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    adamw = optax.adamw(
        schedule, b1=beta1, b2=beta2, eps=epsilon, weight_decay=weight_decay, mask=decays
    )
    return optax.chain(*clip, adamw, _bound_logit_scale())


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
