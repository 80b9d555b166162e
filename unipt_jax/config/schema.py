"""Every configuration field: its type, range, unit, default and source, in one place.

`configs/*.py` give values only; `build` checks them against these dataclasses and freezes them.
"""
# ruff: noqa: RUF009 - `group` declares a field, as `dataclasses.field` does; it shares no value.

import ctypes
import dataclasses
import difflib
import math
import operator
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from unipt_jax.core.errors import ConfigError, nearest

Config = TypeVar("Config")

# JAX's keys hold 32 bits of a seed: 2**32 would silently be 0.
MAX_SEED = 2**32 - 1
# Of every other whole number: devices count in 32 bits, with a sign.
MAX_COUNT = 2**31 - 1
# Letters of a value that an error repeats.
_MOST_SHOWN = 200
# Beyond what anybody trains on, and little enough that the limit is told before memory runs out.
_MOST_PIXELS, _MOST_ROWS = 4096, 2**20


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

    Bounds hold for each element of a tuple, and for floats in float32 too. Whole numbers without
    `at_most` are at most `MAX_COUNT`. `free_on_resume` fields may differ between a run and
    its continuation, since no parameter depends on them but for rounding.
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

    height: int = field("pixels", default=384, at_least=1, at_most=_MOST_PIXELS)
    width: int = field("pixels", default=128, at_least=1, at_most=_MOST_PIXELS)
    flip: float = field("probability of a horizontal flip", default=0.5, at_least=0, at_most=1)
    padding: int = field(
        "pixels added on each side before a random crop back to size (IRRA: 10)",
        default=0,
        at_least=0,
        at_most=_MOST_PIXELS,
    )
    erase: float = field(
        "probability of erasing a rectangle (IRRA: 0.5)", default=0.0, at_least=0, at_most=1
    )
    pool: int = field(
        "augmentations drawn of TBPS-CLIP's six (TBPS-CLIP: 2)", default=0, at_least=0, at_most=100
    )


@dataclasses.dataclass(frozen=True)
class Text:
    """What happens to captions."""

    tokenizer: str = field(
        "a Hugging Face name, or a directory with tokenizer.json", default="bert-base-uncased"
    )
    length: int = field(
        "tokens, special ones included (paper: 100)", default=100, at_least=3, at_most=4096
    )
    buckets: tuple[int, ...] = field(
        "shorter lengths, in tokens, that a batch may be padded to instead of `length`",
        default=(),
        at_least=3,
    )
    noise: str = field(
        "mask: all losses read the masked copy (IRRA); corrupt: tokens masked, replaced and "
        "deleted (RDE); delete: words deleted (TBPS-CLIP)",
        default="none",
        choices=("none", "mask", "corrupt", "delete"),
    )
    noise_probability: float = field(
        "of a token to be corrupted (RDE: 0.2), of a word to be deleted (TBPS-CLIP: 0.05)",
        default=0.0,
        at_least=0,
        at_most=1,
    )


@dataclasses.dataclass(frozen=True)
class MaskedLanguage:
    """What the masked language model predicts (paper, section 3.3)."""

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
        "width of the joint space (released code: 768)", default=768, at_least=1, at_most=16_384
    )
    pooling: str = field(
        "max: over all tokens (paper); class: the class and the end-of-text token (CLIP)",
        default="max",
        choices=("max", "class"),
    )
    pool_padding: bool = field(
        "let padding tokens into the text's max pooling (released code: True)", default=False
    )
    pgu: str = field(
        "variant of the granularity-unified features (paper, section 3.4); empty: none", default=""
    )
    selection: bool = field("add features of the tokens attended most (RDE)", default=False)
    cross_modal: bool = field(
        "predict masked tokens from the image too (IRRA), not from the text alone (paper)",
        default=False,
    )
    dropout: float = field(
        "rate in the text encoder while training (BERT: 0.1)", default=0.1, at_least=0, at_most=0.9
    )


@dataclasses.dataclass(frozen=True)
class Similarity:
    """By what cosines are multiplied in contrastive, n_itc, r_itc and sigmoid."""

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


# The losses that compare images with texts: the pairs, whoever they show, and the identities.
_OF_IDENTITIES = ("ranking", "sdm", "tal", "n_itc", "r_itc", "sigmoid")
_COMPARING = ("contrastive", *_OF_IDENTITIES)


@dataclasses.dataclass(frozen=True)
class Loss:
    """Weights of the losses, 0 leaving one out, and their constants."""

    contrastive: float = field("symmetric InfoNCE (paper, L_con: 1)", default=1.0, at_least=0)
    mlm: float = field("masked language model (paper, beta: 1)", default=1.0, at_least=0)
    identity: float = field(
        "cross-entropy over the training identities (paper, L_id: 1; IRRA: 0.5)",
        default=0.0,
        at_least=0,
    )
    ranking: float = field(
        "semi-hard ranking loss, summed over the batch (paper, L_rk: 1)", default=0.0, at_least=0
    )
    pgu: float = field(
        "of all losses of the granularity-unified features (paper, gamma: 1)",
        default=1.0,
        at_least=0,
    )
    sdm: float = field("similarity distribution matching (IRRA: 1)", default=0.0, at_least=0)
    tal: float = field("triplet alignment, summed over the batch (RDE: 1)", default=0.0, at_least=0)
    n_itc: float = field("normalised InfoNCE (TBPS-CLIP: 1)", default=0.0, at_least=0)
    r_itc: float = field("reversed InfoNCE (TBPS-CLIP: 1)", default=0.0, at_least=0)
    c_itc: float = field("cyclic InfoNCE (TBPS-CLIP: 0.1)", default=0.0, at_least=0)
    sigmoid: float = field("pairwise sigmoid (SigLIP: 1)", default=0.0, at_least=0)
    negatives: int = field(
        "of contrastive: examples that are contrasted with each other; 0: the whole batch "
        "(released code: 64, those of one GPU)",
        default=0,
        at_least=0,
    )
    ranking_margin: float = field("of ranking (paper: 0.2)", default=0.2, above=0)
    sdm_temperature: float = field("of sdm (IRRA: 0.02)", default=0.02, above=0)
    tal_temperature: float = field("of tal (RDE: 0.015)", default=0.015, above=0)
    tal_margin: float = field("of tal (RDE: 0.1)", default=0.1, at_least=0)
    soft_labels: float = field(
        "of n_itc: the prediction's own part of its target (TBPS-CLIP: 0.5)",
        default=0.5,
        at_least=0,
        at_most=1,
    )

    def idle_with_one_identity(self, *, classes: bool) -> str:
        """Lists the losses in use that one identity alone gives nothing to tell from another.

        Args:
            classes: it is the only one of the training, not of a batch alone.
        """
        names = ("identity", *_OF_IDENTITIES) if classes else _OF_IDENTITIES
        return ", ".join(f"loss.{name}" for name in names if getattr(self, name))


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW or Adam, its schedule, and the learning rates of groups of parameters."""

    name: str = field(
        "adamw: decoupled decay; adam: decay added to the gradient",
        default="adamw",
        choices=("adamw", "adam"),
    )
    learning_rate: float = field("peak (paper: 1e-5)", default=1e-5, above=0)
    image: float = field("factor on it for the image encoder", default=1.0, at_least=0)
    text: float = field("for the text encoder", default=1.0, at_least=0)
    new: float = field(
        "for what has no counterpart in a pre-trained model: classifiers, PGU, token selection, "
        "cross-modal blocks (IRRA: 5)",
        default=1.0,
        at_least=0,
    )
    bias: float = field(
        "for the encoders' biases, on top of theirs (IRRA: 2)", default=1.0, at_least=0
    )
    warmup: float = field(
        "share of the steps with a linear rise (paper: 0.1)", default=0.1, at_least=0, at_most=1
    )
    start: float = field(
        "where the rise starts, in shares of the peak (IRRA: 0.1)",
        default=0.0,
        at_least=0,
        at_most=1,
    )
    decay: str = field(
        "after the warm-up (released code: linear)",
        default="none",
        choices=("none", "linear", "cosine"),
    )
    end: float = field(
        "where the decay ends, in shares of the peak (TBPS-CLIP: 0.05)",
        default=0.0,
        at_least=0,
        at_most=1,
    )
    beta1: float = field("of the first moment", default=0.9, at_least=0, below=1)
    beta2: float = field(
        "of the second moment (released code: 0.98)", default=0.999, at_least=0, below=1
    )
    epsilon: float = field("added to the second moment's root", default=1e-8, above=0)
    weight_decay: float = field(
        "none on biases, LayerNorms, logit_scale and logit_bias", default=0.01, at_least=0
    )
    clip_norm: float = field(
        "largest global gradient norm; 0: no clipping", default=0.0, at_least=0
    )


@dataclasses.dataclass(frozen=True)
class Compute:
    """How the encoders' layers are computed: time and memory, with the same results."""

    scan: bool = field(
        "compile one layer of an encoder for all, at the price of a copy of their parameters; "
        "dropout draws otherwise",
        default=False,
    )
    remat: str = field(
        "computed again for the gradient, to save memory; dots: all of a layer but its matrix "
        "products with parameters; full: all of it",
        default="none",
        choices=("none", "dots", "full"),
        free_on_resume=True,
    )
    attention: str = field(
        "plain: matrix products; fused: one kernel where there is one (cuDNN's, with bfloat16), "
        "which needs model.dropout=0 with BERT",
        default="plain",
        choices=("plain", "fused"),
        free_on_resume=True,
    )
    cache: str = field(
        "directory of compiled programs, from which the next start takes them; of several "
        "processes the first one writes it, so that all must see it; empty: "
        "$JAX_COMPILATION_CACHE_DIR if that is set, else none",
        default="",
        free_on_resume=True,
    )


@dataclasses.dataclass(frozen=True)
class Mesh:
    """How devices are arranged; one size may be -1: what is left."""

    data: int = field("devices that split the batch", default=-1, at_least=-1)
    fsdp: int = field("devices that split batch and parameters", default=1, at_least=-1)
    tensor: int = field("devices that split layers", default=1, at_least=-1)


# ---------------------------------------------------------------------------- stages


@dataclasses.dataclass(frozen=True)
class Train:
    """Training of the dual encoder: pre-training on pseudo texts, or fine-tuning."""

    stage: str = field("which schema this is", choices=("pretrain", "finetune"))
    data: tuple[str, ...] = field(
        "directories that launch/prepare.py or launch/caption.py wrote, trained on together",
        free_on_resume=True,
    )
    repeats: tuple[int, ...] = field(
        "how often each of `data` comes in an epoch, for small ones beside large ones; empty: once",
        default=(),
        at_least=1,
        at_most=1000,
    )
    seed: int = field(
        "of parameters, data order, augmentation, masking", default=0, at_least=0, at_most=MAX_SEED
    )
    steps: int = field("optimizer steps; 0: follow `epochs`", default=0, at_least=0)
    epochs: float = field(
        "passes over the captions, when steps is 0 (paper: 15)",
        default=15.0,
        at_least=0,
        at_most=1_000_000,
    )
    batch_size: int = field(
        "global, over all devices and processes (paper: 512, fine-tuning 64)",
        default=512,
        at_least=1,
        at_most=_MOST_ROWS,
    )
    instances: int = field(
        "captions of each identity in a batch; 0: as they come", default=0, at_least=0
    )
    accumulate: int = field(
        "micro-batches a step; the loss still sees all the batch's negatives", default=1, at_least=1
    )
    dtype: str = field(
        "of the encoders' arithmetic; parameters and losses stay float32",
        default="float32",
        choices=("float32", "bfloat16"),
    )
    ema: float = field(
        "decay a step of the parameters' moving average, which is kept in their place; 0: none",
        default=0.0,
        at_least=0,
        below=1,
    )
    workers: int = field(
        "processes that decode images; 0: threads",
        default=0,
        at_least=0,
        at_most=1000,
        free_on_resume=True,
    )
    dry_run: bool = field(
        "print shapes and memory, draw the first batch beside --workdir, and stop before a step",
        default=False,
        free_on_resume=True,
    )
    tracker: str = field(
        "where metrics go besides: Weights & Biases or MLflow, by the extra of that name",
        default="none",
        choices=("none", "wandb", "mlflow"),
        free_on_resume=True,
    )
    log_every: int = field(
        "steps between two rows of metrics", default=50, at_least=1, free_on_resume=True
    )
    checkpoint_every: int = field(
        "steps between two checkpoints", default=1000, at_least=1, free_on_resume=True
    )
    keep_checkpoints: int = field("latest ones kept", default=3, at_least=1, free_on_resume=True)
    evaluate: bool = field(
        "measure Rank-1 at each checkpoint, and keep the best one besides", default=False
    )
    paper_protocol: bool = field(
        "measure it on `test`, as published code does, and not on `val`: the figures of the "
        "checkpoint so chosen are too good",
        default=False,
    )
    on_bad_record: str = field(
        "stop at a record that cannot be read, or leave it out and count it",
        default="stop",
        choices=("stop", "quarantine"),
    )
    init: str = field(
        "a dual encoder to start from, which goes before the next two: a Hugging Face name, a "
        "directory of weights, or of a run; empty: none",
        default="",
    )
    init_image: str = field(
        "an image encoder to start from (paper: ImageNet's); empty: random", default=""
    )
    init_text: str = field(
        "a text encoder, with its MLM head, to start from (paper: BERT-base); empty: random",
        default="",
    )
    image: Image = group(Image)
    text: Text = group(Text)
    mlm: MaskedLanguage = group(MaskedLanguage)
    model: Model = group(Model)
    similarity: Similarity = group(Similarity)
    loss: Loss = group(Loss)
    optimizer: Optimizer = group(Optimizer)
    compute: Compute = group(Compute)
    mesh: Mesh = group(Mesh, free_on_resume=True)

    def __post_init__(self) -> None:
        """Checks what no single field can show."""
        loss, model = self.loss, self.model
        faults = []
        if not self.data or not all(self.data):
            faults.append(f"data={list(self.data)}: name one directory or more")
        if self.repeats and len(self.repeats) != len(self.data):
            faults.append(
                f"repeats={self.repeats} must have a number for each of data={list(self.data)}"
            )
        if self.repeats and self.instances:
            faults.append(
                "instances draws identities, whatever repeats says; set instances=0 or repeats=()"
            )
        if not self.steps and not self.epochs:
            faults.append("steps and epochs are both 0; set one of them")
        if self.batch_size % self.accumulate:
            faults.append(
                f"accumulate={self.accumulate} does not divide batch_size={self.batch_size}"
            )
        if self.batch_size == 1:  # Whatever compares wants a second pair.
            faults.append("batch_size=1 leaves a pair no other to be compared with; raise it")
        idle = loss.idle_with_one_identity(classes=False)
        if idle and self.batch_size == self.instances > 1:
            faults.append(
                f"instances={self.instances} fills a batch of batch_size={self.batch_size} with "
                f"one identity, and {idle} would tell it from others; lower instances, or take "
                "other losses"
            )
        if loss.contrastive and loss.negatives == 1:
            faults.append("loss.negatives=1 contrasts an example with no other; raise it, or set 0")
        if loss.negatives and self.batch_size % loss.negatives:
            faults.append(
                f"loss.negatives={loss.negatives} does not divide batch_size={self.batch_size}"
            )
        if any(bucket >= self.text.length for bucket in self.text.buckets):
            faults.append(
                f"text.buckets={self.text.buckets} must be shorter than "
                f"text.length={self.text.length}"
            )
        if model.pool_padding and self.text.buckets:
            faults.append(
                "model.pool_padding makes embeddings depend on the padded length, so it needs "
                "text.buckets=()"
            )
        if self.text.noise in ("corrupt", "delete") and not self.text.noise_probability:
            faults.append(f"text.noise={self.text.noise!r} needs text.noise_probability above 0")
        if self.paper_protocol and not self.evaluate:
            faults.append("paper_protocol says where evaluate measures; set evaluate too")
        if loss.mlm and not self.mlm.probability:
            faults.append(
                "loss.mlm needs masked tokens: set mlm.probability above 0, or loss.mlm=0"
            )
        if model.pgu and not loss.pgu:
            faults.append(
                "model.pgu adds features that loss.pgu=0 leaves untrained; set one of them"
            )
        if model.cross_modal and not loss.mlm:
            faults.append("model.cross_modal adds blocks that loss.mlm=0 leaves untrained")
        if not any(getattr(loss, name) for name in _COMPARING):
            names = ", ".join(_COMPARING)
            faults.append(f"no loss compares images with texts: weigh one of {names}")
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
            "drawn",
        ),
    )
    name: str = field(
        "by which reports call the data set: letters, digits and _; empty: as its layout",
        default="",
    )
    source: str = field(
        "directory with the annotation file and the images; drawn needs none", default=""
    )
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
    seed: int = field(
        "of the validation records, or of drawn pedestrians",
        default=0,
        at_least=0,
        at_most=MAX_SEED,
    )
    count: int = field("of drawn pedestrians", default=10_000, at_least=1)
    height: int = field(
        "of their pictures, in pixels", default=256, at_least=8, at_most=_MOST_PIXELS
    )
    width: int = field("the same", default=128, at_least=4, at_most=_MOST_PIXELS)
    pixels: tuple[int, ...] = field(
        "height and width that the model takes: images are stored decoded and resized to them, "
        "which training then reads several times faster; 3 bytes a pixel (144 KiB an image of "
        "384x128), and for models of that size alone; empty: images are stored as they came",
        default=(),
        at_least=1,
        at_most=_MOST_PIXELS,
    )
    on_bad_record: str = field(
        "stop at bad records (all are reported), or leave them out and count them",
        default="stop",
        choices=("stop", "quarantine"),
    )
    beam_runner: str = field(
        "of Apache Beam, in whose workers images are checked and written: DirectRunner, "
        "DataflowRunner or another; empty: in this process",
        default="",
        free_on_resume=True,
    )
    beam_options: tuple[str, ...] = field(
        "of that runner, each as --key=value", default=(), free_on_resume=True
    )

    def __post_init__(self) -> None:
        """Checks what no single field can show."""
        if self.name and not re.fullmatch("[a-z][a-z0-9_]*", self.name):
            raise ConfigError(
                f"name={self.name!r}: write it of small letters, digits and _, a letter first"
            )
        if len(self.pixels) not in (0, 2):
            raise ConfigError(
                f"pixels={','.join(map(str, self.pixels))}: give height and width, as in "
                "--config.pixels=384,128, or nothing"
            )
        for option in self.beam_options:
            if not option.startswith("--"):
                raise ConfigError(
                    f"beam_options={option!r}: an option of Beam looks like --key=value"
                )
        if self.beam_options and not self.beam_runner:
            raise ConfigError(
                f"beam_options={list(self.beam_options)} are for a runner; pass "
                "--config.beam_runner=... too"
            )
        if not self.source and self.dataset != "drawn":
            raise ConfigError("source is not set; pass --config.source=...")
        if self.validation and self.dataset == "drawn":
            raise ConfigError(
                f"validation={self.validation}: drawn pedestrians are all for training; draw "
                "others with another seed, or set validation=0"
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
    device_batch_size: int = field(
        "images at a time on each device, by which the result is the same on any number of them",
        default=64,
        at_least=1,
        at_most=_MOST_ROWS,
    )
    on_bad_record: str = field(
        "stop at an image that cannot be read, or leave it out and count it",
        default="quarantine",
        choices=("stop", "quarantine"),
    )


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Evaluation of a dual encoder on prepared data sets."""

    stage: str = field("which schema this is", choices=("evaluate",))
    data: tuple[str, ...] = field(
        "directories that launch/prepare.py wrote; the first one's figures lead"
    )
    checkpoint: str = field(
        "directory of a run, or whatever else unipt_jax.load takes: a conversion, a Hugging Face "
        "name or directory"
    )
    split: str = field("of each data set", default="test")
    feature: str = field(
        "that leads: a name that the model gives, or `concatenated`; empty: concatenated if the "
        "model gives several (the paper does not tell which)",
        default="",
    )
    rerank: bool = field(
        "rank by that feature once more, with k-reciprocal re-ranking (time grows with the square "
        "of images and captions)",
        default=False,
    )
    batch_size: int = field(
        "over all devices, of which it becomes a multiple; changes nothing but rounding",
        default=128,
        at_least=1,
        at_most=_MOST_ROWS,
    )
    on_bad_record: str = field(
        "stop at an image that cannot be read, or leave it and its captions out and count it",
        default="stop",
        choices=("stop", "quarantine"),
    )

    def __post_init__(self) -> None:
        """Checks what no single field can show."""
        if not self.data or not all(self.data):
            raise ConfigError(f"data={list(self.data)}: name one directory or more")


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
        at_most=_MOST_PIXELS,
    )
    width: int = field("the same", default=0, at_least=0, at_most=_MOST_PIXELS)
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


@dataclasses.dataclass(frozen=True)
class Search:
    """Search for people in a folder, by a sentence or a picture; a web page without either."""

    stage: str = field("which schema this is", choices=("search",))
    images: str = field("a folder of crops, at any depth")
    checkpoint: str = field(
        "directory of a run, or whatever else unipt_jax.load takes: a conversion, a Hugging Face "
        "name or directory"
    )
    query: str = field("a sentence: 'a woman with a red bag'", default="")
    picture: str = field("a file, to find people who look like the one in it", default="")
    without: str = field("what must not be there: 'a hat'", default="")
    where: tuple[str, ...] = field(
        "attributes that must hold, as upper_clothes.color=red; of those with one name, one",
        default=(),
    )
    k: int = field("people to show", default=10, at_least=1)
    sheet: str = field("a PNG or JPEG file for a contact sheet of them; empty: none", default="")
    clip: str = field(
        "a CLIP that writes captions and attributes when images are indexed; empty: neither",
        default="",
    )
    host: str = field(
        "address of the web page; 0.0.0.0 lets other machines in, without a password",
        default="127.0.0.1",
    )
    port: int = field("of the web page", default=7860, at_least=1, at_most=65535)
    batch_size: int = field(
        "images at a time when they are indexed, over all local devices",
        default=64,
        at_least=1,
        at_most=_MOST_ROWS,
    )

    def __post_init__(self) -> None:
        """Checks what no single field can show."""
        if self.query and self.picture:
            raise ConfigError("query and picture are both set; ask for one of them")
        for name in ("where", "without", "sheet"):
            if getattr(self, name) and not (self.query or self.picture):
                raise ConfigError(f"{name} is set, but neither query nor picture: ask for someone")
        if self.sheet and not self.sheet.lower().endswith((".png", ".jpg", ".jpeg")):
            raise ConfigError(f"sheet={self.sheet!r}: expected a name that ends in .png or .jpg")
        if self.where and not self.clip:
            raise ConfigError("where needs clip, which finds the attributes; `demo` has one")
        wrong = [each for each in self.where if not all(each.partition("="))]
        if wrong:
            raise ConfigError(f"where={wrong[0]!r}: expected ATTRIBUTE=PHRASE, as gender=female")


STAGES: Mapping[str, type] = {
    "pretrain": Train,
    "finetune": Train,
    "prepare": Prepare,
    "caption": Caption,
    "evaluate": Evaluate,
    "convert": Convert,
    "export": Export,
    "search": Search,
}


# ---------------------------------------------------------------------------- checking


def build(values: Any) -> Any:
    """Returns the frozen dataclass of `values["stage"]`, checked.

    Raises:
        ConfigError: lists every unknown field (with the nearest known one), missing field, wrong
            type and value out of range.
    """
    cls = stage_of(values)
    faults: list[str] = []
    built = _build(cls, values, "", faults, cls)
    if faults:
        raise ConfigError("; ".join(faults))
    return built


def stage_of(values: Any) -> type:
    """Returns the schema of nested values.

    Raises:
        ConfigError: they are no such values, or of no known stage.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{shown(values)} is no group of fields")
    stage = values.get("stage")
    if not isinstance(stage, str) or stage not in STAGES:
        raise ConfigError(f"stage={shown(stage)}{nearest(shown(stage), STAGES)}")
    return STAGES[stage]


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


class Described(NamedTuple):
    """A field in words.

    Attributes:
        name: with those of its groups, as in `optimizer.warmup`.
        kind: the name of its type.
        default: "required" where there is none.
        doc: what it means.
        limits: its range or its choices; empty: none.
        group: what it and the fields beside it are about.
    """

    name: str
    kind: str
    default: Any
    doc: str
    limits: str
    group: str


def describe(cls: type, prefix: str = "") -> list[Described]:
    """Lists every field, groups opened, in order."""
    hints, about = typing.get_type_hints(cls), (cls.__doc__ or "").split("\n")[0]
    rows = []
    for item in dataclasses.fields(cls):
        kind, name = hints[item.name], prefix + item.name
        if dataclasses.is_dataclass(kind):
            rows += describe(kind, f"{name}.")
            continue
        default = "required" if item.default is dataclasses.MISSING else item.default
        doc, limits = item.metadata["doc"], _limits(item.metadata)
        rows.append(Described(name, _kind_name(kind), default, doc, limits, about))
    return rows


def shown(value: Any) -> str:
    """Returns a value as it is written in Python; of a long one the beginning."""
    try:
        text = repr(value)
    except ValueError:  # Of whole numbers with more than 4300 digits Python tells none.
        return "(a number too long to write)"
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def suggest(name: str, cls: type) -> str:
    """Returns `"; did you mean 'a.b'?"` for the field of `cls` nearest to the unknown `name`.

    That is one of the same name in another group, else the nearest in the group that was named,
    else the nearest of all; where none is near, it lists the names in that group.
    """
    last = lambda each: each.split(".")[-1]  # noqa: E731
    group, names = name.removesuffix(last(name)), list(_names(cls))
    beside = [each for each in names if each.removesuffix(last(each)) == group]
    for candidates, cutoff in ((names, 1.0), (beside, 0.6), (names, 0.6)):
        close = difflib.get_close_matches(last(name), map(last, candidates), n=1, cutoff=cutoff)
        if close:
            found = next(each for each in candidates if last(each) == close[0])
            return f"; did you mean {found!r}?"
    return f"; known: {', '.join(sorted(map(last, beside)))}"


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


def _build(
    cls: type, values: Mapping[Any, Any], prefix: str, faults: list[str], whole: type
) -> Any:
    """Returns the part of a `whole` configuration that lies under `prefix`, or None with faults."""
    hints = typing.get_type_hints(cls)
    fields = {item.name: item for item in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            text = prefix + (name if isinstance(name, str) and name.isprintable() else repr(name))
            faults.append(f"{text} is unknown{suggest(text, whole)}")
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
                arguments[name] = _build(hints[name], value, where + ".", faults, whole)
            else:
                fields_there = ", ".join(item.name for item in dataclasses.fields(hints[name]))
                faults.append(
                    f"{where} is a group of fields, not {shown(value)}; its: {fields_there}"
                )
            continue
        fits, value = _coerce(value, hints[name])
        if fits:
            arguments[name] = value
            faults += _range_faults(where, value, item.metadata)
        else:
            faults.append(f"{where}={shown(value)} is not of type {_kind_name(hints[name])}")
    if len(faults) > before:
        return None
    try:
        return cls(**arguments)
    except ConfigError as error:
        faults.append(str(error))
        return None


def _names(cls: type, prefix: str = "") -> Iterator[str]:
    """Yields the dotted names of fields and of groups."""
    for name, kind in typing.get_type_hints(cls).items():
        yield prefix + name
        if dataclasses.is_dataclass(kind):
            yield from _names(kind, f"{prefix}{name}.")


def _coerce(value: Any, kind: Any) -> tuple[bool, Any]:
    """Returns whether `value` is of type `kind`, and the value in exactly that type."""
    if typing.get_origin(kind) is tuple:
        element = typing.get_args(kind)[0]
        if element is str and isinstance(value, str):
            value = [entry.strip() for entry in value.split(",")]
        if not isinstance(value, list | tuple):
            return False, value
        pairs = [_coerce(entry, element) for entry in value]
        return all(fits for fits, _ in pairs), tuple(entry for _, entry in pairs)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return True, float(value)
        except OverflowError:
            return False, value
    if kind is int and isinstance(value, bool):
        return False, value
    return isinstance(value, kind), value


def _range_faults(where: str, value: Any, limits: Mapping[str, Any]) -> list[str]:
    faults = []
    for entry in value if isinstance(value, tuple) else (value,):
        if limits["choices"] and entry not in limits["choices"]:
            faults.append(f"{where}={shown(entry)}{nearest(entry, map(str, limits['choices']))}")
        computed = _as_computed(entry) if isinstance(entry, float) else entry
        for name, holds in _BOUNDS.items():
            bound = limits[name]
            if bound is None and name == "at_most" and type(entry) is int:
                bound = MAX_COUNT
            if bound is None or (holds(entry, bound) and holds(computed, bound)):
                continue
            also = f", and is {computed!r} in 32 bits" if holds(entry, bound) else ""
            words = name.replace("_", " ")
            faults.append(f"{where}={shown(entry)} must be {words} {bound}{also}")
        if isinstance(entry, float) and not math.isfinite(computed):
            also = " in 32 bits" if math.isfinite(entry) else ""
            faults.append(f"{where}={entry!r} must be finite{also}")
    return faults


_BOUNDS = {
    "at_least": operator.ge,
    "above": operator.gt,
    "at_most": operator.le,
    "below": operator.lt,
}


def _as_computed(number: float) -> float:
    """Returns what devices make of a float: they have 32 bits, and take the least ones for 0."""
    rounded = ctypes.c_float(number).value
    return 0.0 if abs(rounded) < 2.0**-126 else rounded


def _kind_name(kind: Any) -> str:
    if isinstance(kind, types.GenericAlias):
        return f"tuple of {typing.get_args(kind)[0].__name__}"
    return kind.__name__


def _limits(metadata: Mapping[str, Any]) -> str:
    """Returns the range or the choices of a field in words."""
    if metadata["choices"]:
        return "one of " + ", ".join(str(choice) or "''" for choice in metadata["choices"])
    least, most = metadata["at_least"], metadata["at_most"]
    if least is not None and most is not None:
        return f"{least} to {most}"
    bounds = {name: metadata[name] for name in ("at_least", "above", "at_most", "below")}
    return ", ".join(
        f"{name.replace('_', ' ')} {bound}" for name, bound in bounds.items() if bound is not None
    )
