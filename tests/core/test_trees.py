"""Trees as tables."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from unipt_jax.core import trees


@flax.struct.dataclass
class State:
    """A node whose children are attributes."""

    step: jax.Array
    params: dict


def example():
    """Dictionaries, lists and attributes, each with a leaf."""
    return State(
        step=jnp.zeros(()),
        params={"text": [jnp.zeros((2, 3)), jnp.ones((4,))], "image": {"kernel": jnp.ones((5, 1))}},
    )


def test_flatten_writes_every_kind_of_key():
    assert {path: leaf.shape for path, leaf in trees.flatten(example()).items()} == {
        "step": (),
        "params/image/kernel": (5, 1),
        "params/text/0": (2, 3),
        "params/text/1": (4,),
    }


def test_flatten_keeps_the_leaves_order():
    leaves = list(trees.flatten(example()).values())
    for have, want in zip(leaves, jax.tree.leaves(example()), strict=True):
        np.testing.assert_array_equal(have, want)


def test_path_string():
    path = (jax.tree_util.DictKey("a"), jax.tree_util.SequenceKey(2), jax.tree_util.GetAttrKey("b"))
    assert trees.path_string(path) == "a/2/b"


def test_map_with_path_keeps_the_structure():
    mapped = trees.map_with_path(lambda path, leaf: (path.upper(), leaf.ndim), example())
    assert mapped == State(
        step=("STEP", 0),
        params={
            "text": [("PARAMS/TEXT/0", 2), ("PARAMS/TEXT/1", 1)],
            "image": {"kernel": ("PARAMS/IMAGE/KERNEL", 2)},
        },
    )


def test_shape_differences_lists_all():
    """P05: missing, unexpected and misshapen leaves are all named."""
    have = {"a": np.zeros((2, 3)), "b": np.zeros(4), "x": np.zeros(1)}
    want = {"a": jax.ShapeDtypeStruct((3, 2), jnp.float32), "b": np.zeros(4), "c": np.zeros(())}
    assert trees.shape_differences(have, want) == [
        "c: missing",
        "x: unexpected",
        "a: shape (2, 3), expected (3, 2)",
    ]


def test_shape_differences_of_equal_trees():
    assert trees.shape_differences(example(), example()) == []


def test_count_parameters():
    # 1 + 6 + 4 + 5
    assert trees.count_parameters(example()) == 16
    assert trees.count_parameters({}) == 0


def test_nested_values_by_their_names():
    assert trees.dotted({"a": 1, "b": {"c": [2], "d": {"e": "x"}}}) == {
        "a": 1,
        "b.c": [2],
        "b.d.e": "x",
    }
