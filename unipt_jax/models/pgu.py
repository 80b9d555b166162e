"""Granularity-unified features: one dictionary rebuilds the tokens of both modalities.

PGU of the paper, section 3.4, from Shao et al., "Learning Granularity-Unified Representations for
Text-to-Image Person Re-identification" (MM 2022).
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from unipt_jax.core.sharding import Axis, constrain
from unipt_jax.models.checks import require_fields
from unipt_jax.models.layers import TOKENS, LayerNorm, attend, dense, normal_init, split_heads

_LAYER_NORM_EPS = 1e-5  # torch's default


def _linear(read: int, features: int, axes: tuple[str, str], **options: Any) -> nn.Dense:
    """Makes a map from `read` numbers that starts as wide as torch's, as in the published code.

    0.02, as in the encoders, is about the same at the paper's widths. In a narrow model it would
    leave what is read far smaller than the prototypes that it is added to: all features nearly one.
    """
    return dense(features, axes, std=(3 * read) ** -0.5, **options)


@dataclasses.dataclass(frozen=True)
class PguSpec:
    """Shape of the granularity-unified features; the defaults are those of the published code.

    Attributes:
        dictionary_size: number of vectors that tokens are rebuilt from.
        prototypes: number of queries, each of which reads one part of a person.
        part_dim: width of a part's feature.
        heads: number of attention heads, in both decoders.
        dictionary_head_size: width of a head where tokens look into the dictionary.
        dictionary_mlp_size: width within that decoder's MLP.
        prototype_layers: number of blocks through which prototypes read tokens.
        prototype_head_size: width of a head there.
        prototype_mlp_size: width within the MLP there.

    Raises:
        ConfigError: a value is not a positive integer.
    """

    dictionary_size: int = 400
    prototypes: int = 6
    part_dim: int = 512
    heads: int = 6
    dictionary_head_size: int = 64
    dictionary_mlp_size: int = 768
    prototype_layers: int = 2
    prototype_head_size: int = 512
    prototype_mlp_size: int = 512

    def __post_init__(self):
        require_fields(self)


class Pgu(nn.Module):
    """Turns the tokens of either modality into one feature a prototype.

    Attributes:
        spec: the shape.
        dtype: compute dtype.
    """

    spec: PguSpec
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "B N D"], mask: Bool[Array, "B N"] | None, *, is_image: bool
    ) -> Float[Array, "B Q E"]:
        """Returns float32 features, not normalised; two rows compare by the cosine of all parts.

        Args:
            tokens: projected to the common space.
            mask: the tokens that prototypes may read; None lets them read all.
            is_image: whether a learned foreground in [0, 1] weighs the rebuilt tokens.
        """
        spec, (batch, _, width) = self.spec, tokens.shape
        axes = (None, Axis.EMBED)
        start = nn.with_logical_partitioning(nn.initializers.normal(1.0), axes)
        dictionary = self.param("dictionary", start, (spec.dictionary_size, width))
        prototypes = self.param("prototypes", start, (spec.prototypes, width))
        rebuild = Decoder(
            spec.heads,
            spec.dictionary_head_size,
            spec.dictionary_mlp_size,
            self.dtype,
            name="dictionary_decoder",
        )
        rebuilt = rebuild(tokens, dictionary[None].astype(self.dtype), None)
        if is_image:
            to_one = (Axis.EMBED, Axis.OUTPUT)
            foreground = _linear(width, 1, to_one, dtype=self.dtype, name="foreground")
            rebuilt = rebuilt * nn.sigmoid(foreground(tokens))
        x = jnp.broadcast_to(prototypes[None].astype(self.dtype), (batch, *prototypes.shape))
        for index in range(spec.prototype_layers):
            read = Decoder(
                spec.heads,
                spec.prototype_head_size,
                spec.prototype_mlp_size,
                self.dtype,
                name=f"prototype_decoder_{index}",
            )
            x = read(x, rebuilt, mask)
        # Each prototype has a map of its own, which starts as He et al. (2015) have it.
        kernel = self.param(
            "projection",
            normal_init((None, Axis.EMBED, Axis.OUTPUT), (2 / spec.part_dim) ** 0.5),
            (spec.prototypes, width, spec.part_dim),
        )
        return jnp.einsum("bqd,qde->bqe", x, kernel.astype(self.dtype)).astype(jnp.float32)


class Decoder(nn.Module):
    """Cross-attention and an MLP, each with a residual connection and a LayerNorm before it.

    Attributes:
        heads: number of attention heads.
        head_size: width of a head; their sum need not be that of the tokens.
        mlp_size: width within the MLP.
        dtype: compute dtype.
    """

    heads: int
    head_size: int
    mlp_size: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        queries: Float[Array, "B Q D"],
        tokens: Float[Array, "C N D"],
        mask: Bool[Array, "C N"] | None,
    ) -> Float[Array, "B Q D"]:
        """Lets each query read the tokens where `mask` is True (None: all).

        C is B, or 1 where all rows read the same tokens.
        """
        # One LayerNorm for what reads and what is read, as in the published code.
        norm = LayerNorm(_LAYER_NORM_EPS, self.dtype, name="layer_norm1")
        reads, read = norm(queries), norm(tokens)
        linear = functools.partial(_linear, dtype=self.dtype)
        width, inner = queries.shape[2], self.heads * self.head_size

        def project(name: str, tokens: Array) -> Array:
            projection = linear(width, inner, (Axis.EMBED, Axis.HEADS), use_bias=False, name=name)
            return split_heads(projection(tokens), self.head_size)

        query, key, value = (
            project("q_proj", reads),
            project("k_proj", read),
            project("v_proj", read),
        )
        x = attend(query, key, value, [] if mask is None else [mask[:, None, None, :]])
        out = linear(inner, width, (Axis.HEADS, Axis.EMBED), name="out_proj")
        x = constrain(queries + out(x), TOKENS)
        fc1 = linear(width, self.mlp_size, (Axis.EMBED, Axis.MLP), name="fc1")
        fc2 = linear(self.mlp_size, width, (Axis.MLP, Axis.EMBED), name="fc2")
        hidden = nn.relu(fc1(LayerNorm(_LAYER_NORM_EPS, self.dtype, name="layer_norm2")(x)))
        return x + fc2(hidden)
