"""The contrastive loss between images and texts."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from unipt_jax.core.errors import ConfigError
from unipt_jax.losses.similarity import unit_rows


def info_nce(
    image_embedding: Float[Array, "B D"],
    text_embedding: Float[Array, "B D"],
    logit_scale: Float[Array, ""],
    valid: Bool[Array, "B"],
    *,
    group: int = 0,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Computes the symmetric InfoNCE loss on cosine similarity (paper, Eq. 1 with a scale of 1).

    Half the sum of the cross-entropies image to text and text to image, each averaged over the
    valid rows; row i of one side belongs to row i of the other. Computed in float32.

    Args:
        image_embedding: any length; normalised here.
        text_embedding: the same.
        logit_scale: factor of the cosine similarities: 1 / temperature.
        valid: False at rows that fill up the batch: neither anchors nor negatives.
        group: 0 contrasts each row with the whole batch; else only within consecutive groups of
            that many rows, as the released code does with the 64 rows of each GPU.

    Returns:
        The loss (0 without a valid row), and `accuracy/image_to_text` and `accuracy/text_to_image`:
        the fraction of valid rows whose own partner is the most similar.

    Raises:
        ConfigError: `group` is negative or does not divide the batch.
    """
    batch = len(valid)
    if group < 0 or (group and batch % group):
        raise ConfigError(f"a batch of {batch} cannot be split into groups of {group}")
    shape = (-1, group or batch)
    image = unit_rows(image_embedding, valid).reshape(*shape, image_embedding.shape[1])
    text = unit_rows(text_embedding, valid).reshape(*shape, text_embedding.shape[1])
    cosine = jnp.einsum("gid,gjd->gij", image, text, precision=jax.lax.Precision.HIGHEST)
    logits = logit_scale.astype(jnp.float32) * cosine
    valid = valid.reshape(shape)

    image_loss, image_hits = _direction(logits, valid)
    text_loss, text_hits = _direction(logits.transpose(0, 2, 1), valid)
    count = jnp.maximum(valid.sum(dtype=jnp.float32), 1.0)
    metrics = {
        "accuracy/image_to_text": image_hits / count,
        "accuracy/text_to_image": text_hits / count,
    }
    return (image_loss + text_loss) / (2.0 * count), metrics


def _direction(logits: Array, valid: Array) -> tuple[Array, Array]:
    """Sums cross-entropies and hits over the valid rows of `logits` [groups, rows, rows]."""
    # A finite floor: without any valid column, -inf would make the gradient NaN.
    logits = jnp.where(valid[:, None, :], logits, -1e30)
    # A masked sum rather than `jnp.diagonal`, whose gather does not stay within a device's rows.
    diagonal = jnp.eye(logits.shape[2], dtype=jnp.bool_)[None]
    own = jnp.where(diagonal, logits, 0.0).sum(axis=2)
    losses = jax.nn.logsumexp(logits, axis=2) - own
    hits = jnp.argmax(logits, axis=2) == jnp.arange(logits.shape[2])[None]
    return jnp.where(valid, losses, 0.0).sum(), (hits & valid).sum(dtype=jnp.float32)
