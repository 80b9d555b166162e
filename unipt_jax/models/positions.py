"""Position embeddings for another image size."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def resize_positions(
    table: Float[Array, "rows D"],
    source_grid: tuple[int, int],
    target_grid: tuple[int, int],
    prefix: int = 1,
) -> Float[Array, "new_rows D"]:
    """Interpolates a position table from one grid of patches to another.

    The same numbers as torch's `interpolate(mode="bicubic", align_corners=False)` without
    antialiasing, which the PyTorch ViTs use.

    Args:
        table: `prefix` rows that stay as they are (the class token's), then one row a patch, row by
            row from the top left.
        source_grid: (rows, columns) of patches that the table was made for.
        target_grid: (rows, columns) wanted; the source grid gives the table back untouched.
        prefix: number of rows that belong to no patch.

    Raises:
        ValueError: the length of the table does not fit the source grid.
    """
    rows, columns = source_grid
    if len(table) != prefix + rows * columns:
        raise ValueError(
            f"a position table of {len(table)} rows does not fit a grid of {rows}x{columns} "
            f"patches and {prefix} more: {prefix + rows * columns} expected"
        )
    if source_grid == target_grid:
        return table
    width = table.shape[1]
    resized = jax.image.resize(
        table[prefix:].reshape(rows, columns, width),
        (*target_grid, width),
        jax.image.ResizeMethod.CUBIC_PYTORCH,
        antialias=False,
    )
    return jnp.concatenate([table[:prefix], resized.reshape(-1, width)])
