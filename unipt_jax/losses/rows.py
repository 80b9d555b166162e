"""Rows of a batch against all of it: how the losses between images and texts go over devices.

B images and B texts have B x B similarities. Here a device computes those of its own rows alone,
B / devices x B, forward and backward; a loss says what to add up over some rows. The value is that
of one device, and so is the gradient. `both_ways` computes such a block for each direction, which
leaves a loss of anchors free to do anything with it; `contrastive` computes one for both.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from unipt_jax.core.sharding import Axis, partition_spec


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("image", "text", "identity", "valid", "index"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True)
class Rows:
    """Some rows of a batch, or all of them.

    Attributes:
        image: float32, of length 1; near 0 where invalid.
        text: the same.
        identity: rows that share one belong together.
        valid: False at rows that fill up the batch.
        index: of each row in the batch.
    """

    image: Float[Array, "R D"]
    text: Float[Array, "R D"]
    identity: Int[Array, "R"]
    valid: Bool[Array, "R"]
    index: Int[Array, "R"]


@dataclasses.dataclass(frozen=True)
class Anchors:
    """Rows of one side, the anchors, before all rows of the other, the candidates.

    Attributes:
        similarity: cosines; 0 where one of the two is invalid.
        rows: the anchors' rows.
        every: the candidates'.
        side: of the anchors, "image" or "text".
    """

    similarity: Float[Array, "R B"]
    rows: Rows
    every: Rows
    side: str

    @property
    def candidate(self) -> Bool[Array, "1 B"]:
        """True at the valid candidates."""
        return self.every.valid[None, :]

    @property
    def pair(self) -> Bool[Array, "R B"]:
        """True where both are valid."""
        return self.rows.valid[:, None] & self.candidate

    @property
    def own(self) -> Bool[Array, "R B"]:
        """True at each anchor's own partner."""
        return self.rows.index[:, None] == self.every.index[None, :]

    @property
    def same(self) -> Bool[Array, "R B"]:
        """True at valid pairs of one identity, an anchor's own included."""
        return (self.rows.identity[:, None] == self.every.identity[None, :]) & self.pair

    @property
    def other(self) -> Bool[Array, "R B"]:
        """True at valid pairs of two identities: the negatives."""
        return (self.rows.identity[:, None] != self.every.identity[None, :]) & self.pair

    def hits(self, positive: Bool[Array, "R B"]) -> Bool[Array, "R"]:
        """Tells whether the most similar valid candidate, the first of equals, is a positive."""
        top = jnp.argmax(jnp.where(self.candidate, self.similarity, -jnp.inf), axis=1)
        return (positive & (jnp.arange(len(self.every.valid))[None, :] == top[:, None])).any(axis=1)


def over_rows(
    part: Callable[..., Any],
    image_embedding: Float[Array, "B D"],
    text_embedding: Float[Array, "B D"],
    identity: Int[Array, "B"],
    valid: Bool[Array, "B"],
    *others: Any,
) -> Any:
    """Adds up what `part` gives for the rows of each device.

    Args:
        part: `(rows, axes, *others) -> sums`, a tree of scalars, of some rows; the others are on
            the devices along those axes of the mesh: see `gathered`.
        image_embedding: any length; scaled to 1 here, in float32.
        text_embedding: the same.
        identity: of each row.
        valid: False at rows that fill up the batch.
        others: arrays that each device has whole.

    Returns:
        The sums over all rows. On the mesh in force each device computes its own; without one, or
        where it does not divide the batch, all rows are one part, and there are no axes.
    """
    rows = Rows(
        unit_rows(image_embedding, valid),
        unit_rows(text_embedding, valid),
        identity,
        valid,
        jnp.arange(len(valid)),
    )
    split, mesh = partition_spec((Axis.BATCH,)), jax.sharding.get_abstract_mesh()
    ways = 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in split[0])
    if ways == 1 or len(valid) % ways:
        return part(rows, (), *others)

    def on_device(rows: Rows, others: tuple) -> Any:
        return jax.lax.psum(part(rows, split[0], *others), split[0])

    whole = PartitionSpec()
    return jax.shard_map(on_device, in_specs=(split, whole), out_specs=whole)(rows, others)


def gathered(own: Any, axes: tuple[str, ...]) -> Any:
    """Returns a tree of arrays with the rows of all devices along some axes, in their order."""
    if not axes:
        return own
    return jax.tree.map(lambda array: jax.lax.all_gather(array, axes, tiled=True), own)


def both_ways(
    anchor_loss: Callable[..., tuple[Float[Array, "R"], Bool[Array, "R"]]],
    image_embedding: Float[Array, "B D"],
    text_embedding: Float[Array, "B D"],
    identity: Int[Array, "B"],
    valid: Bool[Array, "B"],
    *others: Any,
    mark: str = "accuracy",
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Sums a loss of anchors over the images as anchors and over the texts as anchors.

    Args:
        anchor_loss: `(anchors, *others) -> (losses, marks)` of some anchors, 0 and False or
            anything else where they are invalid.
        image_embedding: as `over_rows`.
        text_embedding: as `over_rows`.
        identity: as `over_rows`.
        valid: as `over_rows`.
        others: as `over_rows`.
        mark: what the marks say.

    Returns:
        The sum over the valid anchors, and `{mark}/image_to_text` and `{mark}/text_to_image`: the
        fraction of valid anchors that are marked.
    """

    def part(rows: Rows, axes: tuple[str, ...], *others: Any) -> tuple[tuple[Array, Array], ...]:
        every = gathered(rows, axes)

        def summed(side: str, anchor: Array, candidate: Array) -> tuple[Array, Array]:
            anchors = Anchors(dots(anchor, candidate), rows, every, side)
            losses, marks = anchor_loss(anchors, *others)
            return (
                jnp.where(rows.valid, losses, 0.0).sum(),
                (marks & rows.valid).sum(dtype=jnp.float32),
            )

        return summed("image", rows.image, every.text), summed("text", rows.text, every.image)

    (image_loss, image_marks), (text_loss, text_marks) = over_rows(
        part, image_embedding, text_embedding, identity, valid, *others
    )
    count = valid_count(valid)
    metrics = {
        f"{mark}/image_to_text": image_marks / count,
        f"{mark}/text_to_image": text_marks / count,
    }
    return image_loss + text_loss, metrics


def unit_rows(embedding: Float[Array, "B D"], valid: Bool[Array, "B"]) -> Float[Array, "B D"]:
    """Scales rows to length 1 in float32; the invalid and the all but zero ones come out near 0."""
    rows = jnp.where(valid[:, None], embedding.astype(jnp.float32), 0.0)
    # The floor stands under the root, whose slope at 0 is infinite.
    squares = jnp.maximum((rows * rows).sum(axis=1, keepdims=True), 1e-12)
    return rows * jax.lax.rsqrt(squares)


def dots(first: Float[Array, "R D"], second: Float[Array, "B D"]) -> Float[Array, "R B"]:
    """Multiplies each row of `first` by each of `second`, in full float32."""
    return jnp.einsum("id,jd->ij", first, second, precision=jax.lax.Precision.HIGHEST)


def valid_count(valid: Bool[Array, "B"]) -> Float[Array, ""]:
    """Returns the number of valid rows, or 1 if there are none, to divide by."""
    return jnp.maximum(valid.sum(dtype=jnp.float32), 1.0)


def valid_mean(values: Float[Array, "B"], valid: Bool[Array, "B"]) -> Float[Array, ""]:
    """Averages over the valid rows; 0 if there are none."""
    return jnp.where(valid, values, 0.0).sum() / valid_count(valid)
