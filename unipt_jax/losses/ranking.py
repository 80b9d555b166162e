"""Margin losses: a pair is to be more similar than its negatives, by a margin."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from unipt_jax.losses.rows import Anchors, both_ways


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
        key: typed key of the draws; each anchor draws by a key of its own.
        margin: > 0; UniPT's and LGUR's default is 0.2.

    Returns:
        The loss (0 without a valid row), and `active/image_to_text` and `active/text_to_image`: the
        fraction of valid rows that have a semi-hard negative.
    """
    return both_ways(
        functools.partial(_semi_hard, margin=margin),
        image_embedding,
        text_embedding,
        identity,
        valid,
        key,
        mark="active",
    )


def draw_semi_hard(
    positive: Float[Array, "R"],
    similarity: Float[Array, "R B"],
    negative: Bool[Array, "R B"],
    keys: Key[Array, "R"],
    *,
    margin: float,
) -> tuple[Int[Array, "R"], Bool[Array, "R"]]:
    """Draws one semi-hard negative an anchor, uniformly.

    Semi-hard is a negative that is less similar than the positive, by less than the margin:
    `positive - margin < negative < positive`. Harder ones are left out as well as easier ones.

    Args:
        positive: similarity of each anchor and its positive.
        similarity: of anchor i and candidate j.
        negative: True where candidate j is a negative of anchor i.
        keys: typed keys; each row draws by its own, so that it does not matter who else is there.
        margin: > 0.

    Returns:
        The drawn column of each row, and whether there was one to draw; else the column is 0.
    """
    gap = positive[:, None] - similarity
    semi_hard = negative & (gap > 0) & (gap < margin)
    drawn = jax.vmap(jax.random.categorical)(keys, jnp.where(semi_hard, 0.0, -jnp.inf))
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
    return both_ways(
        functools.partial(_alignment, temperature=temperature, margin=margin),
        image_embedding,
        text_embedding,
        identity,
        valid,
        mark="active",
    )


def _semi_hard(anchors: Anchors, key: Array, *, margin: float) -> tuple[Array, Array]:
    """Returns each anchor's loss, and whether it has a semi-hard negative."""
    key = jax.random.fold_in(key, anchors.side == "text")
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, anchors.rows.index)
    positive = jnp.where(anchors.own, anchors.similarity, 0.0).sum(axis=1)
    drawn, found = draw_semi_hard(positive, anchors.similarity, anchors.other, keys, margin=margin)
    # A masked sum rather than a gather, which does not stay within a device's rows.
    columns = jnp.arange(len(anchors.every.index))[None, :]
    chosen = jnp.where(columns == drawn[:, None], anchors.similarity, 0.0).sum(axis=1)
    return jnp.where(found, margin - positive + chosen, 0.0), found


def _alignment(anchors: Anchors, *, temperature: float, margin: float) -> tuple[Array, Array]:
    """Returns each anchor's loss, and whether it has one; the floors leave 0 without a negative."""
    logits = anchors.similarity / temperature
    masked = jnp.where(anchors.same, logits, -1e30)
    weights = jax.lax.stop_gradient(jax.nn.softmax(masked, axis=1))
    positive = (weights * anchors.similarity).sum(axis=1)
    masked = jnp.where(anchors.other, logits, -1e30)
    negative = temperature * jax.nn.logsumexp(masked, axis=1)
    losses = jax.nn.relu(margin - positive + negative)
    return losses, losses > 0
