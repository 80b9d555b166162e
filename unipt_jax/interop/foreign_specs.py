"""What another library's model is: from its configuration, else from the shapes of its weights.

Messages name no file of weights; whoever calls knows it.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from unipt_jax.core.errors import ConversionError
from unipt_jax.interop import names
from unipt_jax.interop.weight_files import one_line
from unipt_jax.models import clip, specs
from unipt_jax.models.bert import TextSpec
from unipt_jax.models.clip import ClipTextSpec
from unipt_jax.models.dual_encoder import DualEncoderSpec
from unipt_jax.models.vit import VisionSpec

# Hugging Face's names of activations, and ours. Of two for one, the last is written.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}

# Mean and standard deviation of each channel in [0, 1] that models were trained with.
_HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}  # ViT
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}  # DeiT
_CLIP = {"mean": clip.MEAN, "std": clip.STD}

# All that is known of open_clip's towers here, with its own defaults (open_clip, model.py).
_OPEN_CLIP_IMAGE = {
    "image_size": 224,
    "patch_size": 16,
    "width": 768,
    "layers": 12,
    "head_width": 64,
    "mlp_ratio": 4.0,
}
_OPEN_CLIP_TEXT = {
    "context_length": 77,
    "vocab_size": 49408,
    "width": 512,
    "layers": 12,
    "heads": 8,
    "mlp_ratio": 4.0,
}
_OPEN_CLIP_MODEL = ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text")

_CLIP_VOCABULARY = 49408  # Of OpenAI's tokenizer, whose last id ends texts.


@dataclasses.dataclass(frozen=True)
class Description:
    """All that tells what weights are; a file's content is empty where the file is absent.

    Attributes:
        config: content of `config.json`.
        open_clip_config: content of `open_clip_config.json`.
        image_processor: what Hugging Face's image processor does.
        end_token: the id with which the tokenizer beside the weights ends texts, if there is one.
        weights: the weights' names in their file.
        params: the weights by Flax path.
        activation: what the user says it is; "" if nothing.
    """

    config: Mapping[str, Any]
    open_clip_config: Mapping[str, Any]
    image_processor: Mapping[str, Any]
    end_token: int | None
    weights: Iterable[str]
    params: Mapping[str, np.ndarray]
    activation: str


@dataclasses.dataclass(frozen=True)
class Architecture:
    """How one library writes one kind of model.

    Attributes:
        table: names and layouts of its weights.
        spec: makes the specification; raises `ConversionError` for what is not supported here, and
            as the specification does.
    """

    table: names.Table
    spec: Callable[[Description], specs.Spec]


def require_supported(config: Mapping[str, Any]) -> None:
    """Refuses what `config.json` says is another architecture; it need not say anything.

    Raises:
        ConversionError: it is one that is not supported.
    """
    if "model_type" in config:
        supported = config["model_type"] in tuple(HUGGING_FACE)  # It may be no string.
    else:
        supported = re.match(r"(vit|deit)_", str(config.get("architecture", "vit_")))
    if not supported:
        kind = config.get("model_type", config.get("architecture"))
        raise ConversionError(f"{kind!r} is not supported; {_SUPPORTED}")


def section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Returns an object within a configuration, empty if it is absent or null.

    Raises:
        ConversionError: it is no object.
    """
    value = config.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConversionError(f"{name}={value!r:.50}, where an object was expected")
    return value


def recognise(weights: Iterable[str], config: Mapping[str, Any]) -> Architecture:
    """Tells the architecture by the names of its weights or, Hugging Face's, by `config.json`.

    Raises:
        ConversionError: neither tells, or it is one that is not supported.
    """
    weights = list(weights)
    if any(re.search(r"(^|\.)visual\.", name) for name in weights):
        if any("visual.layer1." in name for name in weights):
            raise ConversionError(f"a CLIP with a ResNet is not supported; {_SUPPORTED}")
        return Architecture(names.OPENAI_CLIP, _open_clip)
    if any(name.endswith("patch_embed.proj.weight") for name in weights):
        return Architecture(names.TIMM_VIT, _timm)
    require_supported(config)
    if "model_type" not in config:
        raise ConversionError(
            f"no config.json with a model_type is there, and weights called {weights[0]} and the "
            f"like do not tell the architecture; {_SUPPORTED}"
        )
    return HUGGING_FACE[config["model_type"]]


# --------------------------------------------------------------------------------- Hugging Face


def _hugging_face_clip(described: Description) -> DualEncoderSpec:
    config = _complete(described.config)
    image, text = config.vision_config, config.text_config
    faults = [
        *_differences(image, num_channels=(3,), hidden_act=ACTIVATIONS),
        *_differences(text, hidden_act=ACTIVATIONS),
    ]
    _refuse(faults)
    end = text.eos_token_id
    if isinstance(end, list | tuple) and len(end) == 1:
        (end,) = end
    # 2 is wrong in configurations of before transformers 4.31, which took the highest id.
    if end is None or end == 2:
        end = described.end_token
        end = _last_token(text.vocab_size) if end is None else end
    return _dual_encoder(
        clip.vision_spec(**_images(image), **_tower(image), **_pixels(described, default=_CLIP)),
        ClipTextSpec(
            vocab_size=text.vocab_size,
            max_positions=text.max_position_embeddings,
            end_token=end,
            **_tower(text),
        ),
        config.projection_dim,
        described,
    )


def _hugging_face_vit(described: Description) -> VisionSpec:
    config = _complete(described.config)
    _refuse(_differences(config, num_channels=(3,), hidden_act=ACTIVATIONS, qkv_bias=(True,)))
    default = _IMAGENET if config.model_type == "deit" else _HALF
    return VisionSpec(
        **_images(config),
        **_tower(config),
        **_pixels(described, default=default),
        distillation_token="image_encoder/distillation_token" in described.params,
    )


def _hugging_face_bert(described: Description) -> TextSpec:
    config = _complete(described.config)
    faults = _differences(
        config,
        hidden_act=ACTIVATIONS,
        position_embedding_type=("absolute",),
        is_decoder=(False,),
        add_cross_attention=(False,),
    )
    _refuse(faults)
    return TextSpec(
        vocab_size=config.vocab_size,
        max_positions=config.max_position_embeddings,
        type_vocab_size=config.type_vocab_size,
        dropout=config.hidden_dropout_prob,
        **_tower(config),
    )


def _unipt(described: Description) -> DualEncoderSpec:
    values = described.config.get("spec")
    if not isinstance(values, Mapping):
        raise ConversionError(f"config.json: spec={values!r:.50} describes no model")
    spec = specs.from_dict(values)
    if not isinstance(spec, DualEncoderSpec):
        raise ConversionError(f"config.json: spec describes a {values['kind']}, no dual_encoder")
    return spec


HUGGING_FACE = {
    "bert": Architecture(names.BERT, _hugging_face_bert),
    "clip": Architecture(names.CLIP, _hugging_face_clip),
    "deit": Architecture(names.VIT, _hugging_face_vit),
    "unipt": Architecture(names.UNIPT, _unipt),
    "vit": Architecture(names.VIT, _hugging_face_vit),
}

_SUPPORTED = (
    f"supported are Hugging Face's {', '.join(HUGGING_FACE)}, timm's vit and deit, and the CLIP of "
    "OpenAI and open_clip"
)


def _complete(config: Mapping[str, Any]) -> Any:
    """Returns the configuration with Hugging Face's defaults, which files leave out."""
    from transformers import CONFIG_MAPPING  # Slow to import.

    try:
        return CONFIG_MAPPING[config["model_type"]].from_dict(_without_labels(config))
    except Exception as error:  # Its checks raise many types.
        raise ConversionError(f"config.json: {one_line(error)}") from error


def _without_labels(config: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves out a classifier's labels, of which transformers makes as many as a number says."""
    return {
        name: _without_labels(value) if isinstance(value, Mapping) else value
        for name, value in config.items()
        if name not in ("num_labels", "id2label", "label2id")
    }


def _differences(config: Any, **supported: Iterable[Any]) -> list[str]:
    """Lists values that have no counterpart here."""
    return [
        f"{name}={getattr(config, name)!r} (supported: {', '.join(map(str, values))})"
        for name, values in supported.items()
        if hasattr(config, name) and getattr(config, name) not in tuple(values)
    ]


def _refuse(faults: list[str]) -> None:
    if faults:
        raise ConversionError(f"not supported: {'; '.join(faults)}")


def _images(config: Any) -> dict[str, Any]:
    patch = _pair(config.patch_size)
    if patch[0] != patch[1]:
        raise ConversionError(f"patch_size={config.patch_size!r} is not square")
    return {"image_size": _pair(config.image_size), "patch_size": patch[0]}


def _pair(size: Any) -> tuple[int, int]:
    """Returns (height, width) of either form that configurations have."""
    if isinstance(size, list | tuple) and len(size) == 2:
        return tuple(size)
    if not isinstance(size, int):
        raise ConversionError(f"{size!r:.50} is no size: one number or two expected")
    return size, size


def _tower(config: Any) -> dict[str, Any]:
    return {
        "hidden_size": config.hidden_size,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "mlp_size": config.intermediate_size,
        "layer_norm_eps": config.layer_norm_eps,
        "activation": ACTIVATIONS[config.hidden_act],
    }


def _pixels(described: Description, *, default: Mapping[str, Any]) -> dict[str, Any]:
    """Returns mean and standard deviation as the image processor has them, if there is one."""
    processor = described.image_processor
    factor = processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1
    if not isinstance(factor, int | float) or not math.isclose(factor, 1 / 255, rel_tol=1e-3):
        raise ConversionError(
            f"the image processor multiplies pixels by {factor!r:.50}; only 1/255 is supported"
        )
    if not processor.get("do_normalize", True):
        return {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    return _channels(processor.get("image_mean"), processor.get("image_std"), default)


def _channels(mean: Any, std: Any, default: Mapping[str, Any]) -> dict[str, Any]:
    values = {"mean": mean or default["mean"], "std": std or default["std"]}
    for name, value in values.items():
        numbers = isinstance(value, list | tuple) and all(isinstance(x, int | float) for x in value)
        if not numbers or len(value) != 3:
            raise ConversionError(f"{name}={value!r} of pixels: three numbers expected")
    return {name: tuple(map(float, value)) for name, value in values.items()}


def _last_token(vocab_size: int) -> int:
    """Returns the highest id of CLIP's own tokenizer, without tokens that were added to it."""
    return min(vocab_size, _CLIP_VOCABULARY) - 1


def _dual_encoder(
    image: VisionSpec, text: ClipTextSpec, embedding_dim: int, described: Description
) -> DualEncoderSpec:
    logarithm = described.params.get("logit_scale", np.log(1 / 0.07))  # CLIP's start
    with np.errstate(over="ignore"):
        scale = np.exp(np.asarray(logarithm, np.float64))
    finite = np.finfo(np.float32)
    return DualEncoderSpec(
        image=image,
        text=text,
        embedding_dim=embedding_dim,
        pooling="class",
        pool_padding=False,
        mlm=False,
        temperature="learned",
        logit_scale=float(np.clip(scale, finite.tiny, finite.max)),
    )


# ------------------------------------------------------------------------ OpenAI and open_clip


def _open_clip(described: Description) -> DualEncoderSpec:
    config = described.open_clip_config
    if not config:
        return _openai(described)
    model = section(config, "model_cfg")
    given = {name: section(model, name) for name in ("vision_cfg", "text_cfg")}
    known = {"vision_cfg": _OPEN_CLIP_IMAGE, "text_cfg": _OPEN_CLIP_TEXT}
    faults = [f"model_cfg.{key}" for key in model if key not in _OPEN_CLIP_MODEL]
    faults += [f"{name}.{key}" for name in given for key in given[name] if key not in known[name]]
    _refuse([f"open_clip_config.json has {', '.join(faults)}"] if faults else [])
    image, text = ({**known[name], **given[name]} for name in known)
    activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
    pixels = section(config, "preprocess_cfg")
    return _dual_encoder(
        clip.vision_spec(
            image_size=_pair(image["image_size"]),
            patch_size=image["patch_size"],
            hidden_size=image["width"],
            layers=image["layers"],
            heads=image["width"] // image["head_width"],
            mlp_size=int(image["width"] * image["mlp_ratio"]),
            activation=activation,
            **_channels(pixels.get("mean"), pixels.get("std"), _CLIP),
        ),
        ClipTextSpec(
            vocab_size=text["vocab_size"],
            hidden_size=text["width"],
            layers=text["layers"],
            heads=text["heads"],
            mlp_size=int(text["width"] * text["mlp_ratio"]),
            max_positions=text["context_length"],
            end_token=_last_token(text["vocab_size"]),
            activation=activation,
        ),
        model.get("embed_dim", 0),
        described,
    )


def _openai(described: Description) -> DualEncoderSpec:
    activation: Any = described.activation
    if any(name.endswith("input_resolution") for name in described.weights):
        activation = "quick_gelu"  # This buffer is in OpenAI's own releases alone.
    if not activation:
        raise ConversionError(
            "these weights of open_clip do not tell their activation: add "
            "--config.activation=quick_gelu if they were trained as OpenAI's, "
            "or --config.activation=gelu"
        )
    vocab_size, _ = _shape(described, "text_encoder/word_embeddings")
    return _dual_encoder(
        clip.vision_spec(**_seen_image(described, prefix=1), activation=activation),
        ClipTextSpec(
            **_seen_tower(described, "text_encoder", "word_embeddings"),
            vocab_size=vocab_size,
            max_positions=_shape(described, "text_encoder/position_embeddings")[0],
            end_token=_last_token(vocab_size),
            activation=activation,
        ),
        _shape(described, "text_head/projection/kernel")[1],
        described,
    )


# ---------------------------------------------------------------------------------------- timm


def _timm(described: Description) -> VisionSpec:
    distilled = "image_encoder/distillation_token" in described.params
    arguments = set(section(described.config, "model_args")) - {"img_size", "num_classes"}
    _refuse([f"config.json has model_args.{name}" for name in sorted(arguments)])
    pixels = section(described.config, "pretrained_cfg") or described.config
    default = _IMAGENET if distilled else _HALF
    return VisionSpec(
        **_seen_image(described, prefix=1 + distilled),
        **_channels(pixels.get("mean"), pixels.get("std"), default),
        layer_norm_eps=1e-6,  # timm, vision_transformer.py
        distillation_token=distilled,
    )


# ------------------------------------------------------------------------------ seen in shapes


def _shape(described: Description, path: str) -> tuple[int, ...]:
    if path not in described.params:
        raise ConversionError(f"the weight of {path}, which tells the model's shape, is missing")
    return described.params[path].shape


def _seen_image(described: Description, *, prefix: int) -> dict[str, Any]:
    side, _, channels, _ = _shape(described, "image_encoder/patch_embedding/kernel")
    if channels != 3:
        raise ConversionError(f"images have {channels} channels; 3 are supported")
    rows, _ = _shape(described, "image_encoder/position_embedding")
    grid = math.isqrt(max(rows - prefix, 0))
    if grid * grid != rows - prefix:
        raise ConversionError(
            f"{rows} position embeddings, {prefix} of them of no patch, make no square of patches, "
            "so they do not tell the image size; only square images are supported without it"
        )
    return {
        **_seen_tower(described, "image_encoder", "position_embedding"),
        "image_size": (grid * side, grid * side),
        "patch_size": side,
    }


def _seen_tower(described: Description, encoder: str, table: str) -> dict[str, Any]:
    _, width = _shape(described, f"{encoder}/{table}")
    # OpenAI's models and timm's up to its large one have heads of this width.
    if width % 64 or width > 1024:
        raise ConversionError(
            f"{encoder} is {width} wide, which does not tell the number of attention heads (known "
            "for multiples of 64 up to 1024); put the configuration beside the weights"
        )
    blocks = [re.match(rf"{encoder}/layers_(\d+)/", path) for path in described.params]
    return {
        "hidden_size": width,
        "layers": 1 + max((int(block[1]) for block in blocks if block), default=-1),
        "heads": width // 64,
        "mlp_size": _shape(described, f"{encoder}/layers_0/mlp/fc1/kernel")[1],
    }
