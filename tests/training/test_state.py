"""The train state: where its arrays lie and how it starts."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from tests.training import micro
from unipt_jax.core import trees
from unipt_jax.core.sharding import make_mesh, put_batch
from unipt_jax.training import state


def create(mesh, seed=0):
    net, optimizer, _ = micro.parts()
    return state.create(net, put_batch(micro.batch(), mesh), optimizer, seed=seed, mesh=mesh)


def test_the_seed_alone_decides_the_parameters():
    mesh = make_mesh(devices=jax.devices()[:1])
    one, again, other = (trees.flatten(create(mesh, seed)[0].params) for seed in (3, 3, 4))
    eight = trees.flatten(create(make_mesh(2, 2, 2), 3)[0].params)
    kernel = next(path for path in one if path.endswith("q_proj/kernel"))
    assert (np.asarray(one[kernel]) != np.asarray(other[kernel])).any()
    for path, leaf in one.items():
        np.testing.assert_array_equal(leaf, again[path])
        np.testing.assert_allclose(leaf, eight[path], atol=1e-6)


def test_parameters_and_moments_are_split_alike():
    made, shardings = create(make_mesh(2, 2, 2))
    params, specs = trees.flatten(made.params), trees.flatten(shardings.params)
    path = next(name for name in params if name.endswith("fc1/kernel"))
    assert specs[path].spec == P("fsdp", "tensor")
    assert params[path].sharding.is_equivalent_to(specs[path], 2)
    assert len(params[path].addressable_shards[0].data) == len(params[path]) // 2
    moments = [
        leaf for name, leaf in trees.flatten(made.opt_state).items() if name.endswith("mu/" + path)
    ]
    assert len(moments) == 1 and moments[0].sharding.is_equivalent_to(specs[path], 2)


def test_it_starts_at_step_zero_in_float32():
    made, _ = create(make_mesh(devices=jax.devices()[:1]))
    assert int(made.step) == 0
    assert {leaf.dtype for leaf in jax.tree.leaves(made.params)} == {jnp.dtype("float32")}
    assert jnp.issubdtype(made.key.dtype, jax.dtypes.prng_key)
