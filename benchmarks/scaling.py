"""What a step of pre-training costs on 1, 8 and 256 devices, and how long it might take.

Compiles the train step of each preset of `configs/pretrain.py`, the paper's model at full size, for
as many virtual devices, and runs none of it: parameters are shapes alone. Each case has a process
of its own, since JAX counts its devices once. Prints tables in Markdown.

XLA's compiler for CPUs stands in for those of GPUs and TPUs. It computes bfloat16 in float32 and
fuses less, so that temporaries and bytes accessed are upper bounds; and where a sum is wanted in
parts it sums the whole, of which other compilers make a reduce-scatter of half the bytes.

With `--topology=v5e:16x16` the compiler for TPUs itself compiles the preset of 256 devices. It
needs libtpu, which `pip install 'jax[tpu]'` brings, no TPU, and 8 minutes of a CPU core.

Usage: python benchmarks/scaling.py [--topology=v5e:16x16]
"""

import argparse
import collections
import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cost
import jax
from full_size_step import VOCABULARY, random_batch
from jax.experimental import topologies

from unipt_jax.config import load, schema
from unipt_jax.core.sharding import make_mesh
from unipt_jax.models import specs
from unipt_jax.training import loop, run, state

Case = tuple[int, Mapping[str, Any], Sequence[str]]
# Devices of a preset, what is set otherwise, and the chips that it is predicted for.
TPU: Case = (256, {}, ("TPU v5e",))
CASES: tuple[Case, ...] = (
    (1, {}, ("RTX 4090", "H100")),
    (8, {}, ("H100",)),
    TPU,
    (256, {"mesh.fsdp": 1}, ("TPU v5e",)),
)
LENGTHS = (32, 48, 64, 100)  # What texts are padded to, in tokens.
DECODED = 1207  # Images/s a core of the input pipeline: JPEG crops in benchmarks/RESULTS.md.


def configuration(devices: int, how: Mapping[str, Any]) -> schema.Train:
    """Returns the preset for a number of devices, changed by `how`."""
    return load.load(f"configs/pretrain.py:devices={devices}", {"data": "none", **how})


def abstract_batch(config: schema.Train) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes and types of a batch whose texts are of full length."""
    one = random_batch(1, config.image.height, config.image.width, config.text.length)
    return {
        name: jax.ShapeDtypeStruct((config.batch_size, *array.shape[1:]), array.dtype)
        for name, array in one.items()
    }


def traced_step(
    config: schema.Train, devices: Sequence[jax.Device] | None = None
) -> jax.stages.Traced:
    """Returns the paper's model's train step on all or some devices, traced for shapes alone."""
    spec = run.build_spec(config, vocab_size=VOCABULARY, end_token=0, identities=0)
    model = run.build_model(config, spec)
    transform, train_step = run.build_step(config, model, steps=100)
    sizes = config.mesh.data, config.mesh.fsdp, config.mesh.tensor
    mesh = make_mesh(*sizes, devices=devices)
    shapes, shardings = state.abstract(
        model, specs.abstract_batch(spec, 1), transform, mesh=mesh, ema=config.ema
    )
    with jax.set_mesh(mesh):
        return loop.jit_step(train_step, shardings, mesh).trace(shapes, abstract_batch(config))


def measure(devices: int, how: Mapping[str, Any], topology: str = "") -> dict[str, Any]:
    """Compiles a case and returns its figures, of one device but for the products.

    With a topology, such as "v5e:16x16", it is compiled for those TPUs.
    """
    config = configuration(devices, how)
    there = topologies.get_topology_desc(topology, "tpu").devices if topology else None
    step = traced_step(config, there)
    counted = compiled = step.lower().compile()
    scale = 1.0
    if config.accumulate > 1:
        # XLA counts a loop's body once: its counts are those of the batch in one part, of which
        # the parts compute the features twice.
        plain = traced_step(dataclasses.replace(config, accumulate=1), there)
        counted = plain.lower().compile()
        scale = cost.products(step.jaxpr) / cost.products(plain.jaxpr)
    memory = compiled.memory_analysis()
    return {
        "products": cost.products(step.jaxpr),
        "counted": counted.cost_analysis()["flops"] * scale,
        "accessed": counted.cost_analysis()["bytes accessed"] * scale,
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        # The next state takes the memory of the last one.
        "results": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "collectives": [dataclasses.astuple(it) for it in cost.collectives(compiled.as_text())],
    }


def measured_apart(devices: int, how: Mapping[str, Any], topology: str) -> dict[str, Any]:
    """Returns what `measure` does in a process that has the devices."""
    command = [sys.executable, __file__, f"--devices={devices}", f"--how={json.dumps(how)}"]
    command.append(f"--topology={topology}")
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout)
    return found | {"collectives": [cost.Collective(*it) for it in found["collectives"]]}


def title(devices: int, how: Mapping[str, Any]) -> str:
    """Names a case by its mesh, data x fsdp."""
    fsdp = configuration(devices, how).mesh.fsdp
    return f"{devices // fsdp} x {fsdp}"


def table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    """Sets out a table in Markdown."""
    lines = [f"| {' | '.join(line)} |" for line in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:], ""])


def program_rows(cases: Sequence[Case], found: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    """Yields what one device computes, touches and holds in each case."""
    for (devices, how, _), case in zip(cases, found, strict=True):
        config = configuration(devices, how)
        held = [case[name] / 2**30 for name in ("arguments", "temporaries")]
        yield [
            title(devices, how),
            f"{config.batch_size // devices}",
            f"{config.accumulate}",
            f"{case['products'] / devices / 1e12:.2f}",
            f"{case['counted'] / 1e12:.2f}",
            f"{case['accessed'] / 1e9:.0f}",
            *(f"{size:.2f}" for size in (*held, sum(held) + case["results"] / 2**30)),
        ]


def collective_rows(cases: Sequence[Case], found: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    """Yields the collectives of each case by kind and number of devices, of one device."""
    for (devices, how, _), case in zip(cases, found, strict=True):
        groups = collections.defaultdict(list)
        for it in case["collectives"]:
            groups[it.kind, it.devices].append(it)
        for (kind, among), group in sorted(groups.items()):
            times = sum(it.times for it in group)
            size = sum(it.size for it in group) / 1e6
            sent = sum(it.sent for it in group) / 1e6
            yield [title(devices, how), kind, f"{among}", f"{times}", f"{size:.1f}", f"{sent:.1f}"]


def prediction_rows(cases: Sequence[Case], found: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    """Yields the predicted times of each case on its chips, and what they ask of the input."""

    def span(soonest: float, latest: float, digits: int = 0) -> str:
        return "-".join(f"{value:,.{digits}f}" for value in sorted((soonest, latest)))

    for (devices, how, names), case in zip(cases, found, strict=True):
        config = configuration(devices, how)
        flops, parts = case["products"] / devices, case["collectives"]
        held = case["arguments"] + case["temporaries"] + case["results"]
        batch = abstract_batch(config).values()
        megabytes = sum(it.size * it.dtype.itemsize for it in batch) / config.batch_size / 1e6
        for name in names:
            chip = cost.CHIPS[name]
            links = sum(it.sent for it in parts) / chip.link
            alone = flops / chip.flops, case["accessed"] / chip.bandwidth, links
            # No compiler can touch less than what enters and leaves.
            least = 2 * case["arguments"]
            seconds = (
                cost.step_seconds(flops, least, parts, chip, cost.BOUND),
                cost.step_seconds(flops, case["accessed"], parts, chip, cost.CAUTIOUS),
            )
            own = [config.batch_size / devices / it for it in seconds]
            host = [min(chip.host, devices) * it for it in own]
            yield [
                f"{devices} x {name}",
                title(devices, how),
                f"{held / chip.memory:.0%}",
                *(f"{1e3 * it:.1f}" for it in alone),
                span(*(1e3 * it for it in seconds)),
                span(*own),
                span(*host),
                span(*(megabytes * it for it in host)),
                span(*(it / DECODED for it in host), digits=1),
            ]


def length_rows() -> Iterator[list[str]]:
    """Yields the products of a pair by the length of its text."""
    for length in LENGTHS:
        config = configuration(1, {"text.length": length, "text.buckets": (), "accumulate": 1})
        products = cost.products(traced_step(config).jaxpr) / config.batch_size
        yield [f"{length}", f"{products / 1e9:.0f}"]


def main(cases: Sequence[Case], topology: str) -> None:
    """Measures each case and prints the tables."""
    found = [measured_apart(devices, how, topology) for devices, how, _ in cases]
    head = [
        "data x fsdp",
        "pairs a device",
        "parts",
        "products, TFLOP",
        "by XLA",
        "accessed, GB",
        "arguments, GiB",
        "temporaries",
        "together",
    ]
    print(table(head, program_rows(cases, found)))
    head = ["data x fsdp", "collective", "devices", "times", "MB", "sent, MB"]
    print(table(head, collective_rows(cases, found)))
    head = [
        "devices",
        "data x fsdp",
        "memory held",
        "products, ms",
        "accesses, ms",
        "links, ms",
        "step, ms",
        "pairs/s a device",
        "pairs/s a host",
        "MB/s a host",
        "cores a host",
    ]
    print(table(head, prediction_rows(cases, found)))
    print(table(["tokens", "products of a pair, GFLOP"], length_rows()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--how", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--topology", default="")
    flags = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", flags.devices or 1)
    if flags.devices:
        print(json.dumps(measure(flags.devices, flags.how, flags.topology)))
    else:
        main([TPU] if flags.topology else CASES, flags.topology)
