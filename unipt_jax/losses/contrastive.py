"""The contrastive loss between images and texts."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from unipt_jax.core.errors import ConfigError
from unipt_jax.losses.rows import Rows, dots, gathered, over_rows, valid_count

# In how many parts the texts are gathered: with fewer a device holds more at once.
PARTS = 4


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
    sums = over_rows(
        _cross_entropies,
        image_embedding,
        text_embedding,
        # Those that share one are contrasted; the invalid rows are so among themselves.
        jnp.where(valid, jnp.arange(batch) // (group or batch), -1),
        valid,
        logit_scale.astype(jnp.float32),
    )
    loss, image_hits, text_hits = (total / valid_count(valid) for total in sums)
    return loss / 2.0, {"accuracy/image_to_text": image_hits, "accuracy/text_to_image": text_hits}


class _Met(NamedTuple):
    """What each anchor knows of the candidates that it met.

    Attributes:
        logsumexp: of the logits.
        top: the largest logit.
        first: index in the batch of the first candidate that has it.
    """

    logsumexp: Array
    top: Array
    first: Array


def _cross_entropies(
    rows: Rows, axes: tuple[str, ...], logit_scale: Array
) -> tuple[Array, Array, Array]:
    """Sums cross-entropies over some images and their texts, and the hits of these and of those.

    The images meet all texts once, for both directions. They do so part by part: no device has all
    texts at once, nor more of the gradient of the logits than a part.
    """
    image, count = logit_scale * rows.image, len(rows.index)
    parts = math.gcd(count, PARTS)

    # The gradient finds all but the products anew, and gathers the texts once more.
    @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_saveable)
    def meet(image: Array, some: tuple[Array, Array, Array]) -> tuple[_Met, _Met]:
        text, identity, index = gathered(some, axes)
        # A finite floor: without any candidate, -inf would make the gradient NaN.
        logits = jnp.where(rows.identity[:, None] == identity[None, :], dots(image, text), -1e30)
        by_image = _together(_Met(logits, logits, index[None, :]), axis=1)
        return by_image, _together(_Met(logits, logits, rows.index[:, None]), axis=0)

    def return_home(of_texts: Array) -> Array:
        pieces = of_texts.reshape(parts, -1, count // parts)
        return jax.lax.all_to_all(pieces, axes, 1, 1, tiled=True) if axes else pieces

    # Not a loop of XLA's: those of its CPUs wait for ever where collectives run beside the loop's.
    each = zip(
        *(jnp.split(it, parts) for it in (rows.text, rows.identity, rows.index)), strict=True
    )
    met = []
    for some in each:
        # One part after another, in the gradient too.
        image, found = jax.lax.optimization_barrier((image, meet(image, some)))
        met.append(found)
    by_image, by_text = jax.tree.map(lambda *found: jnp.stack(found), *met)
    by_image = _together(by_image, axis=0)
    by_text = _together(jax.tree.map(return_home, by_text), axis=1)
    own = (image * rows.text).sum(axis=1)
    losses = by_image.logsumexp + by_text.logsumexp.reshape(-1) - 2.0 * own
    hits = [met.first.reshape(-1) == rows.index for met in (by_image, by_text)]
    return tuple(
        jnp.where(rows.valid, of_rows.astype(jnp.float32), 0.0).sum() for of_rows in (losses, *hits)
    )


def _together(met: _Met, axis: int) -> _Met:
    """Puts together what is known of some candidates, or of single ones, along an axis."""
    top = jax.lax.stop_gradient(met.top)
    highest = top.max(axis=axis, keepdims=True)
    first = jnp.where(top == highest, met.first, jnp.iinfo(jnp.int32).max).min(axis=axis)
    return _Met(jax.nn.logsumexp(met.logsumexp, axis=axis), highest.squeeze(axis), first)
