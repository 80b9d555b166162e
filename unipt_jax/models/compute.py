"""How transformer blocks are computed: choices of time and memory that no parameter depends on."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax

from unipt_jax.models.checks import require_fields

PRODUCT = "product"  # What `layers.dense` calls its matrix products.

_SAVED = {
    "dots": jax.checkpoint_policies.save_only_these_names(PRODUCT),
    "full": jax.checkpoint_policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True)
class Compute:
    """How the blocks of an encoder are computed; the same function whatever is chosen.

    Attributes:
        scan: whether one block is compiled and run over the parameters of all, stacked, so that
            time and size of compilation do not grow with the depth; dropout draws otherwise.
        remat: what of a block is computed again for its gradient, to save memory: "none"; "dots",
            all but its matrix products with parameters; "full", all but what enters the block.
        attention: "plain" matrix products, or "fused" (`jax.nn.dot_product_attention`), which
            drops no attention probabilities and takes padding at the end of a text alone.

    Raises:
        ConfigError: a value is not what its field is declared to be.
    """

    scan: bool = False
    remat: Literal["none", "dots", "full"] = "none"
    attention: Literal["plain", "fused"] = "plain"

    def __post_init__(self):
        require_fields(self)

    def rematerialise(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a function of a module and arrays that keeps for its gradient what `remat` says.

        Parameters and what dropout draws stay those of `function`.
        """
        return function if self.remat == "none" else nn.remat(function, policy=_SAVED[self.remat])


def compiler_options(platform: str) -> dict[str, str]:
    """Returns the options of XLA that training steps are compiled with for a platform.

    Its compiler for CPUs removes optimization barriers before it merges equal expressions: what was
    to be computed again would be kept in memory after all.
    """
    return {"xla_disable_hlo_passes": "cse_barrier_expander"} if platform == "cpu" else {}
