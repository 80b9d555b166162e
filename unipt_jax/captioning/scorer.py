"""CLIP decides each attribute: one jitted function from images to phrases (paper, section 3.1)."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, UInt8

from unipt_jax.captioning.attributes import AttributeSet
from unipt_jax.core.errors import ConfigError
from unipt_jax.core.sharding import batch_sharding
from unipt_jax.models.dual_encoder import DualEncoder
from unipt_jax.models.heads import unit_rows

# The paper keeps an optional attribute only where the winner is that sure.
THRESHOLD = 0.9

Score = Callable[[Any, Array, UInt8[Array, "B H W 3"]], tuple[Array, Array]]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where each set's prompts lie among all prompts.

    Attributes:
        names: the sets' names.
        required: whether a phrase of the set always holds.
        phrases: number of each set's phrases, which come first.
        sizes: number of each set's prompts, negatives included.
    """

    names: tuple[str, ...]
    required: tuple[bool, ...]
    phrases: tuple[int, ...]
    sizes: tuple[int, ...]


def layout(sets: Mapping[str, AttributeSet]) -> Layout:
    """Lays the prompts of `sets` one after another, in their order."""
    return Layout(
        tuple(sets),
        tuple(each.required for each in sets.values()),
        tuple(len(each.phrases) for each in sets.values()),
        tuple(len(each.phrases) + len(each.negatives) for each in sets.values()),
    )


def prompt_features(
    encode_texts: Callable[[list[str]], np.ndarray],
    sets: Mapping[str, AttributeSet],
    wrappers: Sequence[str],
) -> Float[np.ndarray, "P D"]:
    """Embeds every prompt of every set, averaged over the ensemble of wrappers; unit rows.

    Args:
        encode_texts: embeds sentences as unit rows.
        sets: the attributes.
        wrappers: sentences with `{}` for a prompt, such as "A photo of {}."; at least one.
    """
    if not wrappers:
        raise ConfigError(
            "no wrapper is left: a prompt needs at least one, such as 'A photo of {}.'"
        )
    total = sum(
        encode_texts([text for each in sets.values() for text in each.prompts(wrapper)])
        for wrapper in wrappers
    )
    return total / np.linalg.norm(total, axis=1, keepdims=True)


def decide(
    logits: Float[Array, "B P"], where: Layout, threshold: float = THRESHOLD
) -> tuple[Int[Array, "B A"], Float[Array, "B A"]]:
    """Chooses a phrase of each set.

    Args:
        logits: similarities to all prompts times the logit scale.
        where: the sets' places in `logits`.
        threshold: probability above which a phrase of an optional set is kept.

    Returns:
        The phrase's index within each set, -1 where an optional one is absent (a negative prompt
        won, or the winner is not surer than `threshold`), and the winner's probability among the
        set's prompts.
    """
    indices, probabilities, start = [], [], 0
    for required, phrases, size in zip(where.required, where.phrases, where.sizes, strict=True):
        among = jax.nn.softmax(logits[:, start : start + size].astype(jnp.float32))
        winner, surety = among.argmax(axis=1), among.max(axis=1)
        kept = (winner < phrases) & (surety > threshold)
        indices.append(winner if required else jnp.where(kept, winner, -1))
        probabilities.append(surety)
        start += size
    return jnp.stack(indices, axis=1).astype(jnp.int32), jnp.stack(probabilities, axis=1)


def make_scorer(
    model: DualEncoder, where: Layout, mesh: Mesh, threshold: float = THRESHOLD
) -> Score:
    """Returns the jitted `(params, prompt features, images) -> (indices, probabilities)`.

    Images are uint8[B, H, W, 3], split over the mesh's batch devices; parameters and features are
    on every device. See `decide` for the result. The temperature is the model's own.
    """

    def score(params: Any, features: Array, images: Array) -> tuple[Array, Array]:
        variables = {"params": params}
        embedding = model.apply(variables, images, method="encode_image")
        # What a GPU or a TPU multiplies by default has fewer bits, and prompts are near each other.
        cosine = jnp.matmul(unit_rows(embedding), features.T, precision="highest")
        return decide(
            model.apply(variables, method="inverse_temperature") * cosine, where, threshold
        )

    everywhere, split = NamedSharding(mesh, PartitionSpec()), batch_sharding(mesh)
    return jax.jit(
        score, in_shardings=(everywhere, everywhere, split), out_shardings=(split, split)
    )
