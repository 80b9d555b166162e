"""What stands on the tokens: pooling to one embedding, and the masked-language-model head."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from unipt_jax.core.sharding import Axis, constrain
from unipt_jax.models.layers import ACTIVATIONS, TOKENS, Activation, LayerNorm, dense, zeros_init


def unit_rows(embedding: Float[Array, "N E"]) -> Float[Array, "N E"]:
    """Scales embeddings to length 1, so that their products are cosines; zeros stay zeros."""
    norm = jnp.linalg.norm(embedding, axis=-1, keepdims=True)
    return embedding / jnp.maximum(norm, 1e-12)


class EmbeddingHead(nn.Module):
    """A linear map on every token (the paper's 1x1 convolution), then the maximum over tokens.

    Attributes:
        embedding_dim: width of the embedding.
        dtype: compute dtype of the map.
    """

    embedding_dim: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "B L D"], mask: Bool[Array, "B L"] | None
    ) -> Float[Array, "B E"]:
        """Returns float32 embeddings, not normalised.

        Args:
            tokens: an encoder's output.
            mask: the tokens that take part; None lets all do. A row without any gives zeros.
        """
        projection = dense(
            self.embedding_dim, (Axis.EMBED, Axis.OUTPUT), dtype=self.dtype, name="projection"
        )
        x = constrain(projection(tokens), TOKENS).astype(jnp.float32)
        if mask is None:
            return x.max(axis=1)
        x = jnp.where(mask[:, :, None], x, jnp.finfo(jnp.float32).min).max(axis=1)
        return jnp.where(mask.any(axis=1)[:, None], x, 0.0)


class ClassHead(nn.Module):
    """One token, which stands for all, through a linear map without bias (CLIP).

    Attributes:
        embedding_dim: width of the embedding.
        dtype: compute dtype of the map.
    """

    embedding_dim: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "B L D"], position: Int[Array, "B"]
    ) -> Float[Array, "B E"]:
        """Returns float32 embeddings, not normalised.

        Args:
            tokens: an encoder's output.
            position: each row's token, in [0, L); beyond gives NaN.
        """
        token = jnp.take_along_axis(
            tokens, position[:, None, None], axis=1, mode="fill", fill_value=jnp.nan
        )
        projection = dense(
            self.embedding_dim,
            (Axis.EMBED, Axis.OUTPUT),
            use_bias=False,
            dtype=self.dtype,
            name="projection",
        )
        return projection(token)[:, 0].astype(jnp.float32)


class MlmHead(nn.Module):
    """BERT's masked-language-model head: a transform, and a decoder tied to the token embeddings.

    Attributes:
        layer_norm_eps: LayerNorm's epsilon.
        activation: the transform's activation; BERT takes its MLP's.
        dtype: compute dtype.
    """

    layer_norm_eps: float
    activation: Activation
    dtype: DTypeLike = jnp.float32

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
        x = dense(width, (Axis.EMBED, Axis.OUTPUT), dtype=self.dtype, name="dense")(x)
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
