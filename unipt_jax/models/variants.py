"""The named encoders, and the dual encoder made of two of them."""

import dataclasses
from typing import Literal, TypeVar

from unipt_jax.core.errors import ConfigError, nearest
from unipt_jax.models.bert import TextSpec
from unipt_jax.models.dual_encoder import DualEncoderSpec
from unipt_jax.models.vit import VisionSpec

_Spec = TypeVar("_Spec")

# UniPT's encoders at its 384x128 pixels; `tiny` trains on a laptop in minutes.
IMAGE_VARIANTS: dict[str, VisionSpec] = {
    "vit_b16": VisionSpec(
        image_size=(384, 128), patch_size=16, hidden_size=768, layers=12, heads=12, mlp_size=3072
    ),
    "deit_s": VisionSpec(
        image_size=(384, 128), patch_size=16, hidden_size=384, layers=12, heads=6, mlp_size=1536
    ),
    "tiny": VisionSpec(
        image_size=(128, 64), patch_size=8, hidden_size=128, layers=4, heads=4, mlp_size=512
    ),
}

TEXT_VARIANTS: dict[str, TextSpec] = {
    "bert_base": TextSpec(
        vocab_size=30522, hidden_size=768, layers=12, heads=12, mlp_size=3072, max_positions=512
    ),
    "tiny": TextSpec(
        vocab_size=30522, hidden_size=128, layers=3, heads=4, mlp_size=512, max_positions=128
    ),
}


def dual_encoder(
    image: str,
    text: str,
    *,
    image_size: tuple[int, int],
    vocab_size: int,
    embedding_dim: int,
    pool_padding: bool,
    dropout: float,
    temperature: Literal["none", "fixed", "learned"],
    logit_scale: float,
) -> DualEncoderSpec:
    """Combines two named encoders.

    Args:
        image: a key of `IMAGE_VARIANTS`.
        text: a key of `TEXT_VARIANTS`.
        image_size: (height, width) in pixels.
        vocab_size: number of the tokenizer's ids.
        embedding_dim: width of the common space.
        pool_padding: see `DualEncoderSpec`.
        dropout: the text encoder's, in [0, 1).
        temperature: see `DualEncoderSpec`.
        logit_scale: see `DualEncoderSpec`.

    Raises:
        ConfigError: a name is unknown, or a value does not fit.
    """
    return DualEncoderSpec(
        image=dataclasses.replace(
            _named("image", image, IMAGE_VARIANTS), image_size=tuple(image_size)
        ),
        text=dataclasses.replace(
            _named("text", text, TEXT_VARIANTS), vocab_size=vocab_size, dropout=dropout
        ),
        embedding_dim=embedding_dim,
        pooling="max",
        pool_padding=pool_padding,
        mlm=True,
        temperature=temperature,
        logit_scale=logit_scale,
    )


def _named(kind: str, name: str, variants: dict[str, _Spec]) -> _Spec:
    if name not in variants:
        raise ConfigError(f"unknown {kind} encoder {name!r}{nearest(name, variants)}")
    return variants[name]
