"""Tables of names: what each layout means, worked out by hand, and that both directions agree."""

import itertools
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from hypothesis import given, settings
from hypothesis import strategies as st

from unipt_jax.core.errors import ConversionError
from unipt_jax.core.trees import flatten
from unipt_jax.interop import names
from unipt_jax.models import specs
from unipt_jax.models.bert import TextSpec
from unipt_jax.models.clip import ClipTextSpec, vision_spec
from unipt_jax.models.dual_encoder import DualEncoderSpec
from unipt_jax.models.vit import VisionSpec

TABLES = {
    name: getattr(names, name)
    for name in ("UNIPT", "CLIP", "VIT", "BERT", "TIMM_VIT", "OPENAI_CLIP")
}
each_table = pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)


def nested(params):
    return unflatten_dict({tuple(path.split("/")): leaf for path, leaf in params.items()})


def counting(*shape):
    """An array whose every value tells its place."""
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


# ------------------------------------------------------------------------------ layouts by hand

MATRIX = counting(4, 4)


@pytest.mark.parametrize(
    ("table", "foreign", "flax", "weight", "leaf"),
    [
        ("CLIP", "visual_projection.weight", "image_head/projection/kernel", MATRIX, MATRIX.T),
        ("CLIP", "text_projection.weight", "text_head/projection/kernel", MATRIX, MATRIX.T),
        ("OPENAI_CLIP", "visual.proj", "image_head/projection/kernel", MATRIX, MATRIX),
        ("OPENAI_CLIP", "text_projection", "text_head/projection/kernel", MATRIX, MATRIX),
        ("OPENAI_CLIP", "token_embedding.weight", "text_encoder/word_embeddings", MATRIX, MATRIX),
        (
            "CLIP",
            "vision_model.encoder.layers.11.mlp.fc2.weight",
            "image_encoder/layers_11/mlp/fc2/kernel",
            MATRIX,
            MATRIX.T,
        ),
        (
            "VIT",
            "embeddings.cls_token",
            "image_encoder/class_token",
            counting(1, 1, 5),
            counting(5),
        ),
        (
            "TIMM_VIT",
            "pos_embed",
            "image_encoder/position_embedding",
            counting(1, 1, 5),
            counting(1, 5),
        ),
        ("UNIPT", "logit_scale", "logit_scale", np.array(2.0), np.array(2.0)),
        ("UNIPT", "mlm_head.dense.weight", "mlm_head/dense/kernel", MATRIX, MATRIX.T),
        (
            "UNIPT",
            "text_encoder.layer_norm.weight",
            "text_encoder/layer_norm/scale",
            counting(3),
            counting(3),
        ),
    ],
)
def test_layouts(table, foreign, flax, weight, leaf):
    converted = names.to_flax({foreign: weight}, TABLES[table])
    assert (converted.unused, converted.faults) == ((), ())
    assert converted.origins == {flax: foreign}
    np.testing.assert_array_equal(converted.params[flax], leaf)
    back = names.from_flax(nested({flax: leaf}), TABLES[table])
    np.testing.assert_array_equal(back[foreign], weight)


@pytest.mark.parametrize(
    ("table", "foreign"),
    [
        ("CLIP", "vision_model.embeddings.patch_embedding.weight"),
        ("VIT", "embeddings.patch_embeddings.projection.weight"),
        ("TIMM_VIT", "patch_embed.proj.weight"),
        ("OPENAI_CLIP", "visual.conv1.weight"),
        ("UNIPT", "image_encoder.patch_embedding.weight"),
    ],
)
def test_a_convolution(table, foreign):
    """P19: OIHW to HWIO, where every side is 3."""
    weight = counting(3, 3, 3, 3)
    kernel = names.to_flax({foreign: weight}, TABLES[table]).params[
        "image_encoder/patch_embedding/kernel"
    ]
    for out, channel, row, column in itertools.product(range(3), repeat=4):
        assert kernel[row, column, channel, out] == weight[out, channel, row, column]


@pytest.mark.parametrize(
    ("table", "prefix", "encoder"),
    [
        ("TIMM_VIT", "blocks.2.attn.qkv.", "image_encoder"),
        ("OPENAI_CLIP", "visual.transformer.resblocks.2.attn.in_proj_", "image_encoder"),
        ("OPENAI_CLIP", "transformer.resblocks.2.attn.in_proj_", "text_encoder"),
    ],
)
def test_query_key_and_value_in_one(table, prefix, encoder):
    weight, bias = counting(6, 2), counting(6)
    weights = {f"{prefix}weight": weight, f"{prefix}bias": bias}
    params = names.to_flax(weights, TABLES[table]).params
    for part, name in enumerate("qkv"):
        rows = slice(2 * part, 2 * part + 2)
        scope = f"{encoder}/layers_2/self_attn/{name}_proj"
        np.testing.assert_array_equal(params[f"{scope}/kernel"], weight[rows].T)
        np.testing.assert_array_equal(params[f"{scope}/bias"], bias[rows])
    back = names.from_flax(nested(params), TABLES[table])
    np.testing.assert_array_equal(back[f"{prefix}weight"], weight)
    np.testing.assert_array_equal(back[f"{prefix}bias"], bias)


# -------------------------------------------------------------------------------- whole tables


@each_table
def test_no_name_is_there_twice(table):
    flax = [row.flax for row in table.rows]
    foreign = [(row.foreign, row.layout.part) for row in table.rows]
    assert len(set(flax)) == len(flax)
    assert len(set(foreign)) == len(foreign)


@settings(max_examples=10)
@given(st.data())
@each_table
def test_reads_back_what_it_reads(table, data):
    """Every row, over sizes and blocks."""
    size = st.integers(1, 3)
    layers = data.draw(size)
    sources = {}
    for row in table.rows:
        axes = [data.draw(size) for _ in row.layout.axes]
        if row.layout.part is not None:
            axes[0] *= 3
        for number in range(layers):
            weight = np.random.default_rng(len(sources)).normal(size=[1] * row.layout.ones + axes)
            sources.setdefault(row.foreign.replace("{i}", str(number)), weight)
    converted = names.to_flax(sources, table)
    assert (converted.unused, converted.faults) == ((), ())
    back = names.from_flax(nested(converted.params), table)
    assert back.keys() == sources.keys()
    for name, weight in sources.items():
        np.testing.assert_array_equal(back[name], weight)


IMAGE = {
    "image_size": (6, 9),
    "patch_size": 3,
    "hidden_size": 8,
    "layers": 11,
    "heads": 2,
    "mlp_size": 8,
}
TEXT = {"hidden_size": 8, "layers": 1, "heads": 2, "mlp_size": 8}
IMAGES = {
    "vit": VisionSpec(**IMAGE),
    "deit": VisionSpec(**IMAGE, distillation_token=True),
    "clip": vision_spec(**IMAGE),
}
TEXTS = {
    "bert": TextSpec(5, max_positions=4, **TEXT),
    "clip": ClipTextSpec(5, max_positions=4, end_token=4, **TEXT),
}


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("pooling", ["max", "class"])
def test_unipt_names_all_that_a_dual_encoder_has(image, text, pooling):
    spec = DualEncoderSpec(
        image=IMAGES[image],
        text=TEXTS[text],
        embedding_dim=8,
        pooling=pooling,
        pool_padding=False,
        mlm=pooling == "max",
        temperature="learned",
        logit_scale=10.0,
    )
    shapes = specs.abstract_params(spec)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    want = set()
    for path in flatten(params):
        *scope, last = path.replace("layers_", "layers/").split("/")
        last = {"kernel": "weight", "scale": "weight"}.get(last, last)
        want.add(".".join([*scope, last]))
    weights = names.from_flax(params, names.UNIPT)
    assert weights.keys() == want
    assert weights["image_encoder.patch_embedding.weight"].shape == (8, 3, 3, 3)
    assert weights["logit_scale"].shape == ()
    converted = names.to_flax(weights, names.UNIPT)
    assert {path: leaf.shape for path, leaf in converted.params.items()} == {
        path: leaf.shape for path, leaf in flatten(params).items()
    }


# ------------------------------------------------------------------------------------- exports


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_exports_are_fresh_contiguous_and_of_the_same_type(dtype):
    """P74."""
    leaf = jnp.asarray(counting(2, 3), dtype)
    params = nested(
        {"mlm_head/dense/kernel": leaf, "logit_scale": jnp.asarray(1, dtype)}
        | {f"mlm_head/layer_norm/{name}": np.ones(3, dtype) for name in ("scale", "bias")}
    )
    for weight in names.from_flax(params, names.UNIPT).values():
        assert weight.flags.c_contiguous
        assert weight.flags.writeable
        assert weight.dtype == dtype
        weight[...] = 7
    np.testing.assert_array_equal(leaf, counting(2, 3).astype(dtype))
    assert (params["mlm_head"]["layer_norm"]["scale"] == 1).all()


def test_every_parameter_without_a_row_is_named():
    params = nested(
        {
            "logit_scale": np.zeros(()),
            "image_encoder/adapter/kernel": np.zeros((2, 2)),
            "image_encoder/layers_0/self_attn/q_proj/gamma": np.zeros(2),
        }
    )
    with pytest.raises(ConversionError, match=r"no name for .*adapter/kernel, .*q_proj/gamma"):
        names.from_flax(params, names.CLIP)


def test_a_query_without_its_key_cannot_be_written():
    params = nested({"image_encoder/layers_0/self_attn/q_proj/bias": np.zeros(2)})
    with pytest.raises(ConversionError, match=r"blocks\.0\.attn\.qkv\.bias needs query, key"):
        names.from_flax(params, names.TIMM_VIT)


# -------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("table", "weights", "fault"),
    [
        ("CLIP", {"visual_projection.weight": np.zeros(3)}, r"shape \(3,\) is no \[\?, \?\]"),
        ("VIT", {"embeddings.cls_token": np.zeros((1, 2, 3))}, r"\(1, 2, 3\) is no \[1, 1, \?\]"),
        ("TIMM_VIT", {"blocks.0.attn.qkv.bias": np.zeros(4)}, r"\(4,\) is no \[3 x \?\]"),
        ("CLIP", {"module.logit_scale": np.zeros(()), "logit_scale": np.ones(())}, "twice"),
        (
            "BERT",
            {
                "cls.predictions.decoder.weight": np.zeros((2, 2)),
                "bert.embeddings.word_embeddings.weight": np.zeros((3, 2)),
            },
            r"decoder\.weight differs from bert\.embeddings\.word_embeddings\.weight",
        ),
    ],
)
def test_contradictions_are_told(table, weights, fault):
    (told,) = names.to_flax(weights, TABLES[table]).faults
    assert re.search(fault, told)


@pytest.mark.parametrize(
    ("table", "left_out", "unused"),
    [
        ("CLIP", "text_model.embeddings.position_ids", "vision_model.embeddings.position_idx"),
        ("VIT", "vit.pooler.dense.weight", "embeddings.mask_token"),
        ("VIT", "distillation_classifier.bias", "decoder.0.weight"),
        ("BERT", "pooler.dense.weight", "classifier.weight"),
        ("BERT", "module.bert.embeddings.position_ids", "bert.encoder.layer.0.adapter.weight"),
        ("TIMM_VIT", "head_dist.weight", "blocks.0.ls1.gamma"),
        ("OPENAI_CLIP", "input_resolution", "visual.layer1.0.conv1.weight"),
        ("UNIPT", None, "decoder.weight"),
    ],
)
def test_weights_without_a_place(table, left_out, unused):
    weights = {name: np.zeros(2) for name in (left_out, unused) if name}
    converted = names.to_flax(weights, TABLES[table])
    assert converted.params == {}
    assert converted.unused == (unused,)
