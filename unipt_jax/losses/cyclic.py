"""The cyclic loss: similarities are to be the same whichever side either row is taken from."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from unipt_jax.losses.rows import Rows, dots, gathered, over_rows, valid_count


def c_itc(
    image_embedding: Float[Array, "B D"],
    text_embedding: Float[Array, "B D"],
    valid: Bool[Array, "B"],
    *,
    in_modal_weight: float = 0.25,
    cross_modal_weight: float = 0.25,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Computes TBPS-CLIP's cyclic image-text contrastive loss, C-ITC.

    In-modal: the mean square of cos(image i, image j) - cos(text i, text j). Cross-modal: that of
    cos(image i, text j) - cos(image j, text i). Both over all pairs of valid rows, i = j included,
    and free of the temperature, which the released code multiplies in and divides out. Computed in
    float32.

    Args:
        image_embedding: any length; normalised here.
        text_embedding: the same.
        valid: False at rows that fill up the batch.
        in_modal_weight: >= 0; TBPS-CLIP's is 0.25, and it weighs the whole loss by 0.1.
        cross_modal_weight: >= 0; TBPS-CLIP's is 0.25.

    Returns:
        The loss (0 without a valid row), and its two terms without their weights,
        `cyclic/in_modal` and `cyclic/cross_modal`.
    """
    # The cosines of invalid rows are 0, so their differences are too.
    sums = over_rows(
        _squares, image_embedding, text_embedding, jnp.zeros_like(valid, jnp.int32), valid
    )
    in_modal, cross_modal = (total / jnp.square(valid_count(valid)) for total in sums)
    metrics = {"cyclic/in_modal": in_modal, "cyclic/cross_modal": cross_modal}
    return in_modal_weight * in_modal + cross_modal_weight * cross_modal, metrics


def _squares(rows: Rows, axes: tuple[str, ...]) -> tuple[Array, Array]:
    """Returns the sums of the squared differences of both terms."""
    every = gathered(rows, axes)
    in_modal = dots(rows.image, every.image) - dots(rows.text, every.text)
    cross_modal = dots(rows.image, every.text) - dots(rows.text, every.image)
    return jnp.square(in_modal).sum(), jnp.square(cross_modal).sum()
