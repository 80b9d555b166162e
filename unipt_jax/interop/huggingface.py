"""Weights of Hugging Face, timm, OpenAI and open_clip, checked and in this library's layout."""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import tokenizers
from etils import epath
from flax import traverse_util

from unipt_jax.core import trees
from unipt_jax.core.errors import CheckpointError, ConfigError, ConversionError
from unipt_jax.data.tokenization import ROLES
from unipt_jax.interop import foreign_specs, names, weight_files
from unipt_jax.models import specs
from unipt_jax.models.dual_encoder import DualEncoderSpec
from unipt_jax.models.vit import VisionSpec

_LISTED = 8  # names of one kind in a message


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Foreign weights in this library's layout.

    Attributes:
        spec: the model: a dual encoder (CLIP, this library's export), or one encoder of it.
        params: nested float32 arrays, rooted as in `DualEncoder`: `image_encoder`, `text_encoder`,
            `mlm_head` and so on.
        directory: where the weights lie; a tokenizer may lie beside them.
        text_length: tokens to which texts are cut; 0 without a text encoder.
    """

    spec: specs.Spec
    params: dict[str, Any]
    directory: epath.Path
    text_length: int


def load(
    source: str,
    *,
    activation: str = "",
    allow_missing: Sequence[str] = (),
    allow_unused: Sequence[str] = (),
) -> Pretrained:
    """Reads weights of Hugging Face (CLIP, ViT, DeiT, BERT, UniPT), timm, OpenAI or open_clip.

    Where no file tells how pixels are normalised, it is CLIP's way for CLIP, ImageNet's for DeiT
    (of timm's only the distilled), and to [-1, 1] for ViT.

    Args:
        source: a local directory or file, or a name on the Hugging Face hub.
        activation: the MLPs' activation; only for weights of open_clip without a configuration,
            which do not tell. Given for others, it must be theirs.
        allow_missing: parts of the parameters, such as `mlm_head`, that may be absent as a whole.
        allow_unused: names of weights, or of groups of them, that the model has no place for.

    Raises:
        ConversionError: the weights cannot be read, are of an architecture that is not supported,
            or do not fill the model exactly. Every fault is listed.
    """
    place = weight_files.locate(source)
    config = _optional_json(place.directory / "config.json")
    with _naming(source):
        if place.file is None:  # A file's neighbours may be about something else.
            foreign_specs.require_supported(config)
    weights = weight_files.read(weight_files.find(place))
    with _naming(source):
        architecture = foreign_specs.recognise(weights, config)
        converted = names.to_flax(weights, architecture.table)
        described = _describe(place.directory, config, weights, converted.params, activation)
        spec = architecture.spec(described)
        _require_activation(spec, activation)
        params = _fit(converted, specs.abstract_params(spec), allow_missing, allow_unused)
        return Pretrained(spec, params, place.directory, _text_length(spec, config))


@contextlib.contextmanager
def _naming(source: str) -> Iterator[None]:
    """Puts the source before messages about what it holds."""
    try:
        yield
    except (CheckpointError, ConfigError, ConversionError) as error:
        raise ConversionError(f"{source}: {error}") from error


def _optional_json(path: epath.Path) -> dict[str, Any]:
    return weight_files.read_json(path) if path.exists() else {}


def _describe(
    directory: epath.Path,
    config: Mapping[str, Any],
    weights: Mapping[str, np.ndarray],
    params: Mapping[str, np.ndarray],
    activation: str,
) -> foreign_specs.Description:
    """Reads what lies beside the weights."""
    processor = _optional_json(directory / "preprocessor_config.json")
    if not processor:  # transformers 5 may keep it with the rest.
        processor = _optional_json(directory / "processor_config.json").get("image_processor", {})
    return foreign_specs.Description(
        config=config,
        open_clip_config=_optional_json(directory / "open_clip_config.json"),
        image_processor=processor,
        end_token=_end_token(directory),
        weights=weights,
        params=params,
        activation=activation,
    )


def _end_token(directory: epath.Path) -> int | None:
    file = directory / "tokenizer.json"
    if file.exists():
        try:
            ids = tokenizers.Tokenizer.from_str(file.read_text()).get_vocab()
        except Exception as error:  # The library raises bare ones.
            message = weight_files.one_line(error)
            raise ConversionError(f"{file} is no tokenizer: {message}") from error
    else:
        ids = _optional_json(directory / "vocab.json")
    return next((ids[token] for token in ROLES["end"] if token in ids), None)


def _require_activation(spec: specs.Spec, activation: str) -> None:
    towers = [spec.image, spec.text] if isinstance(spec, DualEncoderSpec) else [spec]
    theirs = {tower.activation for tower in towers}
    if activation and theirs != {activation}:
        raise ConversionError(
            f"--config.activation={activation}, but these weights were trained with "
            f"{' and '.join(sorted(theirs))}; leave it out"
        )


def _text_length(spec: specs.Spec, config: Mapping[str, Any]) -> int:
    if isinstance(spec, VisionSpec):
        return 0
    text = spec.text if isinstance(spec, DualEncoderSpec) else spec
    if config.get("model_type") != "unipt":
        return text.max_positions
    length = config.get("text_length")
    if not isinstance(length, int) or not 0 < length <= text.max_positions:
        raise ConversionError(
            f"config.json: text_length={length!r} is no number from 1 to {text.max_positions}"
        )
    return length


def _fit(
    converted: names.Converted,
    model: Any,
    allow_missing: Sequence[str],
    allow_unused: Sequence[str],
) -> dict[str, Any]:
    """Returns the nested float32 parameters of `model`, a tree of shapes, or lists what differs."""
    want, have = trees.flatten(model), converted.params
    unused = [*converted.unused, *(converted.origins[path] for path in have if path not in want)]
    # Once each, though query, key and value may come from one.
    unused = [name for name in dict.fromkeys(unused) if not _within(name, allow_unused, ".")]
    absent = [part for part in allow_missing if not any(_within(p, [part], "/") for p in have)]
    missing = [path for path in want if path not in have and not _within(path, absent, "/")]
    both = [path for path in want if path in have]
    shapes = [
        f"{converted.origins[path]} has {have[path].shape} and not {want[path].shape}, as {path}"
        for path in both
        if have[path].shape != want[path].shape
    ]
    types = [
        f"{converted.origins[path]} is {have[path].dtype}"
        for path in both
        if not jnp.issubdtype(have[path].dtype, jnp.floating)  # NumPy's would not know bfloat16.
    ]
    faults = [
        *_listed("contradictory", converted.faults),
        *_listed("weights without a place", unused),
        *_listed("parameters without a weight", missing),
        *_listed("other shapes", shapes),
        *_listed("no floating-point numbers", types),
    ]
    if faults:
        raise ConversionError(f"the weights do not fit the model; {'; '.join(faults)}")
    leaves = {tuple(path.split("/")): np.asarray(have[path], np.float32) for path in both}
    return traverse_util.unflatten_dict(leaves)


def _within(name: str, groups: Iterable[str], separator: str) -> bool:
    return any(name == group or name.startswith(group + separator) for group in groups)


def _listed(title: str, items: Sequence[str]) -> list[str]:
    if not items:
        return []
    more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return [f"{title}: {', '.join(items[:_LISTED])}{more}"]
