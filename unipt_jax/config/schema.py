"""Every configuration field: its type, range, unit, default and source, in one place.

`configs/*.py` give values only; `build` checks them against these dataclasses and freezes them.
"""
# ruff: noqa: RUF009 - `group` declares a field, as `dataclasses.field` does; it shares no value.

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from unipt_jax.core.errors import ConfigError, nearest

Config = TypeVar("Config")

# JAX's keys hold 32 bits of a seed: 2**32 would silently be 0.
MAX_SEED = 2**32 - 1


def field(
    doc: str,
    *,
    default: Any = dataclasses.MISSING,
    at_least: int | float | None = None,
    above: int | float | None = None,
    at_most: int | float | None = None,
    below: int | float | None = None,
    choices: Sequence[Any] = (),
    free_on_resume: bool = False,
) -> Any:
    """Declares a field: what it means (with unit and source), its default, its range.

    Bounds hold for each element of a tuple. `free_on_resume` fields may differ between a run and
    its continuation, since no parameter depends on them.
    """
    metadata = {
        "doc": doc,
        "at_least": at_least,
        "above": above,
        "at_most": at_most,
        "below": below,
        "choices": tuple(choices),
        "free_on_resume": free_on_resume,
    }
    return dataclasses.field(default=default, metadata=metadata)


def group(cls: type, *, free_on_resume: bool = False) -> Any:
    """Declares a nested group of fields."""
    return dataclasses.field(
        default_factory=cls, metadata={"doc": cls.__doc__, "free_on_resume": free_on_resume}
    )


# ---------------------------------------------------------------------------- groups


@dataclasses.dataclass(frozen=True)
class Image:
    """What happens to pixels."""

    height: int = field("pixels", default=384, at_least=1)
    width: int = field("pixels", default=128, at_least=1)
    flip: float = field("probability of a horizontal flip", default=0.5, at_least=0, at_most=1)


@dataclasses.dataclass(frozen=True)
class Text:
    """What happens to captions."""

    tokenizer: str = field(
        "a Hugging Face name, or a directory with tokenizer.json", default="bert-base-uncased"
    )
    length: int = field("tokens, special ones included (paper: 100)", default=100, at_least=3)
    buckets: tuple[int, ...] = field(
        "shorter lengths, in tokens, that a batch may be padded to instead of `length`",
        default=(),
        at_least=3,
    )


@dataclasses.dataclass(frozen=True)
class MaskedLanguage:
    """BERT's masked language model (paper, section 3.3)."""

    weight: float = field("beta of L_con + beta * L_mlm (paper: 1)", default=1.0, at_least=0)
    probability: float = field(
        "share of a caption's tokens that is predicted (paper: 0.15)",
        default=0.15,
        at_least=0,
        at_most=1,
    )
    whole_word: bool = field("choose whole words (released code: True)", default=False)


@dataclasses.dataclass(frozen=True)
class Model:
    """The dual encoder."""

    image: str = field("variant of the image encoder", default="vit_b16")
    text: str = field("variant of the text encoder", default="bert_base")
    embedding_dim: int = field(
        "width of the joint space (released code: 768)", default=768, at_least=1
    )
    pool_padding: bool = field(
        "let padding tokens into the text's max pooling (released code: True)", default=False
    )
    dropout: float = field(
        "rate in the text encoder while training (BERT: 0.1)", default=0.1, at_least=0, at_most=0.9
    )


@dataclasses.dataclass(frozen=True)
class Init:
    """Weights to start from: a Hugging Face name, a directory of weights, or of a run of ours."""

    image: str = field("of the image encoder (paper: ImageNet's); empty: random", default="")
    text: str = field(
        "of the text encoder and the MLM head (paper: BERT-base); empty: random", default=""
    )


@dataclasses.dataclass(frozen=True)
class Contrastive:
    """Symmetric InfoNCE (paper, equation 1)."""

    temperature: str = field(
        "none: bare cosine, as equation 1; fixed: logit_scale as given; learned: starting there",
        default="none",
        choices=("none", "fixed", "learned"),
    )
    logit_scale: float = field(
        "inverse temperature for fixed and learned (CLIP: 1/0.07)",
        default=1 / 0.07,
        above=0,
        at_most=100,
    )
    negatives: int = field(
        "examples that are contrasted with each other; 0: the whole batch (released code: 64, "
        "those of one GPU)",
        default=0,
        at_least=0,
    )


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW and its schedule."""

    learning_rate: float = field("peak (paper: 1e-5)", default=1e-5, above=0)
    warmup: float = field(
        "share of the steps with a linear rise from 0 (paper: 0.1)",
        default=0.1,
        at_least=0,
        at_most=1,
    )
    decay: str = field(
        "after the warm-up (released code: linear, to 0)",
        default="none",
        choices=("none", "linear", "cosine"),
    )
    beta1: float = field("AdamW", default=0.9, at_least=0, below=1)
    beta2: float = field("AdamW (released code: 0.98)", default=0.999, at_least=0, below=1)
    epsilon: float = field("AdamW", default=1e-8, above=0)
    weight_decay: float = field(
        "decoupled; none on biases, LayerNorms and logit_scale", default=0.01, at_least=0
    )
    clip_norm: float = field(
        "largest global gradient norm; 0: no clipping", default=0.0, at_least=0
    )


@dataclasses.dataclass(frozen=True)
class Mesh:
    """How devices are arranged; one size may be -1: what is left."""

    data: int = field("devices that split the batch", default=-1, at_least=-1)
    fsdp: int = field("devices that split batch and parameters", default=1, at_least=-1)
    tensor: int = field("devices that split layers", default=1, at_least=-1)


# ---------------------------------------------------------------------------- stages


@dataclasses.dataclass(frozen=True)
class Pretrain:
    """Pre-training of the dual encoder on images and (pseudo) texts."""

    stage: str = field("which schema this is", choices=("pretrain",))
    data: str = field("directory that launch/prepare.py wrote", free_on_resume=True)
    seed: int = field(
        "of parameters, data order, augmentation, masking", default=0, at_least=0, at_most=MAX_SEED
    )
    steps: int = field("optimizer steps; 0: follow `epochs`", default=0, at_least=0)
    epochs: float = field(
        "passes over the captions, when steps is 0 (paper: 15)", default=15.0, at_least=0
    )
    batch_size: int = field(
        "global, over all devices and processes (paper: 512)", default=512, at_least=1
    )
    accumulate: int = field(
        "micro-batches a step; the loss still sees all the batch's negatives", default=1, at_least=1
    )
    dtype: str = field(
        "of the encoders' arithmetic; parameters and losses stay float32",
        default="float32",
        choices=("float32", "bfloat16"),
    )
    workers: int = field(
        "processes that decode images; 0: threads", default=0, at_least=0, free_on_resume=True
    )
    log_every: int = field("steps", default=50, at_least=1, free_on_resume=True)
    checkpoint_every: int = field("steps", default=1000, at_least=1, free_on_resume=True)
    keep_checkpoints: int = field("latest ones kept", default=3, at_least=1, free_on_resume=True)
    on_bad_record: str = field(
        "stop at a record that cannot be read, or leave it out and count it",
        default="stop",
        choices=("stop", "quarantine"),
    )
    image: Image = group(Image)
    text: Text = group(Text)
    mlm: MaskedLanguage = group(MaskedLanguage)
    model: Model = group(Model)
    init: Init = group(Init)
    contrastive: Contrastive = group(Contrastive)
    optimizer: Optimizer = group(Optimizer)
    mesh: Mesh = group(Mesh, free_on_resume=True)

    def __post_init__(self) -> None:
        """Checks what no single field can show."""
        faults = []
        if not self.steps and not self.epochs:
            faults.append("steps and epochs are both 0; set one of them")
        if self.batch_size % self.accumulate:
            faults.append(
                f"accumulate={self.accumulate} does not divide batch_size={self.batch_size}"
            )
        negatives = self.contrastive.negatives
        if negatives and self.batch_size % negatives:
            faults.append(
                f"contrastive.negatives={negatives} does not divide batch_size={self.batch_size}"
            )
        if any(bucket >= self.text.length for bucket in self.text.buckets):
            faults.append(
                f"text.buckets={self.text.buckets} must be shorter than "
                f"text.length={self.text.length}"
            )
        if self.model.pool_padding and self.text.buckets:
            faults.append(
                "model.pool_padding makes embeddings depend on the padded length, so it needs "
                "text.buckets=()"
            )
        if faults:
            raise ConfigError("; ".join(faults))


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Conversion of annotations and images to a data set that the other stages read."""

    stage: str = field("which schema this is", choices=("prepare",))
    dataset: str = field(
        "annotation layout",
        choices=(
            "cuhk_pedes",
            "icfg_pedes",
            "rstp_reid",
            "pairs",
            "luperson_t",
            "luperson_mllm",
            "mals",
            "synth_pedes",
        ),
    )
    source: str = field("directory with the annotation file and the images")
    annotations: str = field(
        "file inside `source`, or a pattern for several; empty: the layout's usual names",
        default="",
    )
    tokenizer: str = field(
        "whose caption lengths are stored, so that batches can be padded to short buckets; "
        "a Hugging Face name, a directory with tokenizer.json, or empty for none",
        default="bert-base-uncased",
    )
    validation: float = field(
        "share of the records without a split that go to `val` instead of `train`",
        default=0.0,
        at_least=0,
        at_most=1,
    )
    seed: int = field("of the drawn validation records", default=0, at_least=0, at_most=MAX_SEED)
    on_bad_record: str = field(
        "stop at bad records (all are reported), or leave them out and count them",
        default="stop",
        choices=("stop", "quarantine"),
    )


@dataclasses.dataclass(frozen=True)
class Caption:
    """Pseudo texts for unlabelled images: CLIP chooses attributes, templates make sentences."""

    stage: str = field("which schema this is", choices=("caption",))
    images: str = field(
        "a folder (any depth), a text file with a path a line, or a prepared data set"
    )
    clip: str = field(
        "a Hugging Face name, a directory of weights, or of a conversion (paper: ViT-B/16)",
        default="openai/clip-vit-base-patch16",
    )
    lexicon: str = field(
        "JSON file of attributes, templates and synonyms (docs/attributes.md); empty: English",
        default="",
    )
    wrappers: int = field(
        "prompts around each phrase over which its feature is averaged (paper: 1)",
        default=1,
        at_least=1,
    )
    threshold: float = field(
        "probability above which an optional attribute is kept (paper: 0.9)",
        default=0.9,
        at_least=0,
        at_most=1,
    )
    tokenizer: str = field(
        "whose caption lengths are stored with the data set, as in prepare",
        default="bert-base-uncased",
    )
    seed: int = field("of templates and synonyms", default=0, at_least=0, at_most=MAX_SEED)
    batch_size: int = field("images, over all devices and processes", default=256, at_least=1)
    on_bad_record: str = field(
        "stop at an image that cannot be read, or leave it out and count it",
        default="quarantine",
        choices=("stop", "quarantine"),
    )


@dataclasses.dataclass(frozen=True)
class Convert:
    """Conversion of foreign weights to a checkpoint of this library."""

    stage: str = field("which schema this is", choices=("convert",))
    source: str = field(
        "a Hugging Face name, a directory that holds weights, or a file of weights (timm's, "
        "OpenAI's or open_clip's names)"
    )
    height: int = field(
        "pixels, for which position embeddings are resized; 0: as in the source",
        default=0,
        at_least=0,
    )
    width: int = field("the same", default=0, at_least=0)
    activation: str = field(
        "of a CLIP whose file does not tell: quick_gelu (OpenAI's weights) or gelu; empty: told",
        default="",
        choices=("", "quick_gelu", "gelu"),
    )
    tokenizer: str = field(
        "a Hugging Face name, or a directory with tokenizer.json; empty: beside the weights",
        default="",
    )

    def __post_init__(self) -> None:
        """Checks what no single field can show."""
        if bool(self.height) != bool(self.width):
            raise ConfigError(
                f"height={self.height} and width={self.width}: set both, or neither (0)"
            )


@dataclasses.dataclass(frozen=True)
class Export:
    """Export of a trained dual encoder to PyTorch."""

    stage: str = field("which schema this is", choices=("export",))
    checkpoint: str = field("directory of a run")
    dtype: str = field(
        "of the written weights",
        default="float32",
        choices=("float32", "float16", "bfloat16"),
    )
    onnx: bool = field("write both encoders as ONNX too (needs the extra onnx)", default=False)


STAGES: Mapping[str, type] = {
    "pretrain": Pretrain,
    "prepare": Prepare,
    "caption": Caption,
    "convert": Convert,
    "export": Export,
}


# ---------------------------------------------------------------------------- checking


def build(values: Mapping[str, Any]) -> Any:
    """Returns the frozen dataclass of `values["stage"]`, checked.

    Raises:
        ConfigError: lists every unknown field (with the nearest known one), missing field, wrong
            type and value out of range.
    """
    stage = values.get("stage")
    if stage not in STAGES:
        raise ConfigError(f"stage={stage!r}{nearest(str(stage), STAGES)}")
    faults: list[str] = []
    built = _build(STAGES[stage], values, "", faults)
    if faults:
        raise ConfigError("; ".join(faults))
    return built


def to_dict(config: Any) -> dict[str, Any]:
    """Returns the nested plain values of a built configuration (tuples as lists): JSON-ready."""
    return {
        item.name: to_dict(value)
        if dataclasses.is_dataclass(value)
        else list(value)
        if isinstance(value, tuple)
        else value
        for item in dataclasses.fields(config)
        for value in [getattr(config, item.name)]
    }


def describe(cls: type, prefix: str = "") -> list[tuple[str, str, Any, str]]:
    """Lists `(name, type, default, doc)` of every field, groups included, in order."""
    hints = typing.get_type_hints(cls)
    rows = []
    for item in dataclasses.fields(cls):
        kind = hints[item.name]
        if dataclasses.is_dataclass(kind):
            rows += describe(kind, f"{prefix}{item.name}.")
        else:
            default = "required" if item.default is dataclasses.MISSING else item.default
            rows.append((prefix + item.name, _kind_name(kind), default, item.metadata["doc"]))
    return rows


def resume_differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Lists the fields by which a continuation would compute something else than its first part."""
    if type(old) is not type(new):
        return [f"stage: {old.stage!r} before, {new.stage!r} now"]
    lines = []
    for item in dataclasses.fields(new):
        before, after = getattr(old, item.name), getattr(new, item.name)
        if item.metadata["free_on_resume"] or before == after:
            continue
        if dataclasses.is_dataclass(after):
            lines += resume_differences(before, after, f"{prefix}{item.name}.")
        else:
            lines.append(f"{prefix}{item.name}: {before!r} before, {after!r} now")
    return lines


def _build(cls: type, values: Mapping[str, Any], prefix: str, faults: list[str]) -> Any:
    hints = typing.get_type_hints(cls)
    fields = {item.name: item for item in dataclasses.fields(cls)}
    faults += [
        f"{prefix}{name} is unknown{nearest(name, fields)}" for name in values if name not in fields
    ]
    arguments, before = {}, len(faults)
    for name, item in fields.items():
        where = prefix + name
        if name not in values:
            if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
                faults.append(f"{where} is not set; pass --config.{where}=...")
            continue
        value = values[name]
        if dataclasses.is_dataclass(hints[name]):
            if isinstance(value, Mapping):
                arguments[name] = _build(hints[name], value, where + ".", faults)
            else:
                faults.append(f"{where} is a group of fields, not {value!r}")
            continue
        fits, value = _coerce(value, hints[name])
        if fits:
            arguments[name] = value
            faults += _range_faults(where, value, item.metadata)
        else:
            faults.append(f"{where}={value!r} is not of type {_kind_name(hints[name])}")
    if len(faults) > before:
        return None
    try:
        return cls(**arguments)
    except ConfigError as error:
        faults.append(str(error))
        return None


def _coerce(value: Any, kind: Any) -> tuple[bool, Any]:
    """Returns whether `value` is of type `kind`, and the value in exactly that type."""
    if typing.get_origin(kind) is tuple:
        element = typing.get_args(kind)[0]
        if not isinstance(value, list | tuple):
            return False, value
        pairs = [_coerce(entry, element) for entry in value]
        return all(fits for fits, _ in pairs), tuple(entry for _, entry in pairs)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return True, float(value)
    if kind is int and isinstance(value, bool):
        return False, value
    return isinstance(value, kind), value


def _range_faults(where: str, value: Any, limits: Mapping[str, Any]) -> list[str]:
    faults = []
    for entry in value if isinstance(value, tuple) else (value,):
        if limits["choices"] and entry not in limits["choices"]:
            faults.append(f"{where}={entry!r}{nearest(str(entry), map(str, limits['choices']))}")
        if limits["at_least"] is not None and not entry >= limits["at_least"]:
            faults.append(f"{where}={entry!r} must be at least {limits['at_least']}")
        if limits["above"] is not None and not entry > limits["above"]:
            faults.append(f"{where}={entry!r} must be above {limits['above']}")
        if limits["at_most"] is not None and not entry <= limits["at_most"]:
            faults.append(f"{where}={entry!r} must be at most {limits['at_most']}")
        if limits["below"] is not None and not entry < limits["below"]:
            faults.append(f"{where}={entry!r} must be below {limits['below']}")
        if isinstance(entry, float) and not math.isfinite(entry):
            faults.append(f"{where}={entry!r} must be finite")
    return faults


def _kind_name(kind: Any) -> str:
    if isinstance(kind, types.GenericAlias):
        return f"tuple of {typing.get_args(kind)[0].__name__}"
    return kind.__name__
