"""Everything that changes while training, as one tree of arrays."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, UInt

from unipt_jax.core import random
from unipt_jax.core.sharding import parameter_shardings


@flax.struct.dataclass
class TrainState:
    """Everything of a run that a step changes.

    Attributes:
        step: int32[], the number of optimizer steps taken.
        params: the model's parameters, float32.
        opt_state: the optimizer's state.
        average: the parameters' exponential moving average, or None without one.
        key: the run's typed random key; never split: a step draws from streams that are folded out
            of it by name and step.

    The same structure also holds shapes or shardings, hence the open types.
    """

    step: Any
    params: Any
    opt_state: Any
    average: Any
    key: Any

    def apply_gradients(
        self, gradients: Any, optimizer: optax.GradientTransformation, ema: float = 0.0
    ) -> "TrainState":
        """Returns the state one optimizer step later; `ema` in [0, 1) is the average's decay.

        The average of the first steps is that of fewer parameters: its decay at step t is at most
        (1 + t) / (10 + t), as in TensorFlow's ExponentialMovingAverage.
        """
        updates, opt_state = optimizer.update(gradients, self.opt_state, self.params)
        params = optax.apply_updates(self.params, updates)
        step = self.step + 1
        decay = jnp.minimum(ema, (1.0 + step) / (10.0 + step))
        average = jax.tree.map(
            lambda old, new: decay * old + (1.0 - decay) * new,
            self.average,
            params if self.average is not None else None,
        )
        return self.replace(step=step, params=params, opt_state=opt_state, average=average)

    @property
    def chosen(self) -> Any:
        """The parameters to evaluate and to keep: the average, if there is one."""
        return self.params if self.average is None else self.average


def abstract(
    model: nn.Module,
    example: Any,
    optimizer: optax.GradientTransformation,
    *,
    mesh: Mesh,
    ema: float = 0.0,
) -> tuple[TrainState, TrainState]:
    """Returns the shapes and types of what `create` makes, and its shardings; allocates nothing."""
    initialise = _initialiser(model, example, optimizer, ema)
    named = jax.eval_shape(initialise, jax.ShapeDtypeStruct((), jnp.uint32))
    return nn.meta.unbox(named), parameter_shardings(named, mesh)


def create(
    model: nn.Module,
    example: Any,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    mesh: Mesh,
    ema: float = 0.0,
) -> tuple[TrainState, TrainState]:
    """Initialises a state, each array straight onto its devices.

    `example` is a batch that the model's `__call__` takes, of arrays or of shapes and types alone;
    with `ema` above 0 the state has an average.

    Returns:
        The state and, of the same structure, its shardings.
    """
    initialise, argument = _initialiser(model, example, optimizer, ema), jnp.uint32(seed)
    with jax.set_mesh(mesh):
        # Of one function and one argument, the trace for the shapes is that which is compiled.
        shardings = parameter_shardings(jax.eval_shape(initialise, argument), mesh)
        state = jax.jit(initialise, out_shardings=shardings)(argument)
    return nn.meta.unbox(state), shardings


def _initialiser(
    model: nn.Module, example: Any, optimizer: optax.GradientTransformation, ema: float
) -> Callable[[UInt[Array, ""]], TrainState]:
    """Returns what makes a state of a seed, its parameters under their logical names."""

    def initialise(seed: UInt[Array, ""]) -> TrainState:
        key = jax.random.key(seed)
        zeros = jax.tree.map(lambda array: jnp.zeros(array.shape, array.dtype), example)
        params = model.init(random.stream(key, "params", 0), zeros, train=False)["params"]
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimizer.init(params),
            average=jax.tree.map(jnp.copy, params) if ema else None,
            key=key,
        )

    return initialise
