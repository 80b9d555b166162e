"""The identity loss: each training identity is a class."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from unipt_jax.losses.mlm import masked_cross_entropy
from unipt_jax.losses.rows import valid_mean


def identity_cross_entropy(
    image_logits: Float[Array, "B C"],
    text_logits: Float[Array, "B C"],
    identity: Int[Array, "B"],
    valid: Bool[Array, "B"],
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Computes UniPT's L_id: the cross-entropies of images and of texts, each averaged, summed.

    Summed as in LGUR's released code, on which UniPT builds; IRRA and TBPS-CLIP take half of it,
    which is a weight of 0.5. Computed in float32.

    Args:
        image_logits: scores of the images over the training identities, by the classifier that
            both sides share.
        text_logits: those of the texts.
        identity: the class of each row, in [0, C) where valid and anything elsewhere.
        valid: False at rows that fill up the batch.

    Returns:
        The loss in nats (0 without a valid row), and `accuracy/image_identity` and
        `accuracy/text_identity`: the fraction of valid rows with their identity on top.
    """
    image_loss, image_accuracy = _side(image_logits, identity, valid)
    text_loss, text_accuracy = _side(text_logits, identity, valid)
    metrics = {"accuracy/image_identity": image_accuracy, "accuracy/text_identity": text_accuracy}
    return image_loss + text_loss, metrics


def _side(logits: Array, identity: Array, valid: Array) -> tuple[Array, Array]:
    """Returns the mean cross-entropy and the accuracy of one side."""
    # Zeros, for where no loss comes from a NaN its gradient still would.
    logits = jnp.where(valid[:, None], logits, 0.0)
    # To the masked-language-model loss, each row is a text of one position.
    sums, _, correct = masked_cross_entropy(logits[:, None], identity[:, None], valid[:, None])
    return valid_mean(sums, valid), valid_mean(correct, valid)
