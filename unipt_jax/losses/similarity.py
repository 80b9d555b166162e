"""What the losses share: unit rows, their cosines, which rows share an identity, and means."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def unit_rows(embedding: Float[Array, "B D"], valid: Bool[Array, "B"]) -> Float[Array, "B D"]:
    """Scales rows to length 1 in float32; the invalid and the all but zero ones come out near 0."""
    rows = jnp.where(valid[:, None], embedding.astype(jnp.float32), 0.0)
    # The floor stands under the root, whose slope at 0 is infinite.
    squares = jnp.maximum((rows * rows).sum(axis=1, keepdims=True), 1e-12)
    return rows * jax.lax.rsqrt(squares)


def cosines(
    first: Float[Array, "B D"], second: Float[Array, "B D"], valid: Bool[Array, "B"]
) -> Float[Array, "B B"]:
    """Computes the cosine of each row of `first` with each of `second`; 0 where one is invalid."""
    return jnp.einsum(
        "id,jd->ij",
        unit_rows(first, valid),
        unit_rows(second, valid),
        precision=jax.lax.Precision.HIGHEST,
    )


def diagonal(matrix: Float[Array, "B B"]) -> Float[Array, "B"]:
    """Returns the values of the rows' own pairs."""
    # A masked sum rather than `jnp.diagonal`, whose gather does not stay within a device's rows.
    return jnp.where(jnp.eye(len(matrix), dtype=jnp.bool_), matrix, 0.0).sum(axis=1)


def same_identity(identity: Int[Array, "B"], valid: Bool[Array, "B"]) -> Bool[Array, "B B"]:
    """Returns True at pairs of valid rows of one identity, a row with itself included."""
    return (identity[:, None] == identity[None, :]) & valid_pairs(valid)


def other_identity(identity: Int[Array, "B"], valid: Bool[Array, "B"]) -> Bool[Array, "B B"]:
    """Returns True at pairs of valid rows of two identities: the negatives."""
    return (identity[:, None] != identity[None, :]) & valid_pairs(valid)


def valid_pairs(valid: Bool[Array, "B"]) -> Bool[Array, "B B"]:
    """Returns True where both rows are valid."""
    return valid[:, None] & valid[None, :]


def valid_mean(values: Float[Array, "B"], valid: Bool[Array, "B"]) -> Float[Array, ""]:
    """Averages over the valid rows; 0 if there are none."""
    return jnp.where(valid, values, 0.0).sum() / jnp.maximum(valid.sum(dtype=jnp.float32), 1.0)


def accuracies(
    similarity: Float[Array, "B B"], positive: Bool[Array, "B B"], valid: Bool[Array, "B"]
) -> dict[str, Float[Array, ""]]:
    """Computes how often the most similar valid row of the other side is a positive.

    Args:
        similarity: of image i and text j.
        positive: True where image i and text j belong together.
        valid: False at rows that fill up the batch.

    Returns:
        `accuracy/image_to_text` and `accuracy/text_to_image`: fractions of the valid rows.
    """
    return {
        "accuracy/image_to_text": _accuracy(similarity, positive, valid),
        "accuracy/text_to_image": _accuracy(similarity.T, positive.T, valid),
    }


def _accuracy(similarity: Array, positive: Array, valid: Array) -> Array:
    """Returns the fraction of valid rows with a positive on top."""
    top = jnp.argmax(jnp.where(valid[None, :], similarity, -jnp.inf), axis=1)
    hits = positive & (jnp.arange(len(valid))[None, :] == top[:, None])
    return valid_mean(hits.any(axis=1).astype(jnp.float32), valid)
