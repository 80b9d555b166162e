"""One step of the paper's model at full size: time and peak memory, from the published recipe.

Usage: python benchmarks/full_size_step.py [--batch_size=8] [--steps=3] [--dtype=bfloat16]
"""

import argparse
import resource
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from unipt_jax.config import load
from unipt_jax.core import trees
from unipt_jax.core.sharding import make_mesh, put_batch
from unipt_jax.models.dual_encoder import DualEncoder
from unipt_jax.training import loop, metrics, run, state

VOCABULARY = 30522  # bert-base-uncased
PREDICTIONS = 15  # 15 % of 98 ordinary tokens


def random_batch(batch_size: int, height: int, width: int, length: int) -> dict[str, np.ndarray]:
    """Returns a batch of noise with full-length captions."""
    rng = np.random.default_rng(0)
    text = rng.integers(VOCABULARY, size=(batch_size, length), dtype=np.int32)
    positions = np.tile(np.arange(1, PREDICTIONS + 1, dtype=np.int32), (batch_size, 1))
    return {
        "image": rng.integers(256, size=(batch_size, height, width, 3), dtype=np.uint8),
        "text": text,
        "text_mask": np.ones_like(text, bool),
        "masked_text": text,
        "mlm_positions": positions,
        "mlm_labels": np.take_along_axis(text, positions, axis=1),
        "mlm_mask": np.ones_like(positions, bool),
        "identity": np.arange(batch_size, dtype=np.int32),
        "record": np.arange(batch_size, dtype=np.int32),
        "valid": np.ones(batch_size, bool),
    }


def peak_memory() -> float:
    """Returns the most memory, in bytes, that this process has held: the device's if it has any."""
    device = jax.local_devices()[0].memory_stats()
    if device:
        return device["peak_bytes_in_use"]
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident if sys.platform == "darwin" else resident * 1024


def measure(batch_size: int, steps: int, dtype: str) -> dict[str, float]:
    """Returns parameters, seconds a step (the first apart), peak memory in GiB, and loss."""
    overrides = {"data": "none", "batch_size": batch_size, "dtype": dtype}
    config = load.load("configs/pretrain.py", overrides)
    spec = run.build_spec(config, vocab_size=VOCABULARY, end_token=0, identities=0)
    model = DualEncoder(spec, dtype=jnp.dtype(config.dtype))
    transform, train_step = run.build_step(config, model, steps=100)
    mesh = make_mesh()
    batch = put_batch(
        random_batch(batch_size, config.image.height, config.image.width, config.text.length), mesh
    )
    train_state, shardings = state.create(model, batch, transform, seed=0, mesh=mesh)
    train_step = loop.jit_step(train_step, shardings, mesh)
    parameters = trees.count_parameters(train_state.params)
    seconds = []
    with jax.set_mesh(mesh):
        for _ in range(steps):
            start = time.perf_counter()
            train_state, scalars = train_step(train_state, batch)
            row = metrics.fetch(scalars)
            seconds.append(time.perf_counter() - start)
    return {
        "parameters": parameters,
        "first_step_s": seconds[0],
        "later_step_s": float(np.median(seconds[1:])) if steps > 1 else float("nan"),
        "peak_memory_gib": peak_memory() / 2**30,
        "loss": row["loss"],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    flags = parser.parse_args()
    print(f"device: {jax.devices()[0].device_kind}")
    for name, value in measure(flags.batch_size, flags.steps, flags.dtype).items():
        print(f"{name}: {value:,.2f}" if isinstance(value, float) else f"{name}: {value:,}")
