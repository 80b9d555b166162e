"""The contrastive loss by blocks of rows against the dense loss: memory on 1 to 8 devices.

Compiles loss and gradient of either for virtual devices and runs none: temporary memory of a device
is what XLA's compiler for CPUs gives the program beside embeddings and gradients. The dense loss is
the textbook's, on all similarities at once; on several devices XLA splits it as it sees fit.

Usage: python benchmarks/contrastive.py [--width=768]
"""

import argparse
from collections.abc import Callable

import jax
import jax.numpy as jnp

from unipt_jax.core.sharding import batch_sharding, make_mesh
from unipt_jax.losses import contrastive, rows

BATCHES = (4096, 8192, 16384, 32768)
DEVICES = (1, 2, 4, 8)


def by_rows(image: jax.Array, text: jax.Array, valid: jax.Array) -> jax.Array:
    """The library's loss."""
    return contrastive.info_nce(image, text, jnp.float32(1.0), valid)[0]


def dense(image: jax.Array, text: jax.Array, valid: jax.Array) -> jax.Array:
    """The same value, of B x B similarities that are there as a whole."""
    similarity = rows.dots(rows.unit_rows(image, valid), rows.unit_rows(text, valid))
    logits = jnp.where(valid[:, None] & valid[None, :], similarity, -1e30)
    own = jnp.diagonal(logits)
    both = jax.nn.logsumexp(logits, axis=1) + jax.nn.logsumexp(logits, axis=0) - 2.0 * own
    return rows.valid_mean(both, valid) / 2.0


def temporary_memory(loss: Callable[..., jax.Array], batch: int, width: int, devices: int) -> int:
    """Returns the bytes that loss and gradient take on each device while they are computed."""
    mesh = make_mesh(devices=jax.devices()[:devices])
    split = batch_sharding(mesh)
    embedding = jax.ShapeDtypeStruct((batch, width), jnp.float32, sharding=split)
    valid = jax.ShapeDtypeStruct((batch,), jnp.bool_, sharding=split)
    gradient = jax.jit(jax.value_and_grad(loss, (0, 1)), out_shardings=(None, (split, split)))
    with jax.set_mesh(mesh):
        compiled = gradient.lower(embedding, embedding, valid).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def main() -> None:
    """Prints the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=768)
    width = parser.parse_args().width
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(DEVICES))
    print(f"| batch | loss | {' | '.join(f'on {devices}, MiB' for devices in DEVICES)} |")
    print(f"|---|---|{'---|' * len(DEVICES)}")
    for batch in BATCHES:
        for name, loss in (("dense", dense), ("by rows", by_rows)):
            found = [temporary_memory(loss, batch, width, devices) for devices in DEVICES]
            cells = " | ".join(f"{size / 2**20:,.0f}" for size in found)
            print(f"| {batch:,} | {name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
