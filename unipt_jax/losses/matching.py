"""Distribution matching: the softmax over the batch is fitted to that of shared identities."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from unipt_jax.losses.rows import Anchors, both_ways, valid_count


def sdm(
    image_embedding: Float[Array, "B D"],
    text_embedding: Float[Array, "B D"],
    identity: Int[Array, "B"],
    valid: Bool[Array, "B"],
    *,
    temperature: float = 0.02,
    epsilon: float = 1e-8,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Computes IRRA's similarity distribution matching.

    With p the softmax of an anchor's cosine similarities over the temperature and q the uniform
    distribution over the rows of its identity: KL(p || q + epsilon), averaged over the valid rows,
    summed over image to text and text to image. Computed in float32.

    Args:
        image_embedding: any length; normalised here.
        text_embedding: the same.
        identity: rows that share one are each other's positives, off the diagonal too.
        valid: False at rows that fill up the batch: neither anchors, positives nor negatives.
        temperature: > 0 and fixed; IRRA's is 0.02.
        epsilon: > 0, keeps the logarithm of q finite; IRRA's is 1e-8.

    Returns:
        The loss in nats (0 without a valid row), and `accuracy/image_to_text` and
        `accuracy/text_to_image`: the fraction of valid rows with a row of their identity on top.
    """
    scale = jnp.float32(1.0 / temperature)
    half, metrics = r_itc(image_embedding, text_embedding, scale, identity, valid, epsilon=epsilon)
    return 2.0 * half, metrics


def r_itc(
    image_embedding: Float[Array, "B D"],
    text_embedding: Float[Array, "B D"],
    logit_scale: Float[Array, ""],
    identity: Int[Array, "B"],
    valid: Bool[Array, "B"],
    *,
    epsilon: float = 1e-2,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Computes TBPS-CLIP's reversed image-text contrastive loss, R-ITC.

    It is half of `sdm` with a learned temperature and a larger epsilon.

    Args:
        image_embedding: any length; normalised here.
        text_embedding: the same.
        logit_scale: factor of the cosine similarities: 1 / temperature.
        identity: rows that share one are each other's positives, off the diagonal too.
        valid: False at rows that fill up the batch: neither anchors, positives nor negatives.
        epsilon: > 0, keeps the logarithm finite; TBPS-CLIP's is 0.01.

    Returns:
        The loss in nats and the metrics, as `sdm`.
    """
    total, metrics = both_ways(
        functools.partial(_divergence, epsilon=epsilon),
        image_embedding,
        text_embedding,
        identity,
        valid,
        logit_scale.astype(jnp.float32),
    )
    return total / (2.0 * valid_count(valid)), metrics


def n_itc(
    image_embedding: Float[Array, "B D"],
    text_embedding: Float[Array, "B D"],
    logit_scale: Float[Array, ""],
    identity: Int[Array, "B"],
    valid: Bool[Array, "B"],
    *,
    soft_weight: float | Float[Array, ""] = 0.5,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Computes TBPS-CLIP's normalised image-text contrastive loss, N-ITC, with soft labels.

    The cross-entropy of InfoNCE, half the sum of both directions, with another target: a mixture of
    the uniform distribution over the rows of an anchor's identity and of the prediction itself,
    without a gradient. Computed in float32. The released code predicts the soft labels by a second
    pass through the encoders, which differs by its dropout alone.

    Args:
        image_embedding: any length; normalised here.
        text_embedding: the same.
        logit_scale: factor of the cosine similarities: 1 / temperature. TBPS-CLIP learns it from
            1 / 0.07 on and holds it at 100 at most.
        identity: rows that share one are each other's positives, off the diagonal too.
        valid: False at rows that fill up the batch: neither anchors, positives nor negatives.
        soft_weight: the prediction's part of the target, in [0, 1]; TBPS-CLIP's is 0.5, raised
            linearly from 0 over the first epoch.

    Returns:
        The loss in nats (0 without a valid row) and the metrics of `sdm`.
    """
    total, metrics = both_ways(
        _soft_cross_entropy,
        image_embedding,
        text_embedding,
        identity,
        valid,
        logit_scale.astype(jnp.float32),
        jnp.asarray(soft_weight, jnp.float32),
    )
    return total / (2.0 * valid_count(valid)), metrics


def _divergence(anchors: Anchors, logit_scale: Array, *, epsilon: float) -> tuple[Array, Array]:
    """Returns each anchor's KL(softmax of the logits || shared identity + epsilon), and its hit."""
    log_prediction = _log_softmax(anchors, logit_scale)
    log_target = jnp.log(_shared(anchors.same) + epsilon)
    terms = jnp.exp(log_prediction) * (log_prediction - log_target)
    return terms.sum(axis=1), anchors.hits(anchors.same)


def _soft_cross_entropy(
    anchors: Anchors, logit_scale: Array, soft_weight: Array
) -> tuple[Array, Array]:
    """Returns each anchor's cross-entropy to the mixed target, and its hit."""
    log_prediction = _log_softmax(anchors, logit_scale)
    soft = jax.lax.stop_gradient(jnp.exp(log_prediction))
    target = soft_weight * soft + (1.0 - soft_weight) * _shared(anchors.same)
    return -(target * log_prediction).sum(axis=1), anchors.hits(anchors.same)


def _log_softmax(anchors: Anchors, logit_scale: Array) -> Array:
    """Returns the logarithm of the softmax over the valid candidates."""
    # A finite floor: 0 times it is 0, where 0 times an infinity is NaN.
    logits = jnp.where(anchors.candidate, logit_scale * anchors.similarity, -1e30)
    return jax.nn.log_softmax(logits, axis=1)


def _shared(same: Array) -> Array:
    """Returns the uniform distribution over the rows of each one's identity."""
    same = same.astype(jnp.float32)
    return same / jnp.maximum(same.sum(axis=1, keepdims=True), 1.0)
