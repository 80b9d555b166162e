"""What rematerialised and scanned layers buy the paper's model: memory and time of compilation.

Compiles the gradient of a training batch for each choice and runs none of them. Temporary memory is
what XLA gives the program beside its arguments and results (parameters, batch, gradients). It is
told twice: XLA's compiler for CPUs drops the barriers by which JAX keeps what is computed again
from being merged with its first computation, unless that pass is left out.

Usage: python benchmarks/memory.py [--batch_size=8] [--dtype=bfloat16]
"""

import argparse
import time
from typing import Any

import jax
from full_size_step import VOCABULARY, random_batch

from unipt_jax.config import load
from unipt_jax.models import specs
from unipt_jax.training import objective, run, step

WITH_BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander"}


def measure(batch_size: int, **settings: Any) -> tuple[float, list[float]]:
    """Returns the seconds that tracing and compiling took, and GiB without and with barriers."""
    config = load.load(
        "configs/pretrain.py", {"data": "none", "batch_size": batch_size, **settings}
    )
    spec = run.build_spec(config, vocab_size=VOCABULARY, end_token=0, identities=0)
    aim = objective.weighted(run.build_model(config, spec), config.loss)
    batch = random_batch(batch_size, config.image.height, config.image.width, config.text.length)
    start = time.perf_counter()
    gradient = jax.jit(lambda *arguments: step.whole_gradients(aim, *arguments))
    lowered = gradient.lower(specs.abstract_params(spec), batch, jax.random.key(0))
    programs = [lowered.compile()]
    seconds = time.perf_counter() - start
    programs.append(lowered.compile(WITH_BARRIERS))
    return seconds, [it.memory_analysis().temp_size_in_bytes / 2**30 for it in programs]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--dtype", default="float32")
    flags = parser.parse_args()
    print(f"device: {jax.devices()[0].device_kind}")
    print("| scan | remat | memory, GiB | with barriers | compilation, s |\n|---|---|---|---|---|")
    for scan in (False, True):
        for remat in ("none", "dots", "full"):
            how = {"compute.scan": scan, "compute.remat": remat}
            seconds, (memory, kept) = measure(flags.batch_size, dtype=flags.dtype, **how)
            print(f"| {scan} | {remat} | {memory:.2f} | {kept:.2f} | {seconds:.1f} |", flush=True)
