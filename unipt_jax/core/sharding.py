"""One program for any number of devices: the mesh, the one rule table, and the way onto it.

Parameters and activations name their dimensions by logical axes; `RULES` maps each to mesh axes.
Batch sizes are global everywhere.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from unipt_jax.core.errors import ConfigError

MESH_AXES = ("data", "fsdp", "tensor")


class Axis:
    """Logical axis names. Activations start with `ACT_`; the rest are dimensions of parameters."""

    BATCH = "batch"
    ACT_TOKENS = "act_tokens"
    ACT_EMBED = "act_embed"
    ACT_HEADS = "act_heads"
    ACT_MLP = "act_mlp"
    EMBED = "embed"
    MLP = "mlp"
    HEADS = "heads"
    VOCAB = "vocab"
    POSITION = "position"
    PATCH = "patch"
    OUTPUT = "output"


RULES: Mapping[str, str | tuple[str, ...] | None] = {
    Axis.BATCH: ("data", "fsdp"),
    Axis.ACT_TOKENS: None,
    Axis.ACT_EMBED: None,
    Axis.ACT_HEADS: "tensor",
    Axis.ACT_MLP: "tensor",
    Axis.EMBED: "fsdp",
    Axis.MLP: "tensor",
    Axis.HEADS: "tensor",
    Axis.VOCAB: "tensor",
    Axis.POSITION: None,
    Axis.PATCH: None,
    Axis.OUTPUT: None,
}


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Arranges the devices (all of them by default) as `data x fsdp x tensor`; one size may be -1.

    Raises:
        ConfigError: the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = [data, fsdp, tensor]
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise ConfigError(f"mesh {sizes}: sizes are positive, and at most one of them is -1")
    if -1 in sizes:
        known = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = len(devices) // known
    if math.prod(sizes) != len(devices):
        raise ConfigError(
            f"mesh data={data}, fsdp={fsdp}, tensor={tensor} does not fit {len(devices)} devices"
        )
    # Flax's logical constraints need Auto axes; JAX's own default is Explicit.
    return jax.make_mesh(
        tuple(sizes), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES), devices=devices
    )


def partition_spec(axes: Sequence[str | None]) -> PartitionSpec:
    """Translates logical axes to mesh axes.

    Raises:
        ValueError: an axis is not in `RULES`; Flax alone would silently replicate it.
    """
    unknown = [axis for axis in axes if axis is not None and axis not in RULES]
    if unknown:
        raise ValueError(f"unknown logical axis {unknown[0]!r}; known: {sorted(RULES)}")
    return PartitionSpec(*(None if axis is None else RULES[axis] for axis in axes))


def constrain(array: jax.Array, axes: Sequence[str | None]) -> jax.Array:
    """Asks the compiler to lay out `array` (one logical axis a dimension) on the mesh in force.

    Outside `jax.set_mesh` it returns the array as it is.
    """
    spec = partition_spec(axes)
    if len(axes) != array.ndim:
        raise ValueError(f"{len(axes)} axes {tuple(axes)} for an array of shape {array.shape}")
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return array
    return jax.lax.with_sharding_constraint(array, _fitting(spec, array.shape, mesh))


def parameter_shardings(abstract: Any, mesh: Mesh) -> Any:
    """Returns the sharding of each leaf of a tree made under `nn.with_logical_partitioning`.

    A dimension that its mesh axes do not divide stays whole on every device, as does every leaf
    without logical names (a step counter, a random key).
    """

    def sharding(leaf: Any) -> NamedSharding:
        if isinstance(leaf, nn.LogicallyPartitioned):
            spec = _fitting(partition_spec(leaf.names), leaf.value.shape, mesh)
            return NamedSharding(mesh, spec)
        return NamedSharding(mesh, PartitionSpec())

    is_named = lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)  # noqa: E731
    return jax.tree.map(sharding, abstract, is_leaf=is_named)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: its first dimension over `data` and `fsdp`."""
    return NamedSharding(mesh, partition_spec((Axis.BATCH,)))


def require_divisible(batch_size: int, mesh: Mesh) -> None:
    """Checks that a global batch splits evenly over the mesh.

    Raises:
        ConfigError: it does not.
    """
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % ways:
        raise ConfigError(
            f"batch_size={batch_size} cannot be split over data x fsdp = {ways} devices; "
            "make it a multiple of that"
        )


def batch_rows(batch_size: int, mesh: Mesh) -> Int[np.ndarray, "R"]:
    """Returns which rows of a global batch lie on this process's devices, ascending.

    They need not be neighbours: `jax.make_mesh` orders TPUs by their torus and not by their hosts.
    Processes that share the devices of `tensor` have the same rows.

    Raises:
        ConfigError: the batch does not split evenly over the mesh.
    """
    require_divisible(batch_size, mesh)
    places = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    here = np.zeros(batch_size, bool)
    for place in places:
        here[place] = True
    return np.flatnonzero(here)


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Makes global arrays of this process's rows of a batch (see `batch_rows`), over the mesh.

    Raises:
        ConfigError: the global batch does not split evenly over the mesh.
    """
    sharding = batch_sharding(mesh)
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    parts = len(batch_rows(ways, mesh))  # Of the `ways` parts of a batch, those of this process.
    rows = len(next(iter(batch.values()))) * ways // parts
    require_divisible(rows, mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, value, (rows, *value.shape[1:]))
        for name, value in batch.items()
    }


def _fitting(spec: PartitionSpec, shape: Sequence[int], mesh: Any) -> PartitionSpec:
    """Drops the mesh axes of dimensions that they do not divide."""

    def ways(entry: str | tuple[str, ...] | None) -> int:
        names = () if entry is None else (entry,) if isinstance(entry, str) else entry
        return math.prod(mesh.shape[name] for name in names)

    return PartitionSpec(
        *(
            entry if size % ways(entry) == 0 else None
            for entry, size in zip(spec, shape, strict=True)
        )
    )
