"""The masked-language-model loss."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def masked_cross_entropy(
    logits: Float[Array, "B M V"], labels: Int[Array, "B M"], mask: Bool[Array, "B M"]
) -> tuple[Float[Array, "B"], Float[Array, "B"], Float[Array, "B"]]:
    """Computes BERT's masked-language-model loss as sums and counts.

    The mean over the global batch is `sums.sum() / max(counts.sum(), 1)`. Averages taken text by
    text or device by device would weigh tokens unequally, and be 0 / 0 where none is masked.

    Args:
        logits: scores over the vocabulary at each position; computed with in float32.
        labels: the original token ids, in [0, V) where `mask` is True and anything elsewhere.
        mask: True at positions that count. An id of 0 is a token like any other.

    Returns:
        For each text, in float32: the sum of cross-entropies in nats, the number of positions that
        count, and how many of them have their label on top.
    """
    logits = logits.astype(jnp.float32)
    labels = jnp.where(mask, labels, 0)
    scores = jnp.take_along_axis(logits, labels[:, :, None], axis=2)[:, :, 0]
    losses = jnp.where(mask, jax.nn.logsumexp(logits, axis=2) - scores, 0.0)
    correct = mask & (jnp.argmax(logits, axis=2) == labels)
    return (
        losses.sum(axis=1),
        mask.sum(axis=1, dtype=jnp.float32),
        correct.sum(axis=1, dtype=jnp.float32),
    )
