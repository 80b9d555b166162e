"""Named random streams: every random number derives from a seed, a name and a step, by folding."""

import zlib

import jax
import numpy as np
from jaxtyping import Array, Int, Key


def stream(key: Key[Array, ""], name: str, step: int | Int[Array, ""]) -> Key[Array, ""]:
    """Returns the key of stream `name` at `step`; the same arguments always give the same key.

    `key` is a typed key (`jax.random.key`). Streams of other names or steps are independent.
    """
    return jax.random.fold_in(jax.random.fold_in(key, zlib.crc32(name.encode())), step)


def host_generator(seed: int, name: str, position: int) -> np.random.Generator:
    """Returns NumPy's generator for `(seed, name, position)`: the host's counterpart of `stream`.

    `position` counts examples from the first of a run (epoch and step follow from it), so the
    numbers depend neither on the worker nor on the process that draws them.
    """
    entropy = (seed, zlib.crc32(name.encode()), position)
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))
