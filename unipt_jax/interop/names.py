"""What each parameter is called, and how it is laid out, in the files of other libraries.

One table an architecture, read forwards to load and backwards to export. A row pairs a Flax path
with a foreign name, in both of which `{i}` is a block's number, and says how the foreign array is
laid out. What older files call a weight, and what they carry besides, stands beside the rows.
"""

import collections
import dataclasses
import fnmatch
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from unipt_jax.core import trees
from unipt_jax.core.errors import ConversionError


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a foreign array holds a parameter.

    Attributes:
        axes: the foreign dimensions in the parameter's order.
        ones: number of dimensions of size one before those.
        part: which third of the first dimension, where query, key and value are one array.
    """

    axes: tuple[int, ...]
    ones: int = 0
    part: int | None = None


SCALAR = Layout(())
VECTOR = Layout((0,))
TOKEN = Layout((0,), ones=2)  # [1, 1, D]
TABLE = Layout((0, 1))
PLANE = Layout((0, 1), ones=1)  # [1, N, D]
LINEAR = Layout((1, 0))  # [out, in], where Flax has [in, out]
CONV = Layout((2, 3, 1, 0))  # OIHW, where Flax has HWIO


@dataclasses.dataclass(frozen=True)
class Row:
    """One parameter: `flax` and `foreign` name it, `layout` is the foreign array's."""

    flax: str
    foreign: str
    layout: Layout


@dataclasses.dataclass(frozen=True)
class Table:
    """One architecture as one library writes it.

    Attributes:
        rows: every parameter that the architecture may have.
        spellings: patterns of names in older files, with what the rows say instead; in order.
        tied: pairs of a weight that is a copy and the one in the rows that it is a copy of.
        left_out: names, with wildcards, of weights that the model has no place for.
    """

    rows: tuple[Row, ...]
    spellings: tuple[tuple[str, str], ...] = ()
    tied: tuple[tuple[str, str], ...] = ()
    left_out: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Converted:
    """What a table made of a file's weights.

    Attributes:
        params: arrays by Flax path, of the file's own type; views where the layout allows.
        origins: the weight that each came from, as the table names it.
        unused: names of weights that the table does not know.
        faults: one clause for each weight that contradicts the table.
    """

    params: dict[str, np.ndarray]
    origins: dict[str, str]
    unused: tuple[str, ...]
    faults: tuple[str, ...]


def to_flax(weights: Mapping[str, np.ndarray], table: Table) -> Converted:
    """Reads a table forwards. Whether all is there, only who knows the model can say."""
    faults = []
    current: dict[str, np.ndarray] = {}
    for name, weight in weights.items():
        spelled = _spell(name, table)
        if spelled in current:
            faults.append(f"{spelled} is there twice, also as {name}")
        current[spelled] = weight
    for copy, original in table.tied:
        if copy in current:
            weight = current.pop(copy)
            if not np.array_equal(weight, current.setdefault(original, weight)):
                faults.append(f"{copy} differs from {original}, to which it is tied in this model")

    rows = collections.defaultdict(list)
    for row in table.rows:
        rows[row.foreign].append(row)
    params, origins, unused = {}, {}, []
    for name, weight in current.items():
        template, number = _template(name)
        if template not in rows:
            if not any(fnmatch.fnmatchcase(name, pattern) for pattern in table.left_out):
                unused.append(name)
            continue
        for row in rows[template]:
            if _fits(weight.shape, row.layout):
                path = row.flax.replace("{i}", number)
                params[path], origins[path] = _read(weight, row.layout), name
            else:
                faults.append(f"{name} of shape {weight.shape} is no {_describe(row.layout)}")
                break
    return Converted(params, origins, tuple(unused), tuple(faults))


def from_flax(params: Any, table: Table) -> dict[str, np.ndarray]:
    """Reads a table backwards.

    Args:
        params: nested parameters, rooted as in `DualEncoder`; NumPy's or JAX's arrays.
        table: names and layouts of the result.

    Returns:
        Fresh C-contiguous arrays of the parameters' own types, by foreign name.

    Raises:
        ConversionError: the table has no row for a parameter, or one of a query, key and value that
            it holds as one array is missing.
    """
    rows = {row.flax: row for row in table.rows}
    weights: dict[str, np.ndarray] = {}
    thirds: dict[str, dict[int, np.ndarray]] = collections.defaultdict(dict)
    unknown = []
    for path, value in trees.flatten(params).items():
        template, number = _template(path)
        if template not in rows:
            unknown.append(path)
            continue
        row = rows[template]
        name, weight = row.foreign.replace("{i}", number), _write(np.asarray(value), row.layout)
        if row.layout.part is None:
            weights[name] = np.array(weight, order="C")
        else:
            thirds[name][row.layout.part] = weight
    faults = [f"no name for {', '.join(unknown)}"] if unknown else []
    faults += [
        f"{name} needs query, key and value" for name, have in thirds.items() if len(have) < 3
    ]
    if faults:
        raise ConversionError(f"parameters cannot be exported: {'; '.join(faults)}")
    for name, have in thirds.items():
        weights[name] = np.concatenate([have[part] for part in range(3)])
    return weights


def _template(name: str) -> tuple[str, str]:
    """Returns `name` with `{i}` in place of a block's number, and the number ("" without one)."""
    number = re.search(r"(?<=[._])\d+(?=[./])", name)
    if number is None:
        return name, ""
    return f"{name[: number.start()]}{{i}}{name[number.end() :]}", number[0]


def _spell(name: str, table: Table) -> str:
    for pattern, replacement in (*_WRAPPERS, *table.spellings):
        name = re.sub(pattern, replacement, name)
    return name


def _fits(shape: tuple[int, ...], layout: Layout) -> bool:
    rest = shape[layout.ones :]
    if shape[: layout.ones] != (1,) * layout.ones or len(rest) != len(layout.axes):
        return False
    return layout.part is None or rest[0] % 3 == 0


def _describe(layout: Layout) -> str:
    shape = ("1",) * layout.ones + ("?",) * len(layout.axes)
    if layout.part is not None:
        shape = ("3 x ?", *shape[1:])
    return f"[{', '.join(shape)}]"


def _read(weight: np.ndarray, layout: Layout) -> np.ndarray:
    weight = weight.reshape(weight.shape[layout.ones :])
    if layout.part is not None:
        weight = np.split(weight, 3)[layout.part]
    return weight.transpose(layout.axes)


def _write(value: np.ndarray, layout: Layout) -> np.ndarray:
    back = tuple(layout.axes.index(axis) for axis in range(len(layout.axes)))
    value = value.transpose(back)
    return value.reshape((1,) * layout.ones + value.shape)


# ------------------------------------------------------------------------------- parts of tables

# torch's DistributedDataParallel puts its name before every weight's.
_WRAPPERS = ((r"^(module\.)+", ""),)


def _linear(flax: str, foreign: str) -> tuple[Row, ...]:
    return (
        Row(f"{flax}/kernel", f"{foreign}.weight", LINEAR),
        Row(f"{flax}/bias", f"{foreign}.bias", VECTOR),
    )


def _convolution(flax: str, foreign: str) -> tuple[Row, ...]:
    return (
        Row(f"{flax}/kernel", f"{foreign}.weight", CONV),
        Row(f"{flax}/bias", f"{foreign}.bias", VECTOR),
    )


def _norm(flax: str, foreign: str) -> tuple[Row, ...]:
    return (
        Row(f"{flax}/scale", f"{foreign}.weight", VECTOR),
        Row(f"{flax}/bias", f"{foreign}.bias", VECTOR),
    )


def _fused(flax: str, weight: str, bias: str) -> tuple[Row, ...]:
    """Query, key and value, in this order in one array."""
    rows = []
    for part, name in enumerate(("q_proj", "k_proj", "v_proj")):
        kernel = dataclasses.replace(LINEAR, part=part)
        rows.append(Row(f"{flax}/{name}/kernel", weight, kernel))
        rows.append(Row(f"{flax}/{name}/bias", bias, dataclasses.replace(VECTOR, part=part)))
    return tuple(rows)


def _block(flax: str, foreign: str, maps: Mapping[str, str]) -> tuple[Row, ...]:
    """A block's linear maps and LayerNorms, each called `maps[our name]` within the block."""
    rows: tuple[Row, ...] = ()
    for ours, theirs in maps.items():
        part = _norm if ours.startswith("layer_norm") else _linear
        rows += part(f"{flax}/{ours}", f"{foreign}.{theirs}")
    return rows


# --------------------------------------------------------------------------- the library's own

# Our names are those of Hugging Face's CLIP.
_OUR_BLOCK = {
    "self_attn/q_proj": "self_attn.q_proj",
    "self_attn/k_proj": "self_attn.k_proj",
    "self_attn/v_proj": "self_attn.v_proj",
    "self_attn/out_proj": "self_attn.out_proj",
    "layer_norm1": "layer_norm1",
    "mlp/fc1": "mlp.fc1",
    "mlp/fc2": "mlp.fc2",
    "layer_norm2": "layer_norm2",
}

UNIPT = Table(
    rows=(
        Row("image_encoder/class_token", "image_encoder.class_token", VECTOR),
        Row("image_encoder/distillation_token", "image_encoder.distillation_token", VECTOR),
        Row("image_encoder/position_embedding", "image_encoder.position_embedding", TABLE),
        *_convolution("image_encoder/patch_embedding", "image_encoder.patch_embedding"),
        *_norm("image_encoder/pre_layer_norm", "image_encoder.pre_layer_norm"),
        *_block("image_encoder/layers_{i}", "image_encoder.layers.{i}", _OUR_BLOCK),
        *_norm("image_encoder/layer_norm", "image_encoder.layer_norm"),
        Row("text_encoder/word_embeddings", "text_encoder.word_embeddings", TABLE),
        Row("text_encoder/position_embeddings", "text_encoder.position_embeddings", TABLE),
        Row("text_encoder/token_type_embeddings", "text_encoder.token_type_embeddings", TABLE),
        *_norm("text_encoder/layer_norm", "text_encoder.layer_norm"),
        *_block("text_encoder/layers_{i}", "text_encoder.layers.{i}", _OUR_BLOCK),
        *_linear("image_head/projection", "image_head.projection"),
        *_linear("text_head/projection", "text_head.projection"),
        *_linear("mlm_head/dense", "mlm_head.dense"),
        *_norm("mlm_head/layer_norm", "mlm_head.layer_norm"),
        Row("mlm_head/bias", "mlm_head.bias", VECTOR),
        Row("logit_scale", "logit_scale", SCALAR),
    ),
)

# --------------------------------------------------------------------------------- Hugging Face

CLIP = Table(
    rows=(
        Row("image_encoder/class_token", "vision_model.embeddings.class_embedding", VECTOR),
        Row(
            "image_encoder/position_embedding",
            "vision_model.embeddings.position_embedding.weight",
            TABLE,
        ),
        Row(
            "image_encoder/patch_embedding/kernel",
            "vision_model.embeddings.patch_embedding.weight",
            CONV,
        ),
        *_norm("image_encoder/pre_layer_norm", "vision_model.pre_layrnorm"),  # Theirs, misspelt.
        *_block("image_encoder/layers_{i}", "vision_model.encoder.layers.{i}", _OUR_BLOCK),
        *_norm("image_encoder/layer_norm", "vision_model.post_layernorm"),
        Row(
            "text_encoder/word_embeddings",
            "text_model.embeddings.token_embedding.weight",
            TABLE,
        ),
        Row(
            "text_encoder/position_embeddings",
            "text_model.embeddings.position_embedding.weight",
            TABLE,
        ),
        *_block("text_encoder/layers_{i}", "text_model.encoder.layers.{i}", _OUR_BLOCK),
        *_norm("text_encoder/layer_norm", "text_model.final_layer_norm"),
        Row("image_head/projection/kernel", "visual_projection.weight", LINEAR),
        Row("text_head/projection/kernel", "text_projection.weight", LINEAR),
        Row("logit_scale", "logit_scale", SCALAR),
    ),
    left_out=("*.position_ids",),
)

# ViT and DeiT differ in DeiT's second token.
VIT = Table(
    rows=(
        Row("image_encoder/class_token", "embeddings.cls_token", TOKEN),
        Row("image_encoder/distillation_token", "embeddings.distillation_token", TOKEN),
        Row("image_encoder/position_embedding", "embeddings.position_embeddings", PLANE),
        *_convolution("image_encoder/patch_embedding", "embeddings.patch_embeddings.projection"),
        *_block(
            "image_encoder/layers_{i}",
            "encoder.layer.{i}",
            {
                "self_attn/q_proj": "attention.attention.query",
                "self_attn/k_proj": "attention.attention.key",
                "self_attn/v_proj": "attention.attention.value",
                "self_attn/out_proj": "attention.output.dense",
                "layer_norm1": "layernorm_before",
                "mlp/fc1": "intermediate.dense",
                "mlp/fc2": "output.dense",
                "layer_norm2": "layernorm_after",
            },
        ),
        *_norm("image_encoder/layer_norm", "layernorm"),
    ),
    spellings=((r"^(vit|deit)\.", ""),),
    left_out=("classifier.*", "pooler.*", "cls_classifier.*", "distillation_classifier.*"),
)

BERT = Table(
    rows=(
        Row("text_encoder/word_embeddings", "bert.embeddings.word_embeddings.weight", TABLE),
        Row(
            "text_encoder/position_embeddings",
            "bert.embeddings.position_embeddings.weight",
            TABLE,
        ),
        Row(
            "text_encoder/token_type_embeddings",
            "bert.embeddings.token_type_embeddings.weight",
            TABLE,
        ),
        *_norm("text_encoder/layer_norm", "bert.embeddings.LayerNorm"),
        *_block(
            "text_encoder/layers_{i}",
            "bert.encoder.layer.{i}",
            {
                "self_attn/q_proj": "attention.self.query",
                "self_attn/k_proj": "attention.self.key",
                "self_attn/v_proj": "attention.self.value",
                "self_attn/out_proj": "attention.output.dense",
                "layer_norm1": "attention.output.LayerNorm",
                "mlp/fc1": "intermediate.dense",
                "mlp/fc2": "output.dense",
                "layer_norm2": "output.LayerNorm",
            },
        ),
        *_linear("mlm_head/dense", "cls.predictions.transform.dense"),
        *_norm("mlm_head/layer_norm", "cls.predictions.transform.LayerNorm"),
        Row("mlm_head/bias", "cls.predictions.bias", VECTOR),
    ),
    spellings=(
        (r"^(embeddings|encoder|pooler)\.", r"bert.\1."),  # BertModel saved by itself
        (r"\.gamma$", ".weight"),  # converted from TensorFlow
        (r"\.beta$", ".bias"),
    ),
    tied=(
        ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        ("cls.predictions.decoder.bias", "cls.predictions.bias"),
    ),
    left_out=("bert.embeddings.position_ids", "bert.pooler.*", "cls.seq_relationship.*"),
)

# --------------------------------------------------------------------- timm, OpenAI, open_clip

TIMM_VIT = Table(
    rows=(
        Row("image_encoder/class_token", "cls_token", TOKEN),
        Row("image_encoder/distillation_token", "dist_token", TOKEN),
        Row("image_encoder/position_embedding", "pos_embed", PLANE),
        *_convolution("image_encoder/patch_embedding", "patch_embed.proj"),
        *_fused(
            "image_encoder/layers_{i}/self_attn",
            "blocks.{i}.attn.qkv.weight",
            "blocks.{i}.attn.qkv.bias",
        ),
        *_block(
            "image_encoder/layers_{i}",
            "blocks.{i}",
            {
                "self_attn/out_proj": "attn.proj",
                "layer_norm1": "norm1",
                "mlp/fc1": "mlp.fc1",
                "mlp/fc2": "mlp.fc2",
                "layer_norm2": "norm2",
            },
        ),
        *_norm("image_encoder/layer_norm", "norm"),
    ),
    left_out=("head.*", "head_dist.*", "pre_logits.*"),
)


def _openai_blocks(flax: str, foreign: str) -> tuple[Row, ...]:
    block = f"{foreign}.resblocks.{{i}}"
    return (
        *_fused(
            f"{flax}/layers_{{i}}/self_attn",
            f"{block}.attn.in_proj_weight",
            f"{block}.attn.in_proj_bias",
        ),
        *_block(
            f"{flax}/layers_{{i}}",
            block,
            {
                "self_attn/out_proj": "attn.out_proj",
                "layer_norm1": "ln_1",
                "mlp/fc1": "mlp.c_fc",
                "mlp/fc2": "mlp.c_proj",
                "layer_norm2": "ln_2",
            },
        ),
    )


OPENAI_CLIP = Table(
    rows=(
        Row("image_encoder/class_token", "visual.class_embedding", VECTOR),
        Row("image_encoder/position_embedding", "visual.positional_embedding", TABLE),
        Row("image_encoder/patch_embedding/kernel", "visual.conv1.weight", CONV),
        *_norm("image_encoder/pre_layer_norm", "visual.ln_pre"),
        *_openai_blocks("image_encoder", "visual.transformer"),
        *_norm("image_encoder/layer_norm", "visual.ln_post"),
        Row("text_encoder/word_embeddings", "token_embedding.weight", TABLE),
        Row("text_encoder/position_embeddings", "positional_embedding", TABLE),
        *_openai_blocks("text_encoder", "transformer"),
        *_norm("text_encoder/layer_norm", "ln_final"),
        # Multiplied from the right, x @ P: [in, out] already, unlike a linear map's weight.
        Row("image_head/projection/kernel", "visual.proj", TABLE),
        Row("text_head/projection/kernel", "text_projection", TABLE),
        Row("logit_scale", "logit_scale", SCALAR),
    ),
    spellings=((r"^text\.", ""),),  # open_clip's CustomTextCLIP
    left_out=("input_resolution", "context_length", "vocab_size"),
)
