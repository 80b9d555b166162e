"""Arrays lie where the rule table says, on eight virtual devices."""

import contextlib
import dataclasses
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from unipt_jax.core import sharding
from unipt_jax.core.errors import ConfigError
from unipt_jax.core.sharding import Axis

LINEN_INIT = nn.initializers.ones_init()


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((-1, 1, 1), (8, 1, 1)),
        ((-1, 2, 2), (2, 2, 2)),
        ((2, -1, 1), (2, 4, 1)),
        ((1, 1, -1), (1, 1, 8)),
        ((-1, 8, 1), (1, 8, 1)),
        ((4, 1, 2), (4, 1, 2)),
    ],
)
def test_mesh_sizes(sizes, expected):
    mesh = sharding.make_mesh(*sizes)
    assert dict(mesh.shape) == dict(zip(("data", "fsdp", "tensor"), expected, strict=True))
    assert set(mesh.devices.flat) == set(jax.devices())
    assert mesh.axis_types == (AxisType.Auto,) * 3


@pytest.mark.parametrize("count", [1, 2, 6])
def test_mesh_of_some_devices(count):
    mesh = sharding.make_mesh(devices=jax.devices()[:count])
    assert dict(mesh.shape) == {"data": count, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((3, 1, 1), "data=3, fsdp=1, tensor=1 does not fit 8 devices"),
        ((-1, 3, 1), "data=-1, fsdp=3, tensor=1 does not fit 8 devices"),
        ((-1, 16, 1), "does not fit 8 devices"),
        ((4, 4, 1), "does not fit 8 devices"),
        ((-1, -1, 1), "at most one of them is -1"),
        ((0, 1, 1), "sizes are positive"),
        ((-2, -4, 1), "sizes are positive"),
    ],
)
def test_wrong_mesh_sizes_are_refused(sizes, message):
    with pytest.raises(ConfigError, match=message):
        sharding.make_mesh(*sizes)


def test_every_logical_axis_has_a_rule_of_mesh_axes():
    names = {value for name, value in vars(Axis).items() if name.isupper()}
    assert names == set(sharding.RULES)
    for rule in sharding.RULES.values():
        used = () if rule is None else (rule,) if isinstance(rule, str) else rule
        assert set(used) <= {"data", "fsdp", "tensor"}


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        (("batch",), P(("data", "fsdp"))),
        (("batch", None, "act_heads"), P(("data", "fsdp"), None, "tensor")),
        (("embed", "mlp"), P("fsdp", "tensor")),
        ((), P()),
    ],
)
def test_partition_spec(axes, expected):
    assert sharding.partition_spec(axes) == expected


@pytest.mark.parametrize("use_mesh", [False, True])
def test_a_misspelt_axis_raises(use_mesh):
    """Flax alone replicates what it does not know."""
    with pytest.raises(ValueError, match="unknown logical axis 'embd'"):
        sharding.partition_spec(("embd",))
    mesh = sharding.make_mesh()
    with jax.set_mesh(mesh) if use_mesh else contextlib.nullcontext():
        with pytest.raises(ValueError, match="unknown logical axis 'batches'"):
            sharding.constrain(jnp.zeros((8, 2)), ("batches", None))
        with pytest.raises(ValueError, match="1 axes"):
            sharding.constrain(jnp.zeros((8, 2)), ("batch",))
    leaf = nn.LogicallyPartitioned(jnp.zeros((8,)), names=("embd",))
    with pytest.raises(ValueError, match="unknown logical axis 'embd'"):
        sharding.parameter_shardings({"w": leaf}, mesh)


def constrained(array):
    """Two constraints, to be counted."""
    array = sharding.constrain(array, (Axis.BATCH, Axis.ACT_MLP))
    return sharding.constrain(jnp.sin(array), (Axis.BATCH, None)) * 2


def lowered_constraints(function, *arguments):
    """How many sharding constraints the lowered text holds."""
    text = jax.jit(function).lower(*arguments).as_text()
    return text.count("sharding_constraint") + text.count("@Sharding")


def test_constraints_are_in_the_program_under_a_mesh_alone():
    array = jnp.ones((8, 4))
    assert lowered_constraints(constrained, array) == 0
    with jax.set_mesh(sharding.make_mesh(4, 1, 2)):
        assert lowered_constraints(constrained, array) == 2


def test_constrain_changes_the_layout_and_not_the_values():
    array = np.arange(32, dtype=np.float32).reshape(8, 4)
    mesh = sharding.make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        result = jax.jit(lambda x: sharding.constrain(x, (Axis.BATCH, Axis.ACT_MLP)))(array)
    assert result.sharding.shard_shape(result.shape) == (2, 2)
    np.testing.assert_array_equal(result, array)


def test_constrain_without_a_mesh_returns_the_array_itself():
    array = jnp.ones((8, 4))
    assert sharding.constrain(array, (Axis.BATCH, Axis.ACT_MLP)) is array


@pytest.mark.parametrize(
    ("shape", "shard"),
    [((8, 4), (2, 2)), ((6, 4), (6, 2)), ((8, 3), (2, 3)), ((7, 5), (7, 5)), ((4, 6), (1, 3))],
)
def test_dimensions_that_do_not_divide_stay_whole(shape, shard):
    mesh = sharding.make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        result = jax.jit(lambda x: sharding.constrain(x, (Axis.BATCH, Axis.ACT_MLP)))(
            jnp.ones(shape)
        )
    assert result.sharding.shard_shape(shape) == shard


class Tower(nn.Module):
    """One named kernel whose rows divide, one bias whose width does not, one unnamed scale."""

    @nn.compact
    def __call__(self, x):
        named = nn.with_logical_partitioning
        kernel = self.param("kernel", named(LINEN_INIT, ("embed", "mlp")), (12, 6))
        bias = self.param("bias", named(LINEN_INIT, ("mlp",)), (3,))
        return x @ kernel, bias, self.param("scale", LINEN_INIT, (8,))


def test_parameter_shardings():
    mesh = sharding.make_mesh(1, 4, 2)
    abstract = jax.eval_shape(Tower().init, jax.random.key(0), jnp.ones((1, 12)))["params"]
    result = sharding.parameter_shardings({"params": abstract, "step": jnp.int32(0)}, mesh)
    assert result == {
        "params": {
            "kernel": NamedSharding(mesh, P("fsdp", "tensor")),
            "bias": NamedSharding(mesh, P(None)),
            "scale": NamedSharding(mesh, P()),
        },
        "step": NamedSharding(mesh, P()),
    }


@dataclasses.dataclass(frozen=True, eq=False)
class Device:
    """Stands in for a device of process `process_index`, as the process of `client` sees it."""

    id: int
    process_index: int
    client: SimpleNamespace
    platform: str = "cpu"
    device_kind: str = "stand-in"


def rows_of_processes(batch_size, owners):
    """What each process gets by `batch_rows`, of a mesh of devices that belong to `owners`."""
    found = []
    for process in range(owners.max() + 1):
        client = SimpleNamespace(process_index=lambda process=process: process)
        devices = [Device(number, owner, client) for number, owner in enumerate(owners.flat)]
        mesh = Mesh(
            np.array(devices).reshape(owners.shape),
            sharding.MESH_AXES,
            axis_types=(AxisType.Auto,) * 3,
        )
        found.append(sharding.batch_rows(batch_size, mesh).tolist())
    return found


# The hosts of a TPU v5e-256 by the coordinates x and y of the chips: each has a square of four.
HOSTS = np.arange(64).reshape(8, 8).T.repeat(2, axis=0).repeat(2, axis=1)


@pytest.mark.parametrize(
    ("owners", "first", "tenth"),
    [
        # As `jax.make_mesh` lays 32 x 8, 256 x 1 and 16 x 1 x 16 on the torus of these chips.
        (
            HOSTS.reshape(2, 8, 16).transpose(0, 2, 1).reshape(32, 8, 1),
            [0, 1, 8, 9],
            [18, 19, 26, 27],
        ),
        (HOSTS.reshape(256, 1, 1), [0, 1, 16, 17], [34, 35, 50, 51]),
        (HOSTS.T.reshape(16, 1, 16), [0, 1], [2, 3]),
    ],
)
def test_rows_of_the_hosts_of_a_torus(owners, first, tenth):
    """Each process has the rows of its own chips, and no row is without a process."""
    parts = owners.reshape(-1, owners.shape[2])
    found = rows_of_processes(2 * len(parts), owners)
    assert len(found) == 64
    for process, expected in ((0, first), (9, tenth)):
        assert found[process] == [2 * part + row for part in expected for row in (0, 1)]
    for row in range(2 * len(parts)):
        having = {process for process, rows in enumerate(found) if row in rows}
        assert having == set(parts[row // 2].tolist())


@pytest.mark.parametrize(
    ("owners", "expected"),
    [
        ([[0], [0], [1], [1]], [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ([[1], [0], [1], [1]], [[2, 3], [0, 1, 4, 5, 6, 7]]),
        ([[0, 1], [2, 3]], [[0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6, 7], [4, 5, 6, 7]]),
        ([[0, 0], [0, 1], [1, 1], [2, 2]], [[0, 1, 2, 3], [2, 3, 4, 5], [6, 7]]),
    ],
)
def test_rows_of_any_arrangement(owners, expected):
    """Unequal shares, and those that devices of `tensor` have in common, as well."""
    assert rows_of_processes(8, np.array(owners)[:, None]) == expected


def test_rows_must_divide():
    with pytest.raises(ConfigError, match=r"batch_size=12 cannot be split over .* = 8 devices"):
        sharding.batch_rows(12, sharding.make_mesh())


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 4, 1), (2, 2, 2), (1, 1, 8)])
def test_put_batch_splits_rows_in_order(sizes):
    mesh = sharding.make_mesh(*sizes)
    batch = {
        "image": np.arange(16 * 2 * 3, dtype=np.uint8).reshape(16, 2, 3),
        "identity": np.arange(16, dtype=np.int32),
    }
    result = sharding.put_batch(batch, mesh)
    rows = 16 // (sizes[0] * sizes[1])
    for name, value in batch.items():
        np.testing.assert_array_equal(result[name], value)
        assert result[name].dtype == value.dtype
        assert result[name].sharding == sharding.batch_sharding(mesh)
        for shard in result[name].addressable_shards:
            assert shard.data.shape == (rows, *value.shape[1:])
            np.testing.assert_array_equal(shard.data, value[shard.index])
    assert len({shard.index[0].start for shard in result["identity"].addressable_shards}) == (
        sizes[0] * sizes[1]
    )


@pytest.mark.parametrize(
    ("sizes", "rows"), [((8, 1, 1), 12), ((2, 4, 1), 4), ((4, 1, 2), 6), ((2, 2, 2), 1)]
)
def test_put_batch_refuses_rows_that_do_not_divide(sizes, rows):
    mesh = sharding.make_mesh(*sizes)
    ways = sizes[0] * sizes[1]
    with pytest.raises(ConfigError, match=f"batch_size={rows} cannot be split .* = {ways} devices"):
        sharding.put_batch({"identity": np.zeros(rows, np.int32)}, mesh)
