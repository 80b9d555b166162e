"""Masked words guessed with the image's help: implicit relation reasoning.

IRR of IRRA: Jiang and Ye, "Cross-Modal Implicit Relation Reasoning and Aligning for Text-to-Image
Person Retrieval" (CVPR 2023), section 3.2.
"""

import dataclasses
import functools

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from unipt_jax.core.sharding import Axis
from unipt_jax.models.checks import require_fields
from unipt_jax.models.compute import Compute
from unipt_jax.models.heads import MlmHead
from unipt_jax.models.layers import (
    Attention,
    InitStd,
    LayerNorm,
    TransformerBlock,
    normal_init,
    run_blocks,
)

_LAYER_NORM_EPS = 1e-5  # CLIP's


@dataclasses.dataclass(frozen=True)
class CrossModalSpec:
    """Shape of the cross-modal encoder; the defaults are those of the published code.

    Attributes:
        layers: number of transformer blocks after the cross-attention.
        heads: number of attention heads; divides the width of the tokens (IRRA: width / 64).

    Raises:
        ConfigError: a value is not a positive integer.
    """

    layers: int = 4
    heads: int = 8

    def __post_init__(self):
        require_fields(self)


class CrossModal(nn.Module):
    """Lets a masked text's tokens read the image's, and guesses the masked words.

    Attributes:
        spec: the shape.
        vocab_size: number of token ids.
        dtype: compute dtype; logits are float32 whatever it is.
        compute: how attention and blocks are computed.
    """

    spec: CrossModalSpec
    vocab_size: int
    dtype: DTypeLike = jnp.float32
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self,
        text_tokens: Float[Array, "B L E"],
        text_mask: Bool[Array, "B L"],
        image_tokens: Float[Array, "B N E"],
        positions: Int[Array, "B M"],
    ) -> Float[Array, "B M V"]:
        """Returns float32 logits over the vocabulary at the given positions alone.

        In the blocks no token sees padding, so that the logits do not depend on the padded length;
        the published code pads every text to 77 tokens and lets all of them be seen.

        Args:
            text_tokens: the masked text's, projected to the common space, not normalised.
            text_mask: True at tokens, False at padding.
            image_tokens: all of the image's, class token included, projected to the common space.
            positions: places in [0, L); where fewer than M tokens are masked, any place fills up.

        Raises:
            ConfigError: `spec.heads` does not divide the width of the tokens.
        """
        spec, width = self.spec, text_tokens.shape[2]
        # IRRA's, which are CLIP's own: the sum of the branches does not grow with the depth.
        std = InitStd(width**-0.5, (2 * width) ** -0.5, (2 * spec.layers * width) ** -0.5)
        norm = functools.partial(LayerNorm, _LAYER_NORM_EPS, self.dtype)
        cross_attention = Attention(
            spec.heads, dtype=self.dtype, std=std, compute=self.compute, name="cross_attn"
        )
        x = cross_attention(
            norm(name="text_layer_norm")(text_tokens),
            None,
            train=False,
            context=norm(name="image_layer_norm")(image_tokens),
        )
        blocks = [
            TransformerBlock(
                heads=spec.heads,
                mlp_size=4 * width,
                layer_norm_eps=_LAYER_NORM_EPS,
                activation="quick_gelu",
                norm="pre",
                dtype=self.dtype,
                std=std,
                compute=self.compute,
                name=f"layers_{index}",
            )
            for index in range(spec.layers)
        ]
        x, _ = run_blocks(blocks, x, text_mask, train=False)  # Nothing is dropped in training.
        decoder = self.param(
            "decoder", normal_init((Axis.VOCAB, Axis.EMBED), std.output), (self.vocab_size, width)
        )
        head = MlmHead(_LAYER_NORM_EPS, "quick_gelu", self.dtype, std.mlp, name="mlm_head")
        return head(norm(name="layer_norm")(x), positions, decoder)
