"""Resized position tables against torch's bicubic interpolation."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unipt_jax.models.positions import resize_positions


def _table(grid, prefix=1, width=3):
    rows = prefix + grid[0] * grid[1]
    return np.random.default_rng(0).normal(size=(rows, width)).astype(np.float32)


def _assert_equals_torch(source, target, prefix):
    torch = pytest.importorskip("torch")
    table = _table(source, prefix)
    grid = torch.tensor(table[prefix:]).reshape(1, *source, 3).permute(0, 3, 1, 2)
    want = torch.nn.functional.interpolate(
        grid, size=target, mode="bicubic", align_corners=False, antialias=False
    )
    have = resize_positions(jnp.asarray(table), source, target, prefix)
    np.testing.assert_array_equal(have[:prefix], table[:prefix])
    np.testing.assert_allclose(
        have[prefix:], want.permute(0, 2, 3, 1).reshape(-1, 3).numpy(), atol=1e-5
    )


@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize(
    ("source", "target"),
    [((14, 14), (24, 8)), ((24, 8), (16, 8)), ((5, 3), (7, 2)), ((2, 6), (6, 2)), ((1, 3), (2, 6))],
)
def test_equals_torch(source, target, prefix):
    _assert_equals_torch(source, target, prefix)


sides = st.integers(1, 16)


@settings(max_examples=15)
@given(st.tuples(sides, sides), st.tuples(sides, sides), st.integers(0, 2))
def test_equals_torch_between_any_grids(source, target, prefix):
    """P20: larger, smaller and both at once, square or not."""
    _assert_equals_torch(source, target, prefix)


@pytest.mark.parametrize(
    ("source", "target"), [((14, 14), (24, 8)), ((24, 8), (14, 14)), ((24, 8), (8, 24))]
)
@pytest.mark.parametrize("axis", [0, 1])
def test_rows_stay_rows_and_columns_columns(source, target, axis):
    """P20: a table that counts rows, or columns, still does, and is constant along the others."""
    ramp = np.indices(source)[axis].reshape(-1, 1).astype(np.float32)
    have = resize_positions(jnp.asarray(ramp), source, target, prefix=0)
    have = np.moveaxis(np.asarray(have).reshape(target), axis, 0)
    np.testing.assert_allclose(have, np.repeat(have[:, :1], have.shape[1], axis=1), atol=1e-5)
    assert (np.diff(have[:, 0]) > 0).all()


@pytest.mark.parametrize("prefix", [1, 2])
def test_an_equal_grid_changes_nothing(prefix):
    """P21: a table that was resized once is not interpolated a second time."""
    table = jnp.asarray(_table((4, 2), prefix))
    once = resize_positions(table, (4, 2), (6, 3), prefix)
    assert once is not table
    assert resize_positions(once, (6, 3), (6, 3), prefix) is once


def test_the_prefix_is_part_of_the_length():
    """A DeiT's table, taken for a ViT's, would move every patch by one."""
    with pytest.raises(ValueError, match=r"10 rows does not fit a grid of 4x2 .*9 expected"):
        resize_positions(jnp.asarray(_table((4, 2), prefix=2)), (4, 2), (6, 4), prefix=1)


def test_a_table_of_another_grid_is_refused():
    with pytest.raises(ValueError, match=r"9 rows does not fit a grid of 3x2 .*7 expected"):
        resize_positions(jnp.asarray(_table((4, 2))), (3, 2), (6, 4))
