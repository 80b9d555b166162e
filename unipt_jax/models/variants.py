"""The named encoders, and the dual encoder made of two of them."""

import dataclasses
from typing import Literal, TypeVar

from unipt_jax.core.errors import ConfigError, nearest
from unipt_jax.models.bert import TextSpec
from unipt_jax.models.clip import ClipTextSpec, vision_spec
from unipt_jax.models.cross_modal import CrossModalSpec
from unipt_jax.models.dual_encoder import DualEncoderSpec
from unipt_jax.models.pgu import PguSpec
from unipt_jax.models.token_selection import TokenSelectionSpec
from unipt_jax.models.vit import VisionSpec

_Spec = TypeVar("_Spec")

# UniPT's encoders and CLIP's at 384x128 pixels; `tiny` trains on a laptop in minutes, and `micro`
# is compiled in moments, to try out everything but what it learns.
IMAGE_VARIANTS: dict[str, VisionSpec] = {
    "vit_b16": VisionSpec(
        image_size=(384, 128), patch_size=16, hidden_size=768, layers=12, heads=12, mlp_size=3072
    ),
    "deit_s": VisionSpec(
        image_size=(384, 128), patch_size=16, hidden_size=384, layers=12, heads=6, mlp_size=1536
    ),
    "clip_b16": vision_spec(
        image_size=(384, 128), patch_size=16, hidden_size=768, layers=12, heads=12, mlp_size=3072
    ),
    # That of examples/small_clip.
    "small_clip": vision_spec(
        image_size=(112, 112), patch_size=14, hidden_size=128, layers=6, heads=4, mlp_size=512
    ),
    "tiny": VisionSpec(
        image_size=(128, 64), patch_size=8, hidden_size=128, layers=4, heads=4, mlp_size=512
    ),
    "micro": VisionSpec(
        image_size=(32, 16), patch_size=8, hidden_size=32, layers=1, heads=2, mlp_size=64
    ),
}

TEXT_VARIANTS: dict[str, TextSpec | ClipTextSpec] = {
    "bert_base": TextSpec(
        vocab_size=30522, hidden_size=768, layers=12, heads=12, mlp_size=3072, max_positions=512
    ),
    "clip_b16": ClipTextSpec(
        vocab_size=49408,
        hidden_size=512,
        layers=12,
        heads=8,
        mlp_size=2048,
        max_positions=77,
        end_token=49407,
    ),
    # That of examples/small_clip.
    "small_clip": ClipTextSpec(
        vocab_size=320,
        hidden_size=96,
        layers=1,
        heads=4,
        mlp_size=192,
        max_positions=32,
        end_token=319,
    ),
    "tiny": TextSpec(
        vocab_size=30522, hidden_size=128, layers=3, heads=4, mlp_size=512, max_positions=128
    ),
    "micro": TextSpec(
        vocab_size=30522, hidden_size=32, layers=1, heads=2, mlp_size=64, max_positions=128
    ),
}

PGU_VARIANTS: dict[str, PguSpec] = {
    "paper": PguSpec(),
    "tiny": PguSpec(
        dictionary_size=64,
        prototypes=4,
        part_dim=64,
        heads=4,
        dictionary_head_size=32,
        dictionary_mlp_size=256,
        prototype_layers=1,
        prototype_head_size=32,
        prototype_mlp_size=256,
    ),
}


def dual_encoder(
    image: str,
    text: str,
    *,
    image_size: tuple[int, int],
    vocab_size: int,
    end_token: int,
    embedding_dim: int,
    pooling: Literal["max", "class"],
    pool_padding: bool,
    dropout: float,
    mlm: bool,
    temperature: Literal["none", "fixed", "learned"],
    logit_scale: float,
    logit_bias: bool = False,
    cross_modal: bool = False,
    pgu: str = "",
    selection: bool = False,
    identities: int = 0,
) -> DualEncoderSpec:
    """Combines two named encoders and what stands on them.

    Args:
        image: a key of `IMAGE_VARIANTS`.
        text: a key of `TEXT_VARIANTS`.
        image_size: (height, width) in pixels.
        vocab_size: number of the tokenizer's ids.
        end_token: the tokenizer's id that ends a text, which CLIP's text encoder reads.
        embedding_dim: width of the common space.
        pooling: as all that follows, see `DualEncoderSpec`.
        pool_padding: the same.
        dropout: the text encoder's, in [0, 1); CLIP's has none.
        mlm: as above.
        temperature: the same.
        logit_scale: the same.
        logit_bias: the same.
        cross_modal: the same, of the published shape.
        pgu: a key of `PGU_VARIANTS`; empty for none.
        selection: as `cross_modal`.
        identities: as above.

    Raises:
        ConfigError: a name is unknown, or a value does not fit.
    """
    words = _named("text", text, TEXT_VARIANTS)
    theirs = {"end_token": end_token} if isinstance(words, ClipTextSpec) else {"dropout": dropout}
    return DualEncoderSpec(
        image=dataclasses.replace(
            _named("image", image, IMAGE_VARIANTS), image_size=tuple(image_size)
        ),
        text=dataclasses.replace(words, vocab_size=vocab_size, **theirs),
        embedding_dim=embedding_dim,
        pooling=pooling,
        pool_padding=pool_padding,
        mlm=mlm,
        temperature=temperature,
        logit_scale=logit_scale,
        logit_bias=logit_bias,
        cross_modal=CrossModalSpec() if cross_modal else None,
        pgu=_named("pgu", pgu, PGU_VARIANTS) if pgu else None,
        selection=TokenSelectionSpec() if selection else None,
        identities=identities,
    )


def _named(kind: str, name: str, variants: dict[str, _Spec]) -> _Spec:
    if name not in variants:
        raise ConfigError(f"model.{kind}={name!r}{nearest(name, variants)}")
    return variants[name]
