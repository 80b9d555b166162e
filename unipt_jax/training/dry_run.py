"""What a run would take, found out without a step: shapes, and the memory of the compiled step."""

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh
from rich.table import Table

from unipt_jax.training import loop, summary
from unipt_jax.training.state import TrainState
from unipt_jax.training.step import TrainStep

Shapes = Mapping[str, jax.ShapeDtypeStruct]


def compile_step(
    train_step: TrainStep, state: TrainState, shardings: TrainState, batch: Shapes, mesh: Mesh
) -> jax.stages.Compiled:
    """Compiles the step as the loop does, for a state and a batch of shapes alone."""
    with jax.set_mesh(mesh):
        return loop.jit_step(train_step, shardings, mesh).lower(state, batch).compile()


def shape_table(title: str, shapes: Shapes) -> Table:
    """Returns names, shapes and types of a batch's arrays."""
    table = summary.table(title)
    for column in ("shape", "type"):
        table.add_column(column)
    for name, leaf in shapes.items():
        table.add_row(name, " x ".join(f"{size:,}" for size in leaf.shape), str(leaf.dtype))
    return table


def memory(compiled: jax.stages.Compiled, limit: int | None) -> dict[str, int]:
    """Returns what a compiled step takes of each device, in bytes, by name; empty: nothing tells.

    Args:
        compiled: the step, which gives its state's memory to the next state.
        limit: what a device has, if that is known.
    """
    found = compiled.memory_analysis()
    if found is None:
        return {}
    # What results take of the arguments' memory is no more than that.
    own = found.output_size_in_bytes - found.alias_size_in_bytes
    parts = {
        "arguments: state and batch": found.argument_size_in_bytes,
        "output beside them": own,
        "temporary": found.temp_size_in_bytes,
    }
    total = {"together": sum(parts.values())}
    return parts | total | ({} if limit is None else {"a device has": limit})


def memory_table(title: str, parts: Mapping[str, int]) -> Table:
    """Returns the memory of a step by its parts, in GiB."""
    table = summary.table(title)
    table.add_column("GiB", justify="right")
    for name, size in parts.items():
        table.add_row(name, f"{size / 2**30:,.3f}")
    return table


def bytes_limit(device: jax.Device) -> int | None:
    """Returns how much memory of a device JAX may take, in bytes, or None where it does not say."""
    statistics: dict[str, Any] = device.memory_stats() or {}
    return statistics.get("bytes_limit")
