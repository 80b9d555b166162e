"""The contrastive loss between images and texts."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from unipt_jax.core.errors import ConfigError
from unipt_jax.losses.rows import Anchors, both_ways, valid_count


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
    # Identities do not matter here.
    total, metrics = both_ways(
        functools.partial(_cross_entropy, group=group or batch),
        image_embedding,
        text_embedding,
        jnp.zeros_like(valid, jnp.int32),
        valid,
        logit_scale.astype(jnp.float32),
    )
    return total / (2.0 * valid_count(valid)), metrics


def _cross_entropy(anchors: Anchors, logit_scale: Array, *, group: int) -> tuple[Array, Array]:
    """Returns each anchor's cross-entropy among the candidates of its group, and its hit."""
    rows, every = anchors.rows.index // group, anchors.every.index // group
    seen = anchors.candidate & (rows[:, None] == every[None, :])
    # A finite floor: without any candidate, -inf would make the gradient NaN.
    logits = jnp.where(seen, logit_scale * anchors.similarity, -1e30)
    # A masked sum rather than a gather, which does not stay within a device's rows.
    own = jnp.where(anchors.own, logits, 0.0).sum(axis=1)
    top = jnp.argmax(logits, axis=1)
    return jax.nn.logsumexp(logits, axis=1) - own, anchors.every.index[top] == anchors.rows.index
