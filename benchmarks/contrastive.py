"""The contrastive loss by blocks of rows against the textbook's dense loss: memory and time.

The dense loss is one product of all similarities and two log-softmaxes; loss and gradient of both
must agree. Memory is the temporary memory of a device that XLA's compiler for CPUs gives the
program beside embeddings and gradients; nothing runs for it. Times are of 8 virtual devices that
share the cores, and of one. Split by XLA is the dense loss on the embeddings of 8 devices.

Usage: python benchmarks/contrastive.py [--width=768] [--timed=4096,8192] [--rounds=5]

Timing a batch of 32,768 takes 20 GB.
"""

from collections.abc import Callable, Sequence

import compare
import jax
import jax.numpy as jnp
import numpy as np

from unipt_jax.core.sharding import batch_sharding, make_mesh
from unipt_jax.losses import contrastive
from unipt_jax.models.compute import compiler_options

BATCHES = (4096, 8192, 16384, 32768)
DEVICES = 8


def by_rows(image: jax.Array, text: jax.Array) -> jax.Array:
    """The library's loss."""
    valid = jnp.ones(len(image), bool)
    return contrastive.info_nce(image, text, jnp.float32(1.0), valid)[0]


def dense(image: jax.Array, text: jax.Array) -> jax.Array:
    """The textbook's."""
    image, text = (rows / jnp.linalg.norm(rows, axis=1, keepdims=True) for rows in (image, text))
    logits = jnp.einsum("id,jd->ij", image, text, precision=jax.lax.Precision.HIGHEST)
    # Of a log-softmax the diagonal alone, which takes less memory and time than all of it.
    normalizers = jax.nn.logsumexp(logits, axis=1) + jax.nn.logsumexp(logits, axis=0)
    return (normalizers / 2 - jnp.diagonal(logits)).mean()


class Program:
    """Value and gradient of a loss, compiled for some devices."""

    def __init__(self, loss: Callable[..., jax.Array], batch: int, width: int, devices: int):
        """Compiles it."""
        mesh = make_mesh(devices=jax.devices()[:devices])
        self.split = batch_sharding(mesh)
        embedding = jax.ShapeDtypeStruct((batch, width), jnp.float32, sharding=self.split)
        results = None, (self.split, self.split)
        gradient = jax.jit(
            jax.value_and_grad(loss, (0, 1)),
            out_shardings=results,
            compiler_options=compiler_options("cpu"),
        )
        with jax.set_mesh(mesh):
            self.compiled = gradient.lower(embedding, embedding).compile()

    def memory(self) -> float:
        """Returns the temporary memory of a device, in MiB."""
        return self.compiled.memory_analysis().temp_size_in_bytes / 2**20

    def on(self, embeddings: np.ndarray) -> Callable[[], tuple]:
        """Returns the program with its arguments on the devices; calls wait for the results."""
        placed = [jax.device_put(rows, self.split) for rows in embeddings]
        return lambda: jax.block_until_ready(self.compiled(*placed))


def memory_rows(batch: int, width: int) -> Sequence[compare.Row]:
    """Compares what the programs take."""
    ours, split, peer = (
        Program(loss, batch, width, devices).memory()
        for loss, devices in ((by_rows, DEVICES), (dense, DEVICES), (dense, 1))
    )
    name = f"contrastive loss, batch {batch:,}, memory of each of {DEVICES} devices"
    return [
        compare.Row(f"{name}, against dense on 1", ours, peer, "MiB", peer / ours, 8.0),
        compare.Row(f"{name}, against dense split by XLA", ours, split, "MiB", split / ours, None),
    ]


def time_rows(batch: int, width: int, rounds: int) -> Sequence[compare.Row]:
    """Compares the results of the programs, then times them in turn."""
    embeddings = np.random.default_rng(0).normal(size=(2, batch, width)).astype(np.float32)
    # Near partners, for a gradient that is not all noise.
    embeddings[1] += embeddings[0]
    programs = [
        Program(loss, batch, width, devices).on(embeddings)
        for loss, devices in ((by_rows, DEVICES), (by_rows, 1), (dense, DEVICES), (dense, 1))
    ]
    *others, want = (jax.device_get(it()) for it in programs)
    for have in others:
        require_equal(have, want)
    many, one, split, peer = compare.in_turn(programs, rounds).T
    name = f"contrastive loss, batch {batch:,}, time"
    return [
        compare.row(f"{name} on {DEVICES} devices, against dense on 1", many, peer, 1 / 1.2),
        compare.row(f"{name} on 1 device, against dense on 1", one, peer, 1 / 1.2),
        compare.row(f"{name} on {DEVICES} devices, against dense split by XLA", many, split, None),
    ]


def require_equal(have: tuple, want: tuple) -> None:
    """Checks that two programs computed the same loss and gradients.

    Raises:
        ValueError: they did not.
    """
    off = [abs(have[0] - want[0]) / abs(want[0])]
    off += [np.abs(a - b).max() / np.abs(b).max() for a, b in zip(have[1], want[1], strict=True)]
    if not max(off) < 1e-4:
        raise ValueError(f"the losses or their gradients differ, relatively by up to {max(off)}")


def measure(width: int, timed: str, rounds: int) -> Sequence[compare.Row]:
    """Compiles all batches, and times those of `timed`."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    rows = [row for batch in BATCHES for row in memory_rows(batch, width)]
    for batch in map(int, timed.split(",")):
        rows += time_rows(batch, width, rounds)
    return rows


if __name__ == "__main__":
    compare.main(__doc__, measure, width=768, timed="4096,8192", rounds=5)
