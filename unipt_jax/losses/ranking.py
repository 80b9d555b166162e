"""Margin losses: a pair is to be more similar than its negatives, by a margin."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from unipt_jax.losses.similarity import (
    cosines,
    diagonal,
    other_identity,
    same_identity,
    valid_mean,
)


def semi_hard_ranking(
    image_embedding: Float[Array, "B D"],
    text_embedding: Float[Array, "B D"],
    identity: Int[Array, "B"],
    valid: Bool[Array, "B"],
    key: Key[Array, ""],
    *,
    margin: float = 0.2,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Computes UniPT's L_rk, the ranking loss of LGUR's released code.

    Each image is an anchor with its own text as the positive, and each text with its own image.
    The loss of an anchor is `margin - positive + negative` in cosine similarity, with one semi-hard
    negative (see `draw_semi_hard`); 0 for an anchor that has none. It is summed over the anchors of
    both directions, so it grows with the batch. Computed in float32.

    Not followed: LGUR's code draws a text's negative among the images and then reads image i
    against text j, not text i against image j; and where no anchor of a direction has a semi-hard
    negative, it takes the first negative of the last anchor.

    Args:
        image_embedding: any length; normalised here.
        text_embedding: the same.
        identity: rows that share one are not each other's negatives.
        valid: False at rows that fill up the batch: neither anchors nor negatives.
        key: typed key of the draws; split in two, for image anchors and for text anchors.
        margin: > 0; UniPT's and LGUR's default is 0.2.

    Returns:
        The loss (0 without a valid row), and `active/image_to_text` and `active/text_to_image`: the
        fraction of valid rows that have a semi-hard negative.
    """
    similarity = cosines(image_embedding, text_embedding, valid)
    negative = other_identity(identity, valid)
    image_key, text_key = jax.random.split(key)
    image_loss, image_active = _semi_hard(similarity, negative, image_key, margin)
    text_loss, text_active = _semi_hard(similarity.T, negative, text_key, margin)
    return image_loss + text_loss, _active(image_active, text_active, valid)


def draw_semi_hard(
    similarity: Float[Array, "B B"],
    negative: Bool[Array, "B B"],
    key: Key[Array, ""],
    *,
    margin: float,
) -> tuple[Int[Array, "B"], Bool[Array, "B"]]:
    """Draws one semi-hard negative an anchor, uniformly.

    Semi-hard is a negative that is less similar than the positive, by less than the margin:
    `positive - margin < negative < positive`. Harder ones are left out as well as easier ones.

    Args:
        similarity: of anchor i and candidate j; the positive is on the diagonal.
        negative: True where candidate j is a negative of anchor i.
        key: typed key; rows are drawn for independently.
        margin: > 0.

    Returns:
        The drawn column of each row, and whether there was one to draw; else the column is 0.
    """
    gap = diagonal(similarity)[:, None] - similarity
    semi_hard = negative & (gap > 0) & (gap < margin)
    drawn = jax.random.categorical(key, jnp.where(semi_hard, 0.0, -jnp.inf), axis=1)
    return drawn, semi_hard.any(axis=1)


def tal(
    image_embedding: Float[Array, "B D"],
    text_embedding: Float[Array, "B D"],
    identity: Int[Array, "B"],
    valid: Bool[Array, "B"],
    *,
    temperature: float = 0.015,
    margin: float = 0.1,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Computes RDE's triplet alignment loss, which looks at all positives and all negatives.

    The loss of an anchor is `max(0, margin - positive + negative)` in cosine similarity s:
    `positive` averages the rows of its identity, weighted by their softmax of s / temperature
    without a gradient through the weights; `negative` is `temperature * log(sum(exp(s /
    temperature)))` over the other identities, a smooth maximum. It is summed over the anchors of
    both directions, so it grows with the batch. Computed in float32. As in RDE's released code,
    without its division into clean and noisy pairs.

    Args:
        image_embedding: any length; normalised here.
        text_embedding: the same.
        identity: rows that share one are each other's positives, off the diagonal too.
        valid: False at rows that fill up the batch: neither anchors, positives nor negatives.
        temperature: > 0; RDE's is 0.015.
        margin: >= 0; RDE's is 0.1.

    Returns:
        The loss (0 without a valid row, and for an anchor without a negative), and
        `active/image_to_text` and `active/text_to_image`: the fraction of valid rows whose loss is
        above 0.
    """
    similarity = cosines(image_embedding, text_embedding, valid)
    # Both are symmetric: they serve the two directions.
    same, other = same_identity(identity, valid), other_identity(identity, valid)
    image_losses = _alignment(similarity, same, other, temperature, margin)
    text_losses = _alignment(similarity.T, same, other, temperature, margin)
    metrics = _active(image_losses > 0, text_losses > 0, valid)
    return image_losses.sum() + text_losses.sum(), metrics


def _semi_hard(
    similarity: Array, negative: Array, key: Array, margin: float
) -> tuple[Array, Array]:
    """Sums the losses of the rows as anchors; says which of them have a semi-hard negative."""
    drawn, found = draw_semi_hard(similarity, negative, key, margin=margin)
    # A masked sum rather than a gather, which does not stay within a device's rows.
    columns = jnp.arange(len(similarity))[None, :]
    chosen = jnp.where(columns == drawn[:, None], similarity, 0.0).sum(axis=1)
    losses = margin - diagonal(similarity) + chosen
    return jnp.where(found, losses, 0.0).sum(), found


def _alignment(
    similarity: Array, same: Array, other: Array, temperature: float, margin: float
) -> Array:
    """Returns each row's loss as an anchor; the floors leave 0 where it has no negative."""
    logits = similarity / temperature
    weights = jax.lax.stop_gradient(jax.nn.softmax(jnp.where(same, logits, -1e30), axis=1))
    positive = (weights * similarity).sum(axis=1)
    negative = temperature * jax.nn.logsumexp(jnp.where(other, logits, -1e30), axis=1)
    return jax.nn.relu(margin - positive + negative)


def _active(image: Array, text: Array, valid: Array) -> dict[str, Array]:
    """Returns the fractions of valid rows that are active anchors."""
    return {
        "active/image_to_text": valid_mean(image.astype(jnp.float32), valid),
        "active/text_to_image": valid_mean(text.astype(jnp.float32), valid),
    }
