"""Specifications from other libraries' configurations, and from shapes where there is none."""

import math

import numpy as np
import pytest

from unipt_jax.core.errors import ConversionError
from unipt_jax.interop import foreign_specs, names
from unipt_jax.models import clip

TOWER = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 24,
}
IMAGE = {**TOWER, "image_size": 12, "patch_size": 3}
TEXT = {**TOWER, "vocab_size": 20, "max_position_embeddings": 9, "eos_token_id": 19}


def clip_config(image=None, text=None, **others):
    return {
        "model_type": "clip",
        "projection_dim": 8,
        "vision_config": {**IMAGE, **(image or {})},
        "text_config": {**TEXT, **(text or {})},
        **others,
    }


def describe(
    config=None, *, shapes=None, weights=(), activation="", end_token=None, open_clip=None, **others
):
    """A description of what the arguments say; `others` are of the image processor."""
    return foreign_specs.Description(
        config=config or {},
        open_clip_config=open_clip or {},
        image_processor=others,
        end_token=end_token,
        weights=weights,
        params={path: np.broadcast_to(0, shape) for path, shape in (shapes or {}).items()},
        activation=activation,
    )


def hugging_face(config, **others):
    architecture = foreign_specs.HUGGING_FACE[config["model_type"]]
    return architecture.spec(describe(config, **others))


# -------------------------------------------------------------------------------- architectures


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"model_type": "roberta"}, "roberta"),
        ({"model_type": "siglip"}, "siglip"),
        ({"model_type": "clip_vision_model"}, "clip_vision_model"),
        ({"architecture": "resnet50", "pretrained_cfg": {}}, "resnet50"),
        ({"architecture": "deit3_small_patch16_224"}, "deit3_small"),
        ({"model_type": None}, "None"),
    ],
)
def test_other_architectures_are_named_with_those_supported(config, kind):
    with pytest.raises(ConversionError, match=rf"{kind}.* not supported; .*bert, clip.*timm.*CLIP"):
        foreign_specs.require_supported(config)


@pytest.mark.parametrize(
    "config",
    [{}, {"batch_size": 3}, {"architecture": "vit_base_patch16_224"}, {"model_type": "unipt"}],
)
def test_nothing_else_is_refused(config):
    foreign_specs.require_supported(config)


@pytest.mark.parametrize(
    ("weights", "config", "table"),
    [
        (["visual.conv1.weight", "logit_scale"], {}, "OPENAI_CLIP"),
        (["module.visual.conv1.weight"], {"model_type": "clip"}, "OPENAI_CLIP"),
        (["module.patch_embed.proj.weight"], {"batch_size": 3}, "TIMM_VIT"),
        (["embeddings.cls_token"], {"model_type": "deit"}, "VIT"),
        (["visual_projection.weight"], {"model_type": "clip"}, "CLIP"),
    ],
)
def test_names_tell_before_the_configuration(weights, config, table):
    """P17: a configuration may lie there by chance."""
    assert foreign_specs.recognise(weights, config).table is getattr(names, table)


@pytest.mark.parametrize(
    ("weights", "config", "fault"),
    [
        (["visual.conv1.weight", "visual.layer1.0.conv1.weight"], {}, "ResNet is not supported"),
        (["conv1.weight"], {}, r"no config\.json .* called conv1\.weight .*; supported are"),
        (["roberta.x"], {"model_type": "roberta"}, "'roberta' is not supported"),
    ],
)
def test_what_nothing_tells(weights, config, fault):
    with pytest.raises(ConversionError, match=fault):
        foreign_specs.recognise(weights, config)


# --------------------------------------------------------------------------------- Hugging Face


def test_each_tower_has_its_own_values():
    spec = hugging_face(
        clip_config(
            {"layer_norm_eps": 1e-3, "hidden_act": "gelu", "num_hidden_layers": 2},
            {"layer_norm_eps": 1e-12, "hidden_act": "gelu_new", "intermediate_size": 7},
        )
    )
    assert (spec.image.layer_norm_eps, spec.text.layer_norm_eps) == (1e-3, 1e-12)
    assert (spec.image.activation, spec.text.activation) == ("gelu", "gelu_tanh")
    assert (spec.image.layers, spec.text.layers) == (2, 3)
    assert (spec.image.mlp_size, spec.text.mlp_size) == (24, 7)
    assert (spec.embedding_dim, spec.pooling, spec.temperature) == (8, "class", "learned")


def test_what_a_file_leaves_out_is_as_hugging_face_has_it():
    spec = hugging_face({"model_type": "clip", "text_config": {}, "vision_config": {}})
    assert (spec.image.image_size, spec.image.patch_size) == ((224, 224), 32)
    assert (spec.text.layer_norm_eps, spec.text.activation) == (1e-5, "quick_gelu")
    spec = hugging_face({"model_type": "bert"})
    assert (spec.vocab_size, spec.layer_norm_eps, spec.dropout) == (30522, 1e-12, 0.1)


@pytest.mark.parametrize(("size", "want"), [(12, (12, 12)), ((12, 6), (12, 6)), ([6, 12], (6, 12))])
def test_image_size_is_one_number_or_height_and_width(size, want):
    spec = hugging_face({"model_type": "vit", **IMAGE, "image_size": size, "patch_size": [3, 3]})
    assert (spec.image_size, spec.patch_size) == (want, 3)


@pytest.mark.parametrize("distilled", [True, False])
@pytest.mark.parametrize("kind", ["vit", "deit"])
def test_a_distillation_token_is_one_that_is_there(kind, distilled):
    shapes = {"image_encoder/distillation_token": (16,)} if distilled else {}
    spec = hugging_face({"model_type": kind, **IMAGE}, shapes=shapes)
    assert spec.distillation_token is distilled


@pytest.mark.parametrize(
    ("config", "faults"),
    [
        (
            clip_config({"num_channels": 1, "hidden_act": "relu"}, {"hidden_act": "silu"}),
            [r"num_channels=1", r"hidden_act='relu' \(supported: gelu, gelu_new", "'silu'"],
        ),
        (
            {"model_type": "vit", **IMAGE, "qkv_bias": False, "hidden_act": "relu"},
            ["qkv_bias=False", "relu"],
        ),
        (
            {
                "model_type": "bert",
                "position_embedding_type": "relative_key",
                "is_decoder": True,
                "hidden_act": "relu",
            },
            ["relative_key", "is_decoder=True", "relu"],
        ),
        ({"model_type": "vit", **IMAGE, "patch_size": [3, 4]}, [r"\[3, 4\] is not square"]),
        ({"model_type": "vit", **IMAGE, "hidden_size": "wide"}, ["config.json: .*hidden_size"]),
    ],
)
def test_all_that_is_not_supported_is_told_at_once(config, faults):
    with pytest.raises(ConversionError) as caught:
        hugging_face(config)
    for fault in faults:
        assert caught.match(fault)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("configured", "vocab_size", "in_tokenizer", "want"),
    [
        (49407, 49408, None, 49407),
        (49407, 49409, None, 49407),
        (5, 20, 7, 5),
        (2, 49408, None, 49407),
        (2, 49409, None, 49407),  # [MASK] was added.
        (2, 20, None, 19),
        (2, 20, 7, 7),
        (2, 20, 0, 0),
    ],
)
def test_the_end_of_a_text(configured, vocab_size, in_tokenizer, want):
    """P11."""
    config = clip_config(text={"eos_token_id": configured, "vocab_size": vocab_size})
    assert hugging_face(config, end_token=in_tokenizer).text.end_token == want


@pytest.mark.parametrize(
    ("value", "want"),
    [(2.0, math.exp(2)), (4.6052, 100.0), (1e9, 3.4028235e38), (-1e9, 1.1754944e-38)],
)
def test_the_logit_scale_is_positive_and_finite(value, want):
    described = describe(clip_config())
    described.params["logit_scale"] = np.array(value, np.float32)
    spec = foreign_specs.HUGGING_FACE["clip"].spec(described)
    assert spec.logit_scale == pytest.approx(want, rel=1e-3)


# --------------------------------------------------------------------------------------- pixels


@pytest.mark.parametrize(
    ("config", "mean"),
    [
        (clip_config(), clip.MEAN),
        ({"model_type": "vit", **IMAGE}, (0.5, 0.5, 0.5)),
        ({"model_type": "deit", **IMAGE}, (0.485, 0.456, 0.406)),
    ],
)
def test_pixels(config, mean):
    def found(**processor):
        spec = hugging_face(config, **processor)
        image = getattr(spec, "image", spec)
        return image.mean, image.std

    values = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    assert found()[0] == mean
    assert found(**values, rescale_factor=0.00392156862745098) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert found(**values, do_normalize=False) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("processor", "fault"),
    [
        ({"rescale_factor": 1 / 127.5}, "only 1/255"),
        ({"do_rescale": False}, "multiplies pixels by 1;"),
        ({"image_mean": [0.5]}, r"mean=\[0\.5\]"),
        ({"image_std": 0.5}, "std=0.5"),
    ],
)
def test_pixels_of_another_kind(processor, fault):
    with pytest.raises(ConversionError, match=fault):
        hugging_face(clip_config(), **processor)


# ------------------------------------------------------------------------------ OpenAI, open_clip


def shapes(width=128, positions=10, side=3, channels=3, text_width=64):
    """Those of a CLIP with 2 and 3 blocks."""
    towers = {"image_encoder": (2, width), "text_encoder": (3, text_width)}
    return {
        "image_encoder/patch_embedding/kernel": (side, side, channels, width),
        "image_encoder/position_embedding": (positions, width),
        "text_encoder/word_embeddings": (30, text_width),
        "text_encoder/position_embeddings": (7, text_width),
        "text_head/projection/kernel": (text_width, 11),
        **{
            f"{encoder}/layers_{i}/mlp/fc1/kernel": (size, 5 * size)
            for encoder, (layers, size) in towers.items()
            for i in range(layers)
        },
    }


def openai(shapes, **others):
    architecture = foreign_specs.recognise(["visual.conv1.weight"], {})
    return architecture.spec(describe(shapes=shapes, **others))


def test_shapes_tell_what_openai_files_do_not():
    spec = openai(shapes(), weights=["input_resolution"])
    assert spec.image == clip.vision_spec(
        image_size=(9, 9), patch_size=3, hidden_size=128, layers=2, heads=2, mlp_size=640
    )
    assert spec.text == clip.ClipTextSpec(
        30, hidden_size=64, layers=3, heads=1, mlp_size=320, max_positions=7, end_token=29
    )
    assert spec.embedding_dim == 11


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"positions": 9}, "9 position embeddings.* square"),
        ({"width": 100}, "image_encoder is 100 wide"),
        ({"text_width": 1280}, "text_encoder is 1280 wide"),
        ({"channels": 1}, "1 channels"),
    ],
)
def test_shapes_that_do_not_tell(changed, fault):
    """A table of positions of no square tells no grid (P20)."""
    with pytest.raises(ConversionError, match=fault):
        openai(shapes(**changed), activation="gelu")


@pytest.mark.parametrize(
    "path",
    # Of the blocks, the first alone tells the MLP's size.
    [path for path in shapes() if "/layers_" not in path or "/layers_0/" in path],
)
def test_a_missing_weight_that_tells_the_shape(path):
    rest = shapes()
    del rest[path]
    with pytest.raises(ConversionError, match=rf"{path}.* missing"):
        openai(rest, activation="gelu")


@pytest.mark.parametrize(
    ("weights", "activation", "want"),
    [
        (["input_resolution"], "", "quick_gelu"),
        (["module.input_resolution"], "", "quick_gelu"),
        ([], "gelu", "gelu"),
        ([], "quick_gelu", "quick_gelu"),
    ],
)
def test_the_activation_of_openai_and_open_clip(weights, activation, want):
    spec = openai(shapes(), weights=weights, activation=activation)
    assert (spec.image.activation, spec.text.activation) == (want, want)


def test_an_open_clip_state_dict_does_not_tell_its_activation():
    """P13."""
    with pytest.raises(ConversionError, match=r"activation=quick_gelu .*activation=gelu"):
        openai(shapes())


OPEN_CLIP = {"embed_dim": 8, "vision_cfg": {"image_size": 32}, "text_cfg": {"width": 64}}


def test_open_clip_leaves_out_its_defaults():
    spec = openai({}, open_clip={"model_cfg": OPEN_CLIP})
    assert spec.image == clip.vision_spec(
        image_size=(32, 32),
        patch_size=16,
        hidden_size=768,
        layers=12,
        heads=12,
        mlp_size=3072,
        activation="gelu",
    )
    text = spec.text
    assert (text.hidden_size, text.heads, text.mlp_size, text.end_token) == (64, 8, 256, 49407)


def test_open_clip_towers_of_another_kind_are_named():
    model = {
        **OPEN_CLIP,
        "init_logit_bias": -10,
        "vision_cfg": {"timm_model_name": "vit_base", "attentional_pool": True, "width": 64},
        "text_cfg": {"hf_model_name": "roberta-base"},
    }
    with pytest.raises(ConversionError) as caught:
        openai({}, open_clip={"model_cfg": model})
    for name in (
        "model_cfg.init_logit_bias",
        "vision_cfg.timm_model_name",
        "vision_cfg.attentional_pool",
        "text_cfg.hf_model_name",
    ):
        assert name in str(caught.value)
    assert "width" not in str(caught.value)


# ---------------------------------------------------------------------------------------- timm


def timm(shapes, config=None):
    architecture = foreign_specs.recognise(["patch_embed.proj.weight"], {})
    return architecture.spec(describe(config, shapes=shapes))


def test_timm():
    spec = timm(shapes())
    assert (spec.layer_norm_eps, spec.activation, spec.heads) == (1e-6, "gelu", 2)
    assert (spec.distillation_token, spec.mean) == (False, (0.5, 0.5, 0.5))
    spec = timm({**shapes(positions=11), "image_encoder/distillation_token": (128,)})
    assert (spec.distillation_token, spec.image_size) == (True, (9, 9))
    assert spec.mean == (0.485, 0.456, 0.406)


def test_timm_says_null_for_what_it_leaves_out():
    nothing = {"model_args": None, "pretrained_cfg": None}
    assert timm(shapes(), nothing) == timm(shapes())
    for name in nothing:
        with pytest.raises(ConversionError, match=rf"{name}=\[1\], where an object"):
            timm(shapes(), {name: [1]})


def test_timm_variants_that_a_configuration_tells():
    pixels = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    for config in ({"pretrained_cfg": pixels}, pixels):
        assert timm(shapes(), config).std == (0.4, 0.5, 0.6)
    with pytest.raises(ConversionError, match=r"model_args\.act_layer.*model_args\.num_heads"):
        timm(shapes(), {"model_args": {"num_heads": 3, "img_size": 9, "act_layer": "quick_gelu"}})
