"""UniPT's model: an image and a text encoder that meet in one embedding space."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, UInt8

from unipt_jax.models.bert import Bert, TextSpec
from unipt_jax.models.checks import require_fields
from unipt_jax.models.clip import ClipText, ClipTextSpec
from unipt_jax.models.heads import ClassHead, EmbeddingHead, MlmHead
from unipt_jax.models.vit import VisionSpec, VisionTransformer


@dataclasses.dataclass(frozen=True)
class DualEncoderSpec:
    """Shape of a dual encoder.

    Attributes:
        image: the image encoder's shape.
        text: the text encoder's shape, whose type says which encoder it is.
        embedding_dim: width of the common space.
        pooling: "max" maps every token and takes the maximum (UniPT), "class" maps one token: the
            image's class token and the text's [CLS] (BERT) or first end-of-text token (CLIP).
        pool_padding: whether padding takes part in the text's maximum, as in the released code; the
            embedding then depends on the padded length. "class" ignores it.
        mlm: whether there is a head for masked language modelling.
        temperature: "none" leaves cosine similarities as they are (paper, Eq. 1), "fixed"
            multiplies them by `logit_scale`, "learned" by a parameter that starts there.
        logit_scale: the inverse temperature, positive (CLIP starts at 1 / 0.07); "none" ignores it.

    Raises:
        ConfigError: a value is not what its field is declared to be.
    """

    image: VisionSpec
    text: TextSpec | ClipTextSpec
    embedding_dim: int
    pooling: Literal["max", "class"]
    pool_padding: bool
    mlm: bool
    temperature: Literal["none", "fixed", "learned"]
    logit_scale: float

    def __post_init__(self):
        require_fields(self)


class DualEncoder(nn.Module):
    """Embeds images and texts in one space.

    Attributes:
        spec: the shape.
        dtype: compute dtype; embeddings and logits are float32 whatever it is.
    """

    spec: DualEncoderSpec
    dtype: DTypeLike = jnp.float32

    def setup(self):
        """Makes the children."""
        spec = self.spec
        self.image_encoder = VisionTransformer(spec.image, self.dtype)
        text_encoder = ClipText if isinstance(spec.text, ClipTextSpec) else Bert
        self.text_encoder = text_encoder(spec.text, self.dtype)
        head = EmbeddingHead if spec.pooling == "max" else ClassHead
        self.image_head = head(spec.embedding_dim, self.dtype)
        self.text_head = head(spec.embedding_dim, self.dtype)
        if spec.mlm:
            self.mlm_head = MlmHead(spec.text.layer_norm_eps, spec.text.activation, self.dtype)
        if spec.temperature == "learned":
            start = nn.initializers.constant(math.log(spec.logit_scale))
            self.log_logit_scale = self.param(
                "logit_scale", nn.with_logical_partitioning(start, ()), ()
            )

    def encode_image(
        self, images: UInt8[Array, "B H W 3"], *, train: bool = False
    ) -> Float[Array, "B D"]:
        """Returns the embeddings of RGB images, values 0 to 255, in float32 and not normalised.

        With "max" pooling the class token takes part in the maximum, as in the released code.

        Raises:
            ValueError: the images are not uint8, or not of `spec.image.image_size`.
        """
        if images.dtype != jnp.uint8:
            raise ValueError(f"images are {images.dtype}; uint8 pixels (0 to 255) expected")
        mean = jnp.asarray(self.spec.image.mean, jnp.float32)[None, None, None]
        std = jnp.asarray(self.spec.image.std, jnp.float32)[None, None, None]
        pixels = (images.astype(jnp.float32) / 255.0 - mean) / std
        if self.spec.pooling == "max":
            return self.image_head(self.image_encoder(pixels, train=train), None)
        class_token = self.image_encoder(pixels, train=train, first=1)
        return self.image_head(class_token, jnp.zeros(len(images), jnp.int32))

    def encode_text(
        self, text: Int[Array, "B L"], text_mask: Bool[Array, "B L"], *, train: bool = False
    ) -> Float[Array, "B D"]:
        """Returns the embeddings of texts, in float32 and not normalised.

        Args:
            text: token ids; with CLIP, a text without an end-of-text token gives NaN.
            text_mask: True at tokens, False at padding.
            train: whether dropout is on (random stream "dropout").

        Raises:
            ConfigError: the text is longer than `spec.text.max_positions`.
        """
        return self._pool_text(self.text_encoder(text, text_mask, train=train), text, text_mask)

    def __call__(self, batch: Mapping[str, Array], *, train: bool) -> dict[str, Array]:
        """Computes all that pre-training needs.

        Args:
            batch: `image` uint8[B,H,W,3]; `text` int32[B,L] with `text_mask` bool[B,L]; for the
                MLM head `masked_text` int32[B,L], the copy with masked tokens, and `mlm_positions`
                int32[B,M], where those are. Other entries are ignored.
            train: whether dropout is on (random stream "dropout").

        Returns:
            `image_embedding` and `text_embedding` f32[B,D], not normalised; `logit_scale` f32[], by
            which cosine similarities are multiplied; with an MLM head `mlm_logits` f32[B,M,V].
        """
        outputs = {
            "image_embedding": self.encode_image(batch["image"], train=train),
            "logit_scale": self.inverse_temperature(),
        }
        text, text_mask = batch["text"], batch["text_mask"]
        if not self.spec.mlm:
            return {**outputs, "text_embedding": self.encode_text(text, text_mask, train=train)}
        size, length = text.shape
        # One encoder call for the clean and the masked text. The two copies of a row are
        # neighbours, so that a batch split over devices stays where it is.
        both = jnp.stack([text, batch["masked_text"]], axis=1).reshape(2 * size, length)
        tokens = self.text_encoder(both, jnp.repeat(text_mask, 2, axis=0), train=train)
        tokens = tokens.reshape(size, 2, length, -1)
        return {
            **outputs,
            "text_embedding": self._pool_text(tokens[:, 0], text, text_mask),
            "mlm_logits": self.mlm_head(
                tokens[:, 1], batch["mlm_positions"], self.text_encoder.word_table()
            ),
        }

    def inverse_temperature(self) -> Float[Array, ""]:
        """Returns the logit scale, by which cosine similarities are multiplied, in float32."""
        if self.spec.temperature == "learned":
            return jnp.exp(self.log_logit_scale)
        scale = self.spec.logit_scale if self.spec.temperature == "fixed" else 1.0
        return jnp.asarray(scale, jnp.float32)

    def _pool_text(self, tokens: Array, text: Array, text_mask: Array) -> Array:
        if self.spec.pooling == "max":
            return self.text_head(tokens, None if self.spec.pool_padding else text_mask)
        return self.text_head(tokens, self.text_encoder.class_position(text))
