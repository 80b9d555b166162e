"""BERT (Devlin et al., 2019) as a token encoder, without the pooler."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from unipt_jax.core.errors import ConfigError
from unipt_jax.core.sharding import Axis, constrain
from unipt_jax.models.checks import require_fields
from unipt_jax.models.compute import Compute
from unipt_jax.models.layers import (
    TOKENS,
    Activation,
    LayerNorm,
    block_of,
    embed_words,
    head_size,
    normal_init,
    require_positions,
    run_blocks,
)


@dataclasses.dataclass(frozen=True)
class TextSpec:
    """Shape of a BERT encoder.

    Attributes:
        vocab_size: number of token ids.
        hidden_size: width of a token; a multiple of `heads`.
        layers: number of transformer blocks.
        heads: attention heads of a block.
        mlp_size: width within a block's MLP.
        max_positions: length of the longest text in tokens.
        type_vocab_size: rows of the segment table, of which only the first is used here.
        layer_norm_eps: LayerNorm's epsilon (BERT: 1e-12).
        activation: the MLP's activation.
        dropout: probability of dropping embeddings, attention probabilities and branch outputs in
            training, in [0, 1) (BERT: 0.1).

    Raises:
        ConfigError: a value is not what its field is declared to be, `hidden_size` is not a
            multiple of `heads`, or `dropout` is out of range.
    """

    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    mlp_size: int
    max_positions: int
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    activation: Activation = "gelu"
    dropout: float = 0.1

    def __post_init__(self):
        require_fields(self, zero=("layers", "layer_norm_eps", "dropout"))
        head_size(self.hidden_size, self.heads)
        if self.dropout >= 1:
            raise ConfigError(f"dropout={self.dropout} is not in [0, 1)")


class Bert(nn.Module):
    """Encodes texts to tokens.

    Attributes:
        spec: the shape.
        dtype: compute dtype.
        compute: how the blocks are computed.
    """

    spec: TextSpec
    dtype: DTypeLike = jnp.float32
    compute: Compute = Compute()

    def setup(self):
        """Makes the children."""
        spec = self.spec
        self.word_embeddings = self.param(
            "word_embeddings",
            normal_init((Axis.VOCAB, Axis.EMBED)),
            (spec.vocab_size, spec.hidden_size),
        )
        self.position_embeddings = self.param(
            "position_embeddings",
            normal_init((Axis.POSITION, Axis.EMBED)),
            (spec.max_positions, spec.hidden_size),
        )
        self.token_type_embeddings = self.param(
            "token_type_embeddings",
            normal_init((None, Axis.EMBED)),
            (spec.type_vocab_size, spec.hidden_size),
        )
        self.layer_norm = LayerNorm(spec.layer_norm_eps, self.dtype)
        self.embedding_dropout = nn.Dropout(spec.dropout)
        self.layers = [
            block_of(
                spec,
                norm="post",
                dropout=spec.dropout,
                dtype=self.dtype,
                compute=self.compute,
            )
            for _ in range(spec.layers)
        ]

    def __call__(
        self, text: Int[Array, "B L"], text_mask: Bool[Array, "B L"], *, train: bool
    ) -> Float[Array, "B L D"]:
        """Returns the last block's tokens.

        Args:
            text: token ids in [0, vocab_size); an id beyond gives NaN.
            text_mask: True at tokens, False at padding, which no token sees.
            train: whether dropout is on (random stream "dropout").

        Raises:
            ConfigError: the text is longer than `spec.max_positions`.
        """
        length = text.shape[1]
        require_positions(length, self.spec.max_positions)
        words = embed_words(self.word_embeddings, text)
        places = self.position_embeddings[:length] + self.token_type_embeddings[:1]
        x = self.layer_norm(words + places[None])
        x = constrain(self.embedding_dropout(x, deterministic=not train), TOKENS)
        x, _ = run_blocks(self.layers, x, text_mask, train=train)
        return x

    def class_position(self, text: Int[Array, "B L"]) -> Int[Array, "B"]:
        """Returns where each text's [CLS] token is: first."""
        return jnp.zeros(len(text), jnp.int32)

    def word_table(self) -> Float[Array, "V D"]:
        """Returns the token embeddings in float32, to which the MLM decoder is tied."""
        return self.word_embeddings
