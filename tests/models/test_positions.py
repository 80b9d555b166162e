"""Resized position tables against torch's bicubic interpolation."""

import jax.numpy as jnp
import numpy as np
import pytest

from unipt_jax.models.positions import resize_positions


def _table(grid, prefix=1, width=3):
    rows = prefix + grid[0] * grid[1]
    return np.random.default_rng(0).normal(size=(rows, width)).astype(np.float32)


@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize(
    ("source", "target"),
    [((14, 14), (24, 8)), ((24, 8), (16, 8)), ((5, 3), (7, 2)), ((2, 6), (6, 2)), ((1, 3), (2, 6))],
)
def test_equals_torch(source, target, prefix):
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


def test_rows_stay_rows():
    rows = np.repeat(np.arange(14, dtype=np.float32), 14)[:, None]
    have = resize_positions(jnp.asarray(rows), (14, 14), (24, 8), prefix=0).reshape(24, 8)
    np.testing.assert_allclose(have, np.repeat(have[:, :1], 8, axis=1), atol=1e-5)
    assert (np.diff(have[:, 0]) > 0).all()


def test_an_equal_grid_changes_nothing():
    table = jnp.asarray(_table((4, 2)))
    assert resize_positions(table, (4, 2), (4, 2)) is table


def test_a_table_of_another_grid_is_refused():
    with pytest.raises(ValueError, match=r"9 rows does not fit a grid of 3x2 .*7 expected"):
        resize_positions(jnp.asarray(_table((4, 2))), (3, 2), (6, 4))
