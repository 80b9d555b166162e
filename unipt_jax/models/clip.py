"""CLIP's text encoder (Radford et al., 2021), and what sets its image encoder apart from a ViT.

CLIP as a whole is a `DualEncoder` of `vision_spec` and `ClipTextSpec` with class pooling.
"""

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
from unipt_jax.models.vit import VisionSpec

# Of OpenAI's training pixels in [0, 1], red first (CLIP's code, clip/clip.py).
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def vision_spec(
    *,
    image_size: tuple[int, int],
    patch_size: int,
    hidden_size: int,
    layers: int,
    heads: int,
    mlp_size: int,
    layer_norm_eps: float = 1e-5,
    activation: Activation = "quick_gelu",
    mean: tuple[float, float, float] = MEAN,
    std: tuple[float, float, float] = STD,
) -> VisionSpec:
    """Returns the shape of a CLIP image encoder: a ViT normalised at its start, without patch bias.

    Raises:
        ConfigError: as `VisionSpec`.
    """
    return VisionSpec(
        image_size=image_size,
        patch_size=patch_size,
        hidden_size=hidden_size,
        layers=layers,
        heads=heads,
        mlp_size=mlp_size,
        layer_norm_eps=layer_norm_eps,
        activation=activation,
        pre_layer_norm=True,
        patch_bias=False,
        mean=mean,
        std=std,
    )


@dataclasses.dataclass(frozen=True)
class ClipTextSpec:
    """Shape of a CLIP text encoder.

    Attributes:
        vocab_size: number of token ids.
        hidden_size: width of a token; a multiple of `heads`.
        layers: number of transformer blocks.
        heads: attention heads of a block.
        mlp_size: width within a block's MLP.
        max_positions: length of the longest text in tokens (CLIP: 77).
        end_token: id of the end-of-text token, the first of which stands for the text.
        layer_norm_eps: LayerNorm's epsilon.
        activation: the MLP's activation; OpenAI's weights need "quick_gelu".

    Raises:
        ConfigError: a value is not what its field is declared to be, `hidden_size` is not a
            multiple of `heads`, or `end_token` is no token id.
    """

    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    mlp_size: int
    max_positions: int
    end_token: int
    layer_norm_eps: float = 1e-5
    activation: Activation = "quick_gelu"

    def __post_init__(self):
        require_fields(self, zero=("layers", "layer_norm_eps", "end_token"))
        head_size(self.hidden_size, self.heads)
        if self.end_token >= self.vocab_size:
            raise ConfigError(
                f"end_token={self.end_token} is not an id below vocab_size={self.vocab_size}"
            )


class ClipText(nn.Module):
    """Encodes texts to tokens, each of which sees itself and those before it.

    Attributes:
        spec: the shape.
        dtype: compute dtype.
        compute: how the blocks are computed.
    """

    spec: ClipTextSpec
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
        self.layers = [
            block_of(spec, norm="pre", causal=True, dtype=self.dtype, compute=self.compute)
            for _ in range(spec.layers)
        ]
        self.layer_norm = LayerNorm(spec.layer_norm_eps, self.dtype)

    def __call__(
        self,
        text: Int[Array, "B L"],
        text_mask: Bool[Array, "B L"],
        *,
        train: bool,
        attention: bool = False,
    ) -> Float[Array, "B L D"] | tuple[Float[Array, "B L D"], Float[Array, "B L"]]:
        """Returns the tokens after the final LayerNorm.

        Args:
            text: token ids in [0, vocab_size); an id beyond gives NaN.
            text_mask: True at tokens, False at padding, which no token sees.
            train: whether dropout is on; CLIP has none.
            attention: whether the end-of-text token's attention is wanted too, a second result: its
                weights in the last block, averaged over heads; NaN for a text without one.

        Raises:
            ConfigError: the text is longer than `spec.max_positions`.
        """
        require_positions(text.shape[1], self.spec.max_positions)
        x = embed_words(self.word_embeddings, text)
        x = x + self.position_embeddings[: text.shape[1]][None]
        x = constrain(x.astype(self.dtype), TOKENS)
        reader = self.class_position(text) if attention else None
        x, row = run_blocks(self.layers, x, text_mask, train=train, reader=reader)
        x = self.layer_norm(x)
        return (x, row) if attention else x

    def class_position(self, text: Int[Array, "B L"]) -> Int[Array, "B"]:
        """Returns where each text's first end-of-text token is, or L, beyond the text, without one.

        Padding may have the same id (OpenAI's has): the first one is the real one.
        """
        is_end = text == self.spec.end_token
        return jnp.where(is_end.any(axis=1), is_end.argmax(axis=1), text.shape[1])

    def word_table(self) -> Float[Array, "V D"]:
        """Returns the token embeddings in float32, to which an MLM decoder is tied."""
        return self.word_embeddings
