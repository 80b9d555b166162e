"""A trained dual encoder as a directory that PyTorch's transformers load, written without torch.

Two forms: transformers' own `CLIPModel` where the towers are CLIP's, and else `UniPTModel`, whose
code (`modeling_unipt.py`) is put beside its weights.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import safetensors.numpy
from etils import epath

from unipt_jax.core.errors import ConversionError
from unipt_jax.core.files import CONFIG_FILE, write_bytes, write_json, write_stream
from unipt_jax.data.tokenization import Tokenizer
from unipt_jax.interop import foreign_specs, names, weight_files
from unipt_jax.models import specs
from unipt_jax.models.clip import ClipTextSpec
from unipt_jax.models.dual_encoder import DualEncoderSpec

Form = Literal["CLIPModel", "UniPTModel"]

MODELING = Path(__file__).with_name("modeling_unipt.py")

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}

# Transformers' names of the activations, by ours.
ACTIVATIONS = {ours: theirs for theirs, ours in foreign_specs.ACTIVATIONS.items()}

# First names of the parameters that embeddings and their similarities are made of.
_ENCODERS = ("image_encoder", "text_encoder", "image_head", "text_head", "logit_scale")

# Transformers' CLIP takes a configuration with this end token for an old, wrong one, and reads
# a text at its largest id instead.
_LEGACY_END_TOKEN = 2


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        form: the class that loads it.
        parameters: number of array elements.
        left_out: parameters, by their first name, that stand on the encoders and are not written.
    """

    form: Form
    parameters: int
    left_out: tuple[str, ...]


def form(spec: DualEncoderSpec) -> Form:
    """Returns the class that a model is exported as.

    `CLIPModel` has no place for images that are not square, another pooling, a distillation token,
    a bias on the patches, or the end token 2, to which it gives another meaning.
    """
    image, text = spec.image, spec.text
    fits = (
        isinstance(text, ClipTextSpec)
        and text.end_token != _LEGACY_END_TOKEN
        and spec.pooling == "class"
        and image.pre_layer_norm
        and not image.patch_bias
        and not image.distillation_token
        and len(set(image.image_size)) == 1
    )
    return "CLIPModel" if fits else "UniPTModel"


def encoders_alone(
    spec: DualEncoderSpec, params: Mapping[str, Any]
) -> tuple[DualEncoderSpec, dict[str, Any], tuple[str, ...]]:
    """Strips a model of what stands on its encoders: neither form has a place for it.

    That is whatever fine-tuning adds; embeddings do without it. BERT's MLM head stays with
    `UniPTModel`, which has it too; `CLIPModel` has not.

    Args:
        spec: the model's shape.
        params: its parameters, rooted as in `DualEncoder`.

    Returns:
        Shape and parameters of what is left, and the first names of the parameters that are not.
    """
    mlm = spec.mlm and not spec.cross_modal and form(spec) == "UniPTModel"
    alone = dataclasses.replace(
        spec, mlm=mlm, logit_bias=False, cross_modal=None, pgu=None, selection=None, identities=0
    )
    names_kept = (*_ENCODERS, "mlm_head") if mlm else _ENCODERS
    kept = {name: part for name, part in params.items() if name in names_kept}
    return alone, kept, tuple(name for name in params if name not in kept)


def weights(spec: DualEncoderSpec, params: Mapping[str, Any], dtype: str) -> dict[str, np.ndarray]:
    """Returns the arrays of `model.safetensors` by their names in torch.

    They are those of `encoders_alone`. `CLIPModel` always has a logit scale.

    Args:
        spec: the model's shape.
        params: the model's parameters, float32.
        dtype: a key of `DTYPES`.

    Raises:
        ConversionError: a value is not finite, or too large for `dtype`.
    """
    _, params, _ = encoders_alone(spec, params)
    table = names.UNIPT
    if form(spec) == "CLIPModel":
        table = names.CLIP
        scale = np.float32(spec.logit_scale if spec.temperature == "fixed" else 1.0)
        params = {"logit_scale": np.log(scale)} | params
    with np.errstate(over="ignore"):
        arrays = {
            name: array.astype(DTYPES[dtype], copy=False)
            for name, array in names.from_flax(params, table).items()
        }
    broken = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if broken:
        raise ConversionError(
            f"{dtype} cannot hold {', '.join(broken[:3])}{', ...' if broken[3:] else ''}: values "
            "are infinite, not a number or too large; export with --config.dtype=float32, or "
            "another checkpoint"
        )
    return arrays


def export(
    directory: epath.PathLike,
    *,
    spec: DualEncoderSpec,
    params: Mapping[str, Any],
    tokenizer: Tokenizer,
    text_length: int,
    dtype: str = "float32",
) -> Exported:
    """Writes weights, configuration, tokenizer, image processor and model card of the encoders.

    What else stands on them is left out, see `encoders_alone`; result and card name it.
    `config.json` comes last: a directory without it is not complete.

    Args:
        directory: where to; made if it is missing.
        spec: the model's shape.
        params: the model's parameters, float32.
        tokenizer: the text encoder's.
        text_length: tokens to which texts are cut and padded.
        dtype: of the written weights, a key of `DTYPES`.

    Raises:
        ConversionError: as `weights`; nothing is written then.
    """
    directory = epath.Path(directory)
    arrays = weights(spec, params, dtype)
    spec, _, left_out = encoders_alone(spec, params)
    exported = Exported(form(spec), sum(array.size for array in arrays.values()), left_out)
    told = {"format": "pt", weight_files.CHECKSUM: weight_files.checksum(arrays)}
    content = safetensors.numpy.save(arrays, metadata=told)
    write_stream(directory / "model.safetensors", _metadata_in_order(content))
    if exported.form == "UniPTModel":
        config = _unipt_config(spec, text_length)
        write_bytes(directory / MODELING.name, MODELING.read_bytes())
    else:
        config = _clip_config(spec, tokenizer)
    tokenizer.save(directory)
    write_json(directory / "tokenizer_config.json", _tokenizer_config(tokenizer, text_length))
    write_json(directory / "preprocessor_config.json", _processor_config(spec))
    write_bytes(directory / "README.md", _card(spec, text_length, dtype, left_out).encode())
    write_json(
        directory / CONFIG_FILE, {"architectures": [exported.form], "dtype": dtype, **config}
    )
    return exported


def loading_code(form: Form, directory: epath.PathLike) -> tuple[str, str]:
    """Returns the two lines of Python that load an exported model in PyTorch."""
    return (
        "from transformers import AutoModel",
        f'model = AutoModel.from_pretrained("{directory}"{_trust(form)})',
    )


def _trust(form: Form) -> str:
    return ", trust_remote_code=True" if form == "UniPTModel" else ""


def _unipt_config(spec: DualEncoderSpec, text_length: int) -> dict[str, Any]:
    module = MODELING.stem
    return {
        "model_type": "unipt",
        "auto_map": {"AutoConfig": f"{module}.UniPTConfig", "AutoModel": f"{module}.UniPTModel"},
        "spec": specs.to_dict(spec),
        "text_length": text_length,
    }


def _clip_config(spec: DualEncoderSpec, tokenizer: Tokenizer) -> dict[str, Any]:
    image, text = spec.image, spec.text
    return {
        "model_type": "clip",
        "projection_dim": spec.embedding_dim,
        "vision_config": {
            **_tower_config(image, spec.embedding_dim),
            "model_type": "clip_vision_model",
            "image_size": image.image_size[0],
            "patch_size": image.patch_size,
        },
        "text_config": {
            **_tower_config(text, spec.embedding_dim),
            "model_type": "clip_text_model",
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.max_positions,
            "bos_token_id": tokenizer.start,
            "eos_token_id": text.end_token,
            "pad_token_id": tokenizer.pad,
        },
    }


def _tower_config(tower: Any, embedding_dim: int) -> dict[str, Any]:
    return {
        "hidden_size": tower.hidden_size,
        "num_hidden_layers": tower.layers,
        "num_attention_heads": tower.heads,
        "intermediate_size": tower.mlp_size,
        "hidden_act": ACTIVATIONS[tower.activation],
        "layer_norm_eps": tower.layer_norm_eps,
        "projection_dim": embedding_dim,
    }


def _metadata_in_order(content: bytes) -> list[bytes]:
    """Returns a safetensors file in pieces, the same for the same weights: its writer shuffles."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return [content[:8], text.ljust(start - 8), content[start:]]


def _tokenizer_config(tokenizer: Tokenizer, text_length: int) -> dict[str, Any]:
    ids = {
        "pad_token": tokenizer.pad,
        "mask_token": tokenizer.mask,
        # BERT's names and CLIP's of the same two tokens.
        "cls_token": tokenizer.start,
        "bos_token": tokenizer.start,
        "sep_token": tokenizer.end,
        "eos_token": tokenizer.end,
    }
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": text_length,
        # A text that spells a special token says so in letters, as it does here.
        "split_special_tokens": True,
        **{
            role: tokenizer.backend.id_to_token(number)
            for role, number in ids.items()
            if number is not None
        },
    }


def _processor_config(spec: DualEncoderSpec) -> dict[str, Any]:
    height, width = spec.image.image_size
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": 3,  # Pillow's number of the bicubic filter
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(spec.image.mean),
        "image_std": list(spec.image.std),
    }


def _card(spec: DualEncoderSpec, text_length: int, dtype: str, left_out: tuple[str, ...]) -> str:
    more = ""
    if spec.mlm:
        more += "\n`get_mlm_logits` applies the head of masked language modelling."
    if left_out:
        more += f"\nOf the trained model was left out: {', '.join(left_out)}."
    height, width = spec.image.image_size
    return _CARD.format(
        height=height,
        width=width,
        text_length=text_length,
        embedding_dim=spec.embedding_dim,
        dtype=dtype,
        trust=_trust(form(spec)),
        more=more,
    )


# Pillow's filter, which the model was trained with; torchvision's gives slightly other pixels.
_CARD = """---
library_name: transformers
tags: [text-to-image-retrieval, person-re-identification]
---

# A dual encoder for text-to-image person re-identification

Trained and exported with UniPT-JAX. Embeds images of {height}x{width} pixels (height x width) and
sentences of up to {text_length} tokens as {embedding_dim} numbers. The weights are {dtype}.

```python
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

model = AutoModel.from_pretrained("."{trust})
tokenizer = AutoTokenizer.from_pretrained("."{trust})
processor = AutoImageProcessor.from_pretrained(".", backend="pil")
texts = ["a woman in a red jacket", "a man with a backpack"]
texts = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
images = processor([Image.open("person.jpg").convert("RGB")], return_tensors="pt")
with torch.inference_mode():
    output = model(**texts, **images)
print(output.text_embeds @ output.image_embeds.T)  # cosine similarities, one row a text
```

`get_image_features` and `get_text_features` embed one side: `pooler_output`, not of length 1.{more}
"""
