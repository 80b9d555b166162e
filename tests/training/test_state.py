"""The train state: where its arrays lie, how it starts, and its moving average."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from tests.training import micro
from unipt_jax.core import trees
from unipt_jax.core.sharding import make_mesh, put_batch
from unipt_jax.training import state


def create(mesh, seed=0, ema=0.0):
    net, optimizer, _ = micro.parts()
    example = put_batch(micro.batch(), mesh)
    return state.create(net, example, optimizer, seed=seed, mesh=mesh, ema=ema)


def test_the_seed_alone_decides_the_parameters():
    mesh = make_mesh(devices=jax.devices()[:1])
    one, again, other = (trees.flatten(create(mesh, seed)[0].params) for seed in (3, 3, 4))
    eight = trees.flatten(create(make_mesh(2, 2, 2), 3)[0].params)
    kernel = next(path for path in one if path.endswith("q_proj/kernel"))
    assert (np.asarray(one[kernel]) != np.asarray(other[kernel])).any()
    for path, leaf in one.items():
        np.testing.assert_array_equal(leaf, again[path])
        np.testing.assert_allclose(leaf, eight[path], atol=1e-6)


def test_the_model_is_traced_once():
    """A trace starts the optimizer once, and a large model's takes a good part of a second."""
    net, optimizer, _ = micro.parts()
    traces = []

    def init(params):
        traces.append(params)
        return optimizer.init(params)

    counting = optax.GradientTransformation(init, optimizer.update)
    state.create(net, micro.batch(), counting, seed=0, mesh=make_mesh(2, 2, 2))
    assert len(traces) == 1


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


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_the_abstract_state_is_that_which_is_made(ema):
    mesh = make_mesh(2, 2, 2)
    net, optimizer, _ = micro.parts()
    shapes, shardings = state.abstract(net, micro.batch(), optimizer, mesh=mesh, ema=ema)
    made, theirs = create(mesh, ema=ema)
    assert shardings == theirs
    kinds = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)  # noqa: E731
    assert kinds(shapes) == kinds(made)


@pytest.mark.parametrize("ema", [0.5, 0.7])
def test_the_average_is_that_of_a_plain_loop(ema):
    """Thirty steps of gradient descent, by NumPy; early steps count as of fewer parameters."""
    rng = np.random.default_rng(0)
    weight, gradients = rng.normal(size=3), rng.normal(size=(30, 3))
    tx, params = optax.sgd(0.1), {"kernel": jnp.asarray(weight, jnp.float32)}
    made = state.TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(params),
        average=params,
        key=jax.random.key(0),
    )
    average, limited = weight, 0
    for step, gradient in enumerate(gradients, 1):
        made = made.apply_gradients({"kernel": jnp.asarray(gradient, jnp.float32)}, tx, ema)
        weight = weight - 0.1 * gradient
        decay = min(ema, (1 + step) / (10 + step))
        limited += decay < ema
        average = decay * average + (1 - decay) * weight
        np.testing.assert_allclose(made.average["kernel"], average, atol=1e-5)
    np.testing.assert_allclose(made.params["kernel"], weight, atol=1e-5)
    assert 0 < limited < 30 and int(made.step) == 30
    assert np.abs(average - weight).max() > 1e-2
    assert made.chosen is made.average


def test_without_an_average_the_parameters_are_chosen():
    made, shardings = create(make_mesh(devices=jax.devices()[:1]))
    assert made.average is None and shardings.average is None
    assert made.chosen is made.params
    zeros = jax.tree.map(jnp.zeros_like, made.params)
    assert made.apply_gradients(zeros, micro.parts()[1]).average is None


def test_the_average_starts_where_the_parameters_do_and_is_split_alike():
    made, shardings = create(make_mesh(2, 2, 2), ema=0.9)
    averages, placed = trees.flatten(made.average), trees.flatten(shardings.average)
    for path, leaf in trees.flatten(made.params).items():
        np.testing.assert_array_equal(leaf, averages[path])
        assert leaf.sharding.is_equivalent_to(averages[path].sharding, leaf.ndim)
        assert leaf.sharding.is_equivalent_to(placed[path], leaf.ndim)
