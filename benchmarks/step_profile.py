"""Where a pre-training step's time goes, how near it is to the machine's peak, and how it grows.

The peak is the fastest of a few float32 matrix products of the model's own shapes, by XLA. The
profile is JAX's own trace of the compiled step; each operation counts for the threads that it is
seen on, and what was fused for the last operation in it. Operations are XLA's count for the whole
step (`cost_analysis`).

Usage: python benchmarks/step_profile.py [--batch_size=8] [--tokens=48] [--rounds=3]
"""

import argparse
import collections
import multiprocessing
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import compare
import jax
import jax.numpy as jnp
import numpy as np
from full_size_step import VOCABULARY
from pretraining_step import batch_of

from unipt_jax.config import load
from unipt_jax.core.sharding import make_mesh, put_batch
from unipt_jax.training import loop, run, state

WIDTH, MLP = 768, 3072  # The base models'.
BATCHES, TOKENS = (2, 4, 8, 16), (24, 48, 100)


def peak(rounds: int) -> float:
    """Returns the most operations a second that a product of the model's shapes reaches."""
    rates = []
    for rows in (384, 1544, 3088):
        for inputs, outputs in ((WIDTH, MLP), (MLP, WIDTH), (WIDTH, WIDTH)):
            first, second = jnp.ones((rows, inputs)), jnp.ones((inputs, outputs))
            product = jax.jit(jnp.matmul)
            (times,) = compare.in_turn(
                [lambda f=product, a=first, b=second: f(a, b).block_until_ready()], 5 * rounds
            ).T
            rates.append(2 * rows * inputs * outputs / np.median(times))
    return max(rates)


def compiled_step(batch_size: int, tokens: int) -> tuple[jax.stages.Compiled, Callable[[], None]]:
    """Returns the paper's step, and what takes one."""
    fields = {"data": "none", "batch_size": batch_size}
    config = load.load("configs/pretrain.py", fields)
    spec = run.build_spec(config, vocab_size=VOCABULARY, end_token=0, identities=0)
    model = run.build_model(config, spec)
    batch = batch_of(config, tokens)
    transform, train_step = run.build_step(config, model, steps=1000)
    mesh = make_mesh(devices=jax.devices()[:1])
    train_state, shardings = state.create(model, batch, transform, seed=0, mesh=mesh)
    placed = put_batch(batch, mesh)
    with jax.set_mesh(mesh):
        compiled = loop.jit_step(train_step, shardings, mesh).lower(train_state, placed).compile()

    def step() -> None:
        nonlocal train_state
        train_state, metrics = compiled(train_state, placed)
        jax.block_until_ready(metrics)

    return compiled, step


def kind(path: str) -> str:
    """Tells what an operation is for, by its place in the program."""
    last = path.rsplit("/", 1)[-1]
    if last == "dot_general":
        return "attention's products" if path.endswith("self_attn/dot_general") else "products"
    if "optimization_barrier" in path or last in ("transpose", "reshape", "copy"):
        return "turning round"
    if "(DualEncoder)" not in path:
        return "optimizer, loss, norm"
    kinds = {"layer_norm": "LayerNorm", "self_attn": "softmax", "mlp": "GELU", "Dropout": "dropout"}
    return next((name for part, name in kinds.items() if part in path), "other")


def profile(compiled: jax.stages.Compiled, step: Callable[[], None]) -> Mapping[str, float]:
    """Returns the seconds of one step by `kind`, summed over threads."""
    named = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = .*op_name="([^"]*)"', re.MULTILINE)
    paths = dict(named.findall(compiled.as_text()))
    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory):
            step()
        (file,) = Path(directory).rglob("*.xplane.pb")
        trace = jax.profiler.ProfileData.from_file(str(file))
    found = collections.Counter()
    for line in (line for plane in trace.planes for line in plane.lines):
        for event in line.events:
            if event.name in paths:
                found[kind(paths[event.name])] += event.duration_ns / 1e9
    return found


def measure(
    batch_size: int, tokens: int, rounds: int
) -> tuple[float, float, int, Mapping[str, float]]:
    """Returns operations, seconds, bytes of temporaries and the profile of a step."""
    compiled, step = compiled_step(batch_size, tokens)
    (times,) = compare.in_turn([step], rounds).T
    memory = compiled.memory_analysis().temp_size_in_bytes
    operations = compiled.cost_analysis()["flops"]
    return operations, float(np.median(times)), memory, profile(compiled, step)


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls in a process of its own, which gives its memory back."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("batch_size", 8), ("tokens", 48), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    flags = parser.parse_args()
    compare.under_jemalloc()
    most = alone(peak, flags.rounds)
    print(f"peak of float32 products: {most / 1e9:.0f} G operations a second\n")
    sizes = dict.fromkeys((size, flags.tokens) for size in BATCHES)
    sizes |= dict.fromkeys((flags.batch_size, tokens) for tokens in TOKENS)
    print("| pairs | tokens | T operations | seconds | of the peak | temporaries, GiB |")
    print("|---|---|---|---|---|---|", flush=True)
    profiles = {}
    for size in sizes:
        operations, seconds, memory, profiles[size] = alone(measure, *size, flags.rounds)
        share = f"{operations / seconds / most:.0%}"
        cells = operations / 1e12, seconds, share, memory / 2**30
        print("| {} | {} | {:.2f} | {:.2f} | {} | {:.2f} |".format(*size, *cells), flush=True)
    found = profiles[flags.batch_size, flags.tokens]
    print(f"\n| {flags.batch_size} pairs of {flags.tokens} tokens: what | share |\n|---|---|")
    for what, seconds in sorted(found.items(), key=lambda it: -it[1]):
        print(f"| {what} | {seconds / sum(found.values()):.1%} |")


if __name__ == "__main__":
    main()
