"""The train step: one batch in, one optimizer step, one row of metrics out."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

from unipt_jax.core import random
from unipt_jax.core.sharding import Axis, constrain
from unipt_jax.training.objective import Batch, Metrics, Objective
from unipt_jax.training.state import TrainState

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    *,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    accumulate: int = 1,
    ema: float = 0.0,
) -> TrainStep:
    """Returns the pure `(state, batch) -> (state, metrics)`; `training.loop` jits it once.

    With `accumulate` n the batch is encoded in n parts, one after another, with the loss and
    gradients of the whole batch all the same (only dropout draws differently). `ema` is the decay
    of the parameters' moving average, see `TrainState`.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = random.stream(state.key, "dropout", state.step)
        if accumulate == 1:
            gradients, metrics = whole_gradients(objective, state.params, batch, key)
        else:
            gradients, metrics = parted_gradients(objective, state.params, batch, key, accumulate)
        metrics |= {
            "gradient_norm": optax.global_norm(gradients),
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        }
        return state.apply_gradients(gradients, optimizer, ema), metrics

    return train_step


def whole_gradients(
    objective: Objective, params: Any, batch: Batch, key: Key[Array, ""]
) -> tuple[Any, Metrics]:
    """Returns the gradient of the objective, and its metrics, in one pass."""

    def loss(params: Any) -> tuple[Array, Metrics]:
        return objective.loss(objective.features(params, batch, key), batch, _loss_key(key))

    return jax.grad(loss, has_aux=True)(params)


def parted_gradients(
    objective: Objective, params: Any, batch: Batch, key: Key[Array, ""], parts: int
) -> tuple[Any, Metrics]:
    """Returns the same as `whole_gradients`, holding the activations of one part at a time.

    Features are computed part by part and kept; the loss over all of them gives each feature's
    gradient; then each part is computed again to carry its share back to the parameters (Gao et
    al., 2021, "Scaling deep contrastive learning batch size"). Every negative of the batch counts.
    """

    # Part p takes every parts-th row: rows stay on their devices when the batch is sharded.
    def split(array: Array) -> Array:
        parted = jnp.swapaxes(array.reshape(-1, parts, *array.shape[1:]), 0, 1)
        return constrain(parted, (None, Axis.BATCH, *[None] * (array.ndim - 1)))

    def join(array: Array) -> Array:
        return jnp.swapaxes(array, 0, 1).reshape(-1, *array.shape[2:])

    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(parts))
    split_batch = jax.tree.map(split, batch)
    encode = lambda params, part: objective.features(params, *part)  # noqa: E731
    features = jax.lax.map(lambda part: encode(params, part), (split_batch, keys))
    cotangents, metrics = jax.grad(objective.loss, has_aux=True)(
        jax.tree.map(join, features), batch, _loss_key(key)
    )

    def add(total: Any, inputs: tuple[Any, Any]) -> tuple[Any, None]:
        part, cotangent = inputs
        _, pull_back = jax.vjp(lambda params: encode(params, part), params)
        return jax.tree.map(jnp.add, total, pull_back(cotangent)[0]), None

    zeros = jax.tree.map(jnp.zeros_like, params)
    gradients, _ = jax.lax.scan(add, zeros, ((split_batch, keys), jax.tree.map(split, cotangents)))
    return gradients, metrics


def _loss_key(key: Key[Array, ""]) -> Key[Array, ""]:
    return random.stream(key, "loss", 0)
