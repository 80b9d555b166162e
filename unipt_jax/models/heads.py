"""What stands on the tokens: pooling to one embedding, identities, and masked words."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from unipt_jax.core.sharding import Axis, constrain
from unipt_jax.models.layers import ACTIVATIONS, TOKENS, Activation, LayerNorm, dense, zeros_init


def unit_rows(embedding: Float[Array, "*N E"]) -> Float[Array, "*N E"]:
    """Scales embeddings to length 1, so that their products are cosines; zeros stay zeros."""
    # The floor stands under the root, whose slope at 0 is infinite.
    squares = (embedding * embedding).sum(axis=-1, keepdims=True)
    return embedding / jnp.sqrt(jnp.maximum(squares, 1e-24))


def masked_max(tokens: Float[Array, "B L E"], mask: Bool[Array, "B L"]) -> Float[Array, "B E"]:
    """Takes the maximum over the tokens where `mask` is True; a row without any gives zeros."""
    lowest = jnp.finfo(tokens.dtype).min
    x = jnp.where(mask[:, :, None], tokens, lowest).max(axis=1)
    return jnp.where(mask.any(axis=1)[:, None], x, 0.0)


class EmbeddingHead(nn.Module):
    """A linear map on every token (the paper's 1x1 convolution), then the maximum over tokens.

    Attributes:
        embedding_dim: width of the embedding.
        dtype: compute dtype of the map.
    """

    embedding_dim: int
    dtype: DTypeLike = jnp.float32

    def setup(self):
        """Makes the map."""
        axes = (Axis.EMBED, Axis.OUTPUT)
        self.projection = dense(self.embedding_dim, axes, dtype=self.dtype)

    def project(self, tokens: Float[Array, "B L D"]) -> Float[Array, "B L E"]:
        """Maps every token into the common space, in float32 and not normalised."""
        return constrain(self.projection(tokens), TOKENS).astype(jnp.float32)

    def pool(
        self, projected: Float[Array, "B L E"], mask: Bool[Array, "B L"] | None
    ) -> Float[Array, "B E"]:
        """Takes the maximum over the tokens of `project`."""
        return projected.max(axis=1) if mask is None else masked_max(projected, mask)

    def __call__(
        self, tokens: Float[Array, "B L D"], mask: Bool[Array, "B L"] | None
    ) -> Float[Array, "B E"]:
        """Returns float32 embeddings, not normalised.

        Args:
            tokens: an encoder's output.
            mask: the tokens that take part; None lets all do. A row without any gives zeros.
        """
        return self.pool(self.project(tokens), mask)


class ClassHead(nn.Module):
    """One token, which stands for all, through a linear map without bias (CLIP).

    Attributes:
        embedding_dim: width of the embedding.
        dtype: compute dtype of the map.
    """

    embedding_dim: int
    dtype: DTypeLike = jnp.float32

    def setup(self):
        """Makes the map."""
        axes = (Axis.EMBED, Axis.OUTPUT)
        self.projection = dense(self.embedding_dim, axes, use_bias=False, dtype=self.dtype)

    def project(self, tokens: Float[Array, "B L D"]) -> Float[Array, "B L E"]:
        """Maps every token into the common space, in float32 and not normalised."""
        return self.projection(tokens).astype(jnp.float32)

    def pool(
        self, projected: Float[Array, "B L E"], position: Int[Array, "B"]
    ) -> Float[Array, "B E"]:
        """Takes each row's token at its position; beyond gives NaN."""
        at = position[:, None, None]
        return jnp.take_along_axis(projected, at, axis=1, mode="fill", fill_value=jnp.nan)[:, 0]

    def __call__(
        self, tokens: Float[Array, "B L D"], position: Int[Array, "B"]
    ) -> Float[Array, "B E"]:
        """Returns float32 embeddings, not normalised.

        Args:
            tokens: an encoder's output.
            position: each row's token, in [0, L); beyond gives NaN.
        """
        # The token first: fewer products.
        return self.project(self.pool(tokens, position)[:, None])[:, 0]


class IdentityHead(nn.Module):
    """The classifier of training identities that images and texts share, or one for each part.

    Starts as IRRA's and LGUR's, N(0, 0.001).

    Attributes:
        classes: number of training identities.
        dtype: compute dtype.
    """

    classes: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, features: Float[Array, "B *Q E"]) -> Float[Array, "B *Q C"]:
        """Returns float32 logits over the classes.

        Args:
            features: embeddings [B, E], or one of each of Q parts [B, Q, E], every part with a
                classifier of its own (LGUR). Not normalised.
        """
        *parts, width = features.shape[1:]
        whole = (None,) * len(parts)
        start = nn.initializers.normal(0.001)
        start = nn.with_logical_partitioning(start, (*whole, Axis.EMBED, Axis.VOCAB))
        kernel = self.param("kernel", start, (*parts, width, self.classes))
        bias = self.param("bias", zeros_init((*whole, Axis.VOCAB)), (*parts, self.classes))
        # Parts before rows: in another order, CPUs have no product from bfloat16 to float32.
        x = jnp.moveaxis(features.astype(self.dtype), 0, -2)
        x = jnp.matmul(x, kernel.astype(self.dtype), preferred_element_type=jnp.float32)
        logits = jnp.moveaxis(x, -2, 0)
        return constrain(logits + bias[None], (Axis.BATCH, *whole, Axis.VOCAB))


class MlmHead(nn.Module):
    """BERT's masked-language-model head: a transform, and a decoder tied to the token embeddings.

    Attributes:
        layer_norm_eps: LayerNorm's epsilon.
        activation: the transform's activation; BERT takes its MLP's.
        dtype: compute dtype.
        std: what the transform's kernel starts with.
    """

    layer_norm_eps: float
    activation: Activation
    dtype: DTypeLike = jnp.float32
    std: float = 0.02

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "B L D"],
        positions: Int[Array, "B M"],
        word_table: Float[Array, "V D"],
    ) -> Float[Array, "B M V"]:
        """Returns float32 logits over the vocabulary at the given positions alone.

        Args:
            tokens: the text encoder's output.
            positions: places in [0, L); where fewer than M tokens are masked, any place fills up.
            word_table: the token embeddings.
        """
        vocab_size, width = word_table.shape
        # A text has some 15 masked tokens of 100: the other rows of the decoder's product, by far
        # the largest of the model, would be thrown away.
        x = jnp.take_along_axis(tokens, positions[:, :, None], axis=1)
        axes = (Axis.EMBED, Axis.OUTPUT)
        x = dense(width, axes, dtype=self.dtype, std=self.std, name="dense")(x)
        x = ACTIVATIONS[self.activation](x)
        x = LayerNorm(self.layer_norm_eps, self.dtype, name="layer_norm")(x)
        logits = jnp.einsum(
            "bmd,vd->bmv",
            constrain(x, TOKENS),
            word_table.astype(self.dtype),
            preferred_element_type=jnp.float32,
        )
        bias = self.param("bias", zeros_init((Axis.VOCAB,)), (vocab_size,))
        return constrain(logits + bias[None, None], (Axis.BATCH, Axis.ACT_TOKENS, Axis.VOCAB))
