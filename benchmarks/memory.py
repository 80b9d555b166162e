"""What rematerialised and scanned layers buy the paper's model: memory and time of compilation.

Compiles the gradient of a training batch for each choice and runs none of them. Temporary memory is
what XLA gives the program, compiled as training steps are, beside its arguments and results
(parameters, batch, gradients).

Usage: python benchmarks/memory.py [--batch_size=8] [--dtype=bfloat16]
"""

import argparse
import time
from typing import Any

import jax
from full_size_step import VOCABULARY, random_batch

from unipt_jax.config import load
from unipt_jax.models import specs
from unipt_jax.models.compute import compiler_options
from unipt_jax.training import objective, run, step


def measure(batch_size: int, **settings: Any) -> tuple[float, float]:
    """Returns the seconds that tracing and compiling took, and GiB."""
    config = load.load(
        "configs/pretrain.py", {"data": "none", "batch_size": batch_size, **settings}
    )
    spec = run.build_spec(config, vocab_size=VOCABULARY, end_token=0, identities=0)
    aim = objective.weighted(run.build_model(config, spec), config.loss)
    batch = random_batch(batch_size, config.image.height, config.image.width, config.text.length)
    start = time.perf_counter()
    gradient = jax.jit(
        lambda *arguments: step.whole_gradients(aim, *arguments),
        compiler_options=compiler_options(jax.default_backend()),
    )
    compiled = gradient.lower(specs.abstract_params(spec), batch, jax.random.key(0)).compile()
    seconds = time.perf_counter() - start
    return seconds, compiled.memory_analysis().temp_size_in_bytes / 2**30


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--dtype", default="float32")
    flags = parser.parse_args()
    print(f"device: {jax.devices()[0].device_kind}")
    print("| scan | remat | memory, GiB | compilation, s |\n|---|---|---|---|")
    for scan in (False, True):
        for remat in ("none", "dots", "full"):
            how = {"compute.scan": scan, "compute.remat": remat}
            seconds, memory = measure(flags.batch_size, dtype=flags.dtype, **how)
            print(f"| {scan} | {remat} | {memory:.2f} | {seconds:.1f} |", flush=True)
