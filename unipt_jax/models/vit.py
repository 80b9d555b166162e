"""The Vision Transformer (Dosovitskiy et al., 2021) as a token encoder; DeiT and CLIP's are too."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from unipt_jax.core.errors import ConfigError
from unipt_jax.core.sharding import Axis, constrain
from unipt_jax.models.checks import require_fields
from unipt_jax.models.compute import Compute
from unipt_jax.models.layers import (
    TOKENS,
    Activation,
    LayerNorm,
    block_of,
    head_size,
    normal_init,
    run_blocks,
    zeros_init,
)


@dataclasses.dataclass(frozen=True)
class VisionSpec:
    """Shape of a Vision Transformer.

    Attributes:
        image_size: (height, width) in pixels, multiples of `patch_size`.
        patch_size: side of a square patch in pixels.
        hidden_size: width of a token; a multiple of `heads`.
        layers: number of transformer blocks.
        heads: attention heads of a block.
        mlp_size: width within a block's MLP.
        layer_norm_eps: LayerNorm's epsilon (timm's ViT: 1e-6, CLIP: 1e-5).
        activation: the MLP's activation.
        distillation_token: whether a second token without a patch follows the class token (DeiT).
        pre_layer_norm: whether the tokens are normalised before the first block (CLIP).
        patch_bias: whether the map from patches to tokens has a bias (CLIP's has none).
        mean: mean of each channel, red first, of pixels in [0, 1]; the released UniPT uses 0.5.
        std: the same of the standard deviation.

    Raises:
        ConfigError: a value is not what its field is declared to be, a side is not a multiple of
            `patch_size`, or `hidden_size` not of `heads`.
    """

    image_size: tuple[int, int]
    patch_size: int
    hidden_size: int
    layers: int
    heads: int
    mlp_size: int
    layer_norm_eps: float = 1e-6
    activation: Activation = "gelu"
    distillation_token: bool = False
    pre_layer_norm: bool = False
    patch_bias: bool = True
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self):
        require_fields(self, zero=("layers", "layer_norm_eps", "mean"))
        height, width = self.image_size
        if height % self.patch_size or width % self.patch_size:
            raise ConfigError(
                f"image_size={height}x{width} (height x width) is not a multiple of "
                f"patch_size={self.patch_size}"
            )
        head_size(self.hidden_size, self.heads)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches."""
        height, width = self.image_size
        return height // self.patch_size, width // self.patch_size

    @property
    def prefix(self) -> int:
        """Number of tokens before the patches'."""
        return 1 + self.distillation_token


class PatchEmbedding(nn.Module):
    """Cuts images into square patches and maps each to a token: a convolution of stride P.

    Attributes:
        patch_size: P, the side of a patch in pixels.
        hidden_size: width of a token.
        use_bias: whether a bias is added.
        dtype: compute dtype.
    """

    patch_size: int
    hidden_size: int
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B N D"]:
        """Returns the tokens of the patches, row by row from the top left."""
        side = self.patch_size
        batch, height, width, channels = images.shape
        kernel = self.param(
            "kernel",
            normal_init((Axis.PATCH, Axis.PATCH, None, Axis.EMBED)),
            (side, side, channels, self.hidden_size),
        )
        # A reshape and one matrix product: faster than a convolution, and the same sums.
        x = images.astype(self.dtype)
        x = x.reshape(batch, height // side, side, width // side, side, channels)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, side * side * channels)
        x = x @ kernel.reshape(-1, self.hidden_size).astype(self.dtype)
        if self.use_bias:
            bias = self.param("bias", zeros_init((Axis.EMBED,)), (self.hidden_size,))
            x = x + bias[None, None].astype(self.dtype)
        return constrain(x, TOKENS)


class VisionTransformer(nn.Module):
    """Encodes images to tokens.

    Attributes:
        spec: the shape.
        dtype: compute dtype.
        compute: how the blocks are computed.
    """

    spec: VisionSpec
    dtype: DTypeLike = jnp.float32
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "B H W 3"],
        *,
        train: bool,
        first: int | None = None,
        attention: bool = False,
    ) -> Float[Array, "B N D"] | tuple[Float[Array, "B N D"], Float[Array, "B L"]]:
        """Returns the tokens after the final LayerNorm.

        The class token is first, then the distillation token if there is one, then the patches by
        rows.

        Args:
            images: normalised pixels, `(pixel / 255 - spec.mean) / spec.std`, RGB.
            train: whether dropout is on; a Vision Transformer has none.
            first: how many tokens are wanted, N; None for all. With one, a twelfth of the work of
                12 layers is saved: the last block does nothing for the others.
            attention: whether the class token's attention is wanted too, a second result: its
                weights in the last block over all L tokens, averaged over heads.

        Raises:
            ValueError: the images are not of `spec.image_size`. 128x384 has as many patches as
                384x128, so nothing else would notice swapped sides.
        """
        spec = self.spec
        if images.shape[1:3] != spec.image_size:
            have, want = images.shape[1:3], spec.image_size
            raise ValueError(
                f"images are {have[0]}x{have[1]} (height x width), "
                f"but the model takes {want[0]}x{want[1]}"
            )
        patches = PatchEmbedding(
            spec.patch_size, spec.hidden_size, spec.patch_bias, self.dtype, name="patch_embedding"
        )(images)
        names = ["class_token", "distillation_token"][: spec.prefix]
        prefix = jnp.stack(
            [self.param(name, normal_init((Axis.EMBED,)), (spec.hidden_size,)) for name in names]
        )
        rows, columns = spec.grid
        positions = self.param(
            "position_embedding",
            normal_init((Axis.POSITION, Axis.EMBED)),
            (spec.prefix + rows * columns, spec.hidden_size),
        )
        prefix = jnp.broadcast_to(
            prefix[None].astype(self.dtype), (images.shape[0], spec.prefix, spec.hidden_size)
        )
        x = jnp.concatenate([prefix, patches], axis=1) + positions[None].astype(self.dtype)
        if spec.pre_layer_norm:
            x = LayerNorm(spec.layer_norm_eps, self.dtype, name="pre_layer_norm")(x)
        x = constrain(x, TOKENS)
        blocks = [
            block_of(
                spec, norm="pre", dtype=self.dtype, compute=self.compute, name=f"layers_{index}"
            )
            for index in range(spec.layers)
        ]
        reader = jnp.zeros(len(x), jnp.int32) if attention else None
        x, row = run_blocks(blocks, x, None, train=train, first=first, reader=reader)
        x = LayerNorm(spec.layer_norm_eps, self.dtype, name="layer_norm")(x[:, :first])
        return (x, row) if attention else x
