"""Shapes and memory of a step that is not taken."""

import io

import jax
import jax.numpy as jnp
from rich.console import Console

from tests.training import micro
from unipt_jax.core.sharding import make_mesh
from unipt_jax.training import dry_run, state


def printed(renderable):
    out = io.StringIO()
    Console(file=out, width=80).print(renderable)
    return [line.split() for line in out.getvalue().splitlines()]


def size(leaf):
    """Bytes of an array; a random key has two words."""
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return 8 if is_key else leaf.size * leaf.dtype.itemsize


class Silent(jax.stages.Compiled):
    """What a backend compiles that tells nothing of memory."""

    def __init__(self):
        pass

    def memory_analysis(self):
        return None


def test_the_step_is_compiled_for_shapes_alone():
    """Its arguments are the state and the batch, counted by hand: nothing is left out."""
    net, optimizer, train_step = micro.parts()
    mesh = make_mesh(devices=jax.devices()[:1])
    batch = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype)
        for name, array in micro.batch(8).items()
    }
    shapes, shardings = state.abstract(net, batch, optimizer, mesh=mesh)
    compiled = dry_run.compile_step(train_step, shapes, shardings, batch, mesh)
    found = dry_run.memory(compiled, limit=2**30)
    held = sum(map(size, jax.tree.leaves(shapes)))
    given = sum(map(size, batch.values()))
    arguments = found["arguments: state and batch"]
    # What the step does not read, such as the pairs' numbers, is no argument.
    assert held < arguments <= held + given + 64 * len(jax.tree.leaves(shapes))
    # The next state lies where the last one was; only metrics lie beside it.
    assert 0 <= found["output beside them"] < held / 10
    assert found["together"] == sum(list(found.values())[:3])
    assert found["a device has"] == 2**30


def test_a_backend_may_tell_nothing():
    assert dry_run.memory(Silent(), limit=1) == {}


def test_tables():
    shapes = {"image": jax.ShapeDtypeStruct((4096, 2), jnp.uint8)}
    assert ["image", "4,096", "x", "2", "uint8"] in printed(dry_run.shape_table("batch 0", shapes))
    lines = printed(dry_run.memory_table("memory", {"temporary": 3 * 2**29}))
    assert lines[0] == ["memory", "GiB"] and ["temporary", "1.500"] in lines


def test_a_processor_does_not_say_what_it_has():
    assert dry_run.bytes_limit(jax.devices()[0]) is None
