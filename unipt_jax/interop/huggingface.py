"""Weights of Hugging Face, timm, OpenAI and open_clip, checked and in this library's layout."""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import traverse_util

from unipt_jax.core import trees
from unipt_jax.core.errors import CheckpointError, ConfigError, ConversionError, DataError
from unipt_jax.data import tokenization
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
) -> Pretrained:
    """Reads weights of Hugging Face (CLIP, ViT, DeiT, BERT, UniPT), timm, OpenAI or open_clip.

    Where no file tells how pixels are normalised, it is CLIP's way for CLIP, ImageNet's for DeiT
    (of timm's only the distilled), and to [-1, 1] for ViT.

    Args:
        source: a local directory or file, or a name on the Hugging Face hub.
        activation: the MLPs' activation; only for weights of open_clip without a configuration,
            which do not tell. Given for others, it must be theirs.
        allow_missing: parts of the parameters, such as `mlm_head`, that may be absent as a whole.

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
        spec, model = _describe(
            architecture, place.directory, config, weights, converted.params, activation
        )
        _require_activation(spec, activation)
        params = _fit(converted, model, allow_missing)
        return Pretrained(spec, params, place.directory, _text_length(spec, config))


@contextlib.contextmanager
def _naming(source: str) -> Iterator[None]:
    """Puts the source before messages about what it holds."""
    try:
        yield
    except (CheckpointError, ConfigError, ConversionError) as error:
        raise ConversionError(f"{source}: {error}") from error


def _optional_json(path: epath.Path) -> dict[str, Any]:
    return weight_files.read_json(path) if weight_files.is_present(path) else {}


def _describe(
    architecture: foreign_specs.Architecture,
    directory: epath.Path,
    config: Mapping[str, Any],
    weights: Mapping[str, np.ndarray],
    params: Mapping[str, np.ndarray],
    activation: str,
) -> tuple[specs.Spec, Any]:
    """Returns the model and its parameters' shapes, as what lies beside the weights tells."""
    processor = _optional_json(directory / "preprocessor_config.json")
    if not processor:  # transformers 5 may keep it with the rest.
        rest = _optional_json(directory / "processor_config.json")
        processor = foreign_specs.section(rest, "image_processor")
    described = foreign_specs.Description(
        config=config,
        open_clip_config=_optional_json(directory / "open_clip_config.json"),
        image_processor=processor,
        end_token=_end_token(directory),
        weights=weights,
        params=params,
        activation=activation,
    )
    try:
        spec = architecture.spec(described)
        return spec, specs.abstract_params(spec)
    # JSON may have any value anywhere; what none of the checks foresaw fails in one of these ways.
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ConversionError(
            f"what lies beside the weights describes no model: {weight_files.one_line(error)}"
        ) from error


def _end_token(directory: epath.Path) -> int | None:
    file = directory / tokenization.FILE
    if weight_files.is_present(file):
        try:
            ids = tokenization.read(str(directory)).get_vocab()
        except DataError as error:
            raise ConversionError(str(error)) from error
    else:
        file = directory / "vocab.json"
        ids = _optional_json(file)
    end = next((token for token in tokenization.ROLES["end"] if token in ids), None)
    if end is not None and not isinstance(ids[end], int):
        raise ConversionError(f"{file}: {end} has the id {ids[end]!r:.50}, which is no integer")
    return None if end is None else ids[end]


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


def _fit(converted: names.Converted, model: Any, allow_missing: Sequence[str]) -> dict[str, Any]:
    """Returns the nested float32 parameters of `model`, a tree of shapes, or lists what differs."""
    want, have = trees.flatten(model), converted.params
    unused = [*converted.unused, *(converted.origins[path] for path in have if path not in want)]
    absent = [part for part in allow_missing if not any(_within(p, [part]) for p in have)]
    missing = [path for path in want if path not in have and not _within(path, absent)]
    both = [path for path in want if path in have]
    shapes = [
        f"{converted.origins[path]} has {have[path].shape} and not {want[path].shape}, as {path}"
        for path in both
        if have[path].shape != want[path].shape
    ]
    # NumPy's own test would not know bfloat16.
    numbers = [path for path in both if jnp.issubdtype(have[path].dtype, jnp.floating)]
    types = [
        f"{converted.origins[path]} is {have[path].dtype}" for path in both if path not in numbers
    ]
    with np.errstate(over="ignore"):
        leaves = {path: np.asarray(have[path], np.float32) for path in numbers}
    broken = [converted.origins[path] for path in numbers if not np.isfinite(leaves[path]).all()]
    faults = [
        *_listed("contradictory", converted.faults),
        # Once each, though query, key and value may come from one.
        *_listed("weights without a place", list(dict.fromkeys(unused))),
        *_listed("parameters without a weight", missing),
        *_listed("other shapes", shapes),
        *_listed("no floating-point numbers", types),
        *_listed("infinite, not a number or beyond float32", list(dict.fromkeys(broken))),
    ]
    if faults:
        raise ConversionError(f"the weights do not fit the model; {'; '.join(faults)}")
    return traverse_util.unflatten_dict(leaves, sep="/")


def _within(path: str, groups: Iterable[str]) -> bool:
    return any(path == group or path.startswith(f"{group}/") for group in groups)


def _listed(title: str, items: Sequence[str]) -> list[str]:
    if not items:
        return []
    more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return [f"{title}: {', '.join(items[:_LISTED])}{more}"]
