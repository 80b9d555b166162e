"""The pairwise sigmoid loss: each pair is a decision of its own."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from unipt_jax.losses.rows import Anchors, both_ways, valid_count


def pairwise_sigmoid(
    image_embedding: Float[Array, "B D"],
    text_embedding: Float[Array, "B D"],
    logit_scale: Float[Array, ""],
    logit_bias: Float[Array, ""],
    valid: Bool[Array, "B"],
    *,
    identity: Int[Array, "B"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Computes SigLIP's loss: the binary cross-entropies of all pairs of an image and a text.

    Summed over all pairs of valid rows and divided by the number of valid rows. Computed in
    float32.

    Args:
        image_embedding: any length; normalised here.
        text_embedding: the same.
        logit_scale: factor of the cosine similarities, learned; SigLIP starts at 10.
        logit_bias: added to them, learned; SigLIP starts at -10, for most pairs are negative.
        valid: False at rows that fill up the batch: in no pair.
        identity: rows that share one are positives, off the diagonal too; without it, a row is
            positive with its own partner alone, as in SigLIP.

    Returns:
        The loss in nats (0 without a valid row), and `accuracy/image_to_text` and
        `accuracy/text_to_image`: the fraction of valid rows with a positive on top.
    """
    # Without identities each row is one of its own.
    if identity is None:
        identity = jnp.arange(len(valid))
    total, metrics = both_ways(
        _decisions,
        image_embedding,
        text_embedding,
        identity,
        valid,
        logit_scale.astype(jnp.float32),
        logit_bias.astype(jnp.float32),
    )
    # Each pair was seen from both sides.
    return total / (2.0 * valid_count(valid)), metrics


def _decisions(anchors: Anchors, logit_scale: Array, logit_bias: Array) -> tuple[Array, Array]:
    """Returns the sum of each anchor's binary cross-entropies, and its hit."""
    logits = logit_scale * anchors.similarity + logit_bias
    losses = jax.nn.softplus(jnp.where(anchors.same, -logits, logits))
    return jnp.where(anchors.pair, losses, 0.0).sum(axis=1), anchors.hits(anchors.same)
