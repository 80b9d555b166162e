"""The pairwise sigmoid loss: each pair is a decision of its own."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from unipt_jax.losses.similarity import accuracies, cosines, same_identity, valid_pairs


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
    pairs = valid_pairs(valid)
    if identity is None:
        positive = jnp.eye(len(valid), dtype=jnp.bool_) & pairs
    else:
        positive = same_identity(identity, valid)
    similarity = cosines(image_embedding, text_embedding, valid)
    logits = logit_scale.astype(jnp.float32) * similarity + logit_bias.astype(jnp.float32)
    losses = jax.nn.softplus(jnp.where(positive, -logits, logits))
    count = jnp.maximum(valid.sum(dtype=jnp.float32), 1.0)
    loss = jnp.where(pairs, losses, 0.0).sum() / count
    return loss, accuracies(similarity, positive, valid)
