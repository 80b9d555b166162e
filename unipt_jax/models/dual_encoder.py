"""UniPT's model: an image and a text encoder that meet in one embedding space."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, UInt8

from unipt_jax.core.errors import ConfigError
from unipt_jax.models.bert import Bert, TextSpec
from unipt_jax.models.checks import require_fields
from unipt_jax.models.clip import ClipText, ClipTextSpec
from unipt_jax.models.compute import Compute
from unipt_jax.models.cross_modal import CrossModal, CrossModalSpec
from unipt_jax.models.heads import ClassHead, EmbeddingHead, IdentityHead, MlmHead
from unipt_jax.models.pgu import Pgu, PguSpec
from unipt_jax.models.token_selection import TokenSelection, TokenSelectionSpec, words_before
from unipt_jax.models.vit import VisionSpec, VisionTransformer

Features = dict[str, Array]  # f32 [B, F], of a width F of its own each


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
        cross_modal: what lets that head see the image too (IRRA); None: the text alone (UniPT).
        temperature: "none" leaves cosine similarities as they are (paper, Eq. 1), "fixed"
            multiplies them by `logit_scale`, "learned" by a parameter that starts there.
        logit_scale: the inverse temperature, positive (CLIP starts at 1 / 0.07); "none" ignores it.
        logit_bias: whether a learned number is added to the similarities (SigLIP).
        pgu: granularity-unified features beside the global ones (UniPT); None: none.
        selection: features of the tokens attended most (RDE); None: none. It needs CLIP's texts.
        identities: number of training identities, told apart by a classifier for the global
            embedding and one for each granularity-unified part; 0: none.

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
    logit_bias: bool = False
    cross_modal: CrossModalSpec | None = None
    pgu: PguSpec | None = None
    selection: TokenSelectionSpec | None = None
    identities: int = 0

    def __post_init__(self):
        require_fields(self, zero=("identities",))
        if self.selection and not isinstance(self.text, ClipTextSpec):
            raise ConfigError("selection reads the attention of CLIP's text encoder; BERT has none")
        if self.cross_modal and not self.mlm:
            raise ConfigError("cross_modal is of the masked language model; set mlm too")

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features by which images compare with texts."""
        return (
            "global",
            *(["pgu"] if self.pgu else []),
            *(["selection"] if self.selection else []),
        )


class DualEncoder(nn.Module):
    """Embeds images and texts in one space.

    Attributes:
        spec: the shape.
        dtype: compute dtype; embeddings and logits are float32 whatever it is.
        compute: how the encoders' blocks and the cross-modal ones are computed.
    """

    spec: DualEncoderSpec
    dtype: DTypeLike = jnp.float32
    compute: Compute = Compute()

    def setup(self):
        """Makes the children."""
        spec = self.spec
        self.image_encoder = VisionTransformer(spec.image, self.dtype, self.compute)
        text_encoder = ClipText if isinstance(spec.text, ClipTextSpec) else Bert
        self.text_encoder = text_encoder(spec.text, self.dtype, self.compute)
        head = EmbeddingHead if spec.pooling == "max" else ClassHead
        self.image_head = head(spec.embedding_dim, self.dtype)
        self.text_head = head(spec.embedding_dim, self.dtype)
        if spec.cross_modal:
            self.cross_modal = CrossModal(
                spec.cross_modal, spec.text.vocab_size, self.dtype, self.compute
            )
        elif spec.mlm:
            self.mlm_head = MlmHead(spec.text.layer_norm_eps, spec.text.activation, self.dtype)
        if spec.pgu:
            self.pgu = Pgu(spec.pgu, self.dtype)
        if spec.selection:
            patches, words = math.prod(spec.image.grid), spec.text.max_positions - 2
            self.image_selection = TokenSelection(spec.selection, patches, self.dtype)
            self.text_selection = TokenSelection(spec.selection, words, self.dtype)
        if spec.identities:
            self.identity_head = IdentityHead(spec.identities, self.dtype)
            if spec.pgu:
                self.pgu_identity_head = IdentityHead(spec.identities, self.dtype)
        if spec.temperature == "learned":
            start = nn.initializers.constant(math.log(spec.logit_scale))
            self.log_logit_scale = self.param(
                "logit_scale", nn.with_logical_partitioning(start, ()), ()
            )
        if spec.logit_bias:
            start = nn.initializers.constant(-10.0)  # SigLIP's
            self.bias = self.param("logit_bias", nn.with_logical_partitioning(start, ()), ())

    def encode_image(
        self, images: UInt8[Array, "B H W 3"], *, train: bool = False
    ) -> Float[Array, "B D"]:
        """Returns the embeddings of RGB images, values 0 to 255, in float32 and not normalised.

        With "max" pooling the class token takes part in the maximum, as in the released code.

        Raises:
            ValueError: the images are not uint8, or not of `spec.image.image_size`.
        """
        pixels = self._normalise(images)
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
        tokens = self.text_encoder(text, text_mask, train=train)
        return self.text_head(tokens, self._text_pooling(text, text_mask))

    def image_features(self, images: UInt8[Array, "B H W 3"]) -> dict[str, Float[Array, "B F"]]:
        """Returns every feature by which images compare with texts, by name (`spec.features`).

        "global" is `encode_image`; all are float32 and not normalised.
        """
        return self._image(images, train=False)[0]

    def text_features(
        self, text: Int[Array, "B L"], text_mask: Bool[Array, "B L"]
    ) -> dict[str, Float[Array, "B F"]]:
        """Returns the features of the same names for texts; "global" is `encode_text`."""
        return self._text(*self._text_tokens(text, text_mask, train=False), text, text_mask)

    def __call__(
        self, batch: Mapping[str, Array], *, train: bool, reads_masked: bool = False
    ) -> dict[str, Any]:
        """Computes all that training needs.

        Args:
            batch: `image` uint8[B,H,W,3]; `text` int32[B,L] with `text_mask` bool[B,L]; for the
                masked language model `masked_text` int32[B,L], the copy with masked tokens, and
                `mlm_positions` int32[B,M], where those are. Other entries are ignored.
            train: whether dropout is on (random stream "dropout").
            reads_masked: whether the texts' features are those of the masked copies, as in IRRA's
                released code; every text is then encoded once.

        Returns:
            `image` and `text`: the features of both by name, f32[B,F], not normalised;
            `image_identity` and `text_identity`: by the same names, as far as they are classified,
            logits f32[B,Q,identities] of the feature's Q parts; `logit_scale` and `logit_bias`
            f32[], by which cosine similarities are multiplied and to which is added; with a masked
            language model `mlm_logits` f32[B,M,V].
        """
        image, image_tokens = self._image(batch["image"], train)
        mask = batch["text_mask"]
        if reads_masked or not self.spec.mlm:
            text = batch["masked_text" if reads_masked else "text"]
            clean = masked = self._text_tokens(text, mask, train)
        else:
            text = batch["text"]
            size, length = text.shape
            # One encoder call for the clean and the masked text. The two copies of a row are
            # neighbours, so that a batch split over devices stays where it is.
            both = jnp.stack([text, batch["masked_text"]], axis=1).reshape(2 * size, length)
            found = self._text_tokens(both, jnp.repeat(mask, 2, axis=0), train)
            clean, masked = (
                tuple(None if part is None else part[copy::2] for part in found) for copy in (0, 1)
            )
        features = self._text(*clean, text, mask)
        outputs = {
            "image": image,
            "text": features,
            "image_identity": self._identify(image),
            "text_identity": self._identify(features),
            "logit_scale": self.inverse_temperature(),
            "logit_bias": self.bias if self.spec.logit_bias else jnp.zeros(()),
        }
        positions = batch["mlm_positions"] if self.spec.mlm else None
        if self.spec.cross_modal:
            read = self.text_head.project(masked[0])
            outputs["mlm_logits"] = self.cross_modal(read, mask, image_tokens, positions)
        elif self.spec.mlm:
            table = self.text_encoder.word_table()
            outputs["mlm_logits"] = self.mlm_head(masked[0], positions, table)
        return outputs

    def inverse_temperature(self) -> Float[Array, ""]:
        """Returns the logit scale, by which cosine similarities are multiplied, in float32."""
        if self.spec.temperature == "learned":
            return jnp.exp(self.log_logit_scale)
        scale = self.spec.logit_scale if self.spec.temperature == "fixed" else 1.0
        return jnp.asarray(scale, jnp.float32)

    def _normalise(self, images: Array) -> Array:
        if images.dtype != jnp.uint8:
            raise ValueError(f"images are {images.dtype}; uint8 pixels (0 to 255) expected")
        mean = jnp.asarray(self.spec.image.mean, jnp.float32)[None, None, None]
        std = jnp.asarray(self.spec.image.std, jnp.float32)[None, None, None]
        return (images.astype(jnp.float32) / 255.0 - mean) / std

    def _image(self, images: Array, train: bool) -> tuple[Features, Array | None]:
        """Returns an image's features and, where one of them needs them, its projected tokens."""
        spec = self.spec
        if not (spec.pgu or spec.selection or spec.cross_modal):
            return {"global": self.encode_image(images, train=train)}, None
        pixels, attention = self._normalise(images), None
        if spec.selection:
            tokens, attention = self.image_encoder(pixels, train=train, attention=True)
        else:
            tokens = self.image_encoder(pixels, train=train)
        projected = self.image_head.project(tokens)
        pooling = None if spec.pooling == "max" else jnp.zeros(len(images), jnp.int32)
        features = {"global": self.image_head.pool(projected, pooling)}
        if spec.pgu:
            features["pgu"] = self._flat(self.pgu(projected, None, is_image=True))
        if spec.selection:
            patches = jnp.arange(projected.shape[1])[None] >= spec.image.prefix
            features["selection"] = self.image_selection(projected, attention, patches)
        return features, projected

    def _text_tokens(self, text: Array, mask: Array, train: bool) -> tuple[Array, Array | None]:
        """Returns a text's tokens and, where they are selected by it, the attention to them."""
        if self.spec.selection:
            return self.text_encoder(text, mask, train=train, attention=True)
        return self.text_encoder(text, mask, train=train), None

    def _text(self, tokens: Array, attention: Array | None, text: Array, mask: Array) -> Features:
        """Returns a text's features from what `_text_tokens` gave."""
        spec = self.spec
        pooling = self._text_pooling(text, mask)
        if not (spec.pgu or spec.selection):
            return {"global": self.text_head(tokens, pooling)}
        projected = self.text_head.project(tokens)
        features = {"global": self.text_head.pool(projected, pooling)}
        if spec.pgu:
            features["pgu"] = self._flat(self.pgu(projected, mask, is_image=False))
        if spec.selection:
            words = words_before(self.text_encoder.class_position(text), mask)
            features["selection"] = self.text_selection(projected, attention, words)
        return features

    def _text_pooling(self, text: Array, mask: Array) -> Array | None:
        """Returns what the text head pools by: a mask, or each text's position."""
        if self.spec.pooling == "max":
            return None if self.spec.pool_padding else mask
        return self.text_encoder.class_position(text)

    def _identify(self, features: Features) -> dict[str, Float[Array, "B Q C"]]:
        if not self.spec.identities:
            return {}
        logits = {"global": self.identity_head(features["global"])[:, None]}
        if self.spec.pgu:
            parts = features["pgu"].reshape(-1, self.spec.pgu.prototypes, self.spec.pgu.part_dim)
            logits["pgu"] = self.pgu_identity_head(parts)
        return logits

    @staticmethod
    def _flat(parts: Array) -> Array:
        return parts.reshape(len(parts), -1)
