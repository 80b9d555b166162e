"""ViT and DeiT of transformers and timm against transformers' torch models."""

import functools
import json

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from tests.parity import references
from tests.parity.references import torch, transformers
from unipt_jax.interop import huggingface, names
from unipt_jax.models.vit import VisionTransformer

KINDS = {
    "vit": (transformers.ViTConfig, transformers.ViTModel),
    "deit": (transformers.DeiTConfig, transformers.DeiTModel),
}


@st.composite
def configurations(draw):
    patch, side = draw(st.integers(1, 4)), st.integers(1, 4)
    return {
        **draw(references.towers()),
        "patch_size": patch,
        "image_size": (patch * draw(side), patch * draw(side)),
    }


def square(eps, activation, image_size, hidden_size=16):
    """As many pixels across a patch as channels, and square matrices throughout."""
    tower = references.tower(eps, activation, hidden_size)
    return {**tower, "patch_size": 3, "image_size": image_size}


def reference(kind, configuration):
    config, model = KINDS[kind]
    return references.randomised(model(config(**configuration), add_pooling_layer=False))


@functools.partial(jax.jit, static_argnums=0)
def tokens(spec, params, images):
    return VisionTransformer(spec).apply({"params": params}, images, train=False)


def assert_same(model, pretrained):
    size = pretrained.spec.image_size
    images = np.random.default_rng(0).uniform(-2, 2, (3, *size, 3)).astype(np.float32)
    with torch.no_grad():
        want = model(torch.tensor(images.transpose(0, 3, 1, 2))).last_hidden_state.numpy()
    have = tokens(pretrained.spec, pretrained.params["image_encoder"], images)
    np.testing.assert_allclose(have, want, rtol=0, atol=1e-4)


@settings(max_examples=6)
@given(st.sampled_from(list(KINDS)), configurations())
@example("vit", square(1e-12, "gelu", (12, 6)))
@example("deit", square(1e-3, "gelu_new", (3, 9)))
@example("vit", square(1e-6, "quick_gelu", 6))
def test_tokens_equal_torch(kind, configuration):
    """Also with 3 channels, patches of 3 pixels and square matrices (P19)."""
    model = reference(kind, configuration)
    assert_same(model, references.reload(model))


@references.each_eps_and_activation
def test_every_eps_and_activation(eps, activation):
    """The epsilon and the activation are those of the configuration (P14)."""
    model = reference("vit", {**square(eps, activation, 6), "num_hidden_layers": 1})
    pretrained = references.reload(model)
    assert pretrained.spec.layer_norm_eps == eps
    assert_same(model, pretrained)


@pytest.mark.parametrize(
    ("kind", "model"),
    [
        ("vit", transformers.ViTForImageClassification),
        ("deit", transformers.DeiTForImageClassification),
        ("deit", transformers.DeiTForImageClassificationWithTeacher),
    ],
)
def test_a_classifier_is_its_encoder(kind, model):
    """Prefixed names, and heads that are left out."""
    config, _ = KINDS[kind]
    classifier = references.randomised(model(config(**square(1e-12, "gelu", (12, 6)))))
    assert_same(getattr(classifier, kind), references.reload(classifier))


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_state_dict_of_timm(kind, tmp_path):
    """As timm's and DeiT's authors distribute them: a wrapped state dict without configuration."""
    model = reference(kind, square(1e-6, "gelu", 9, hidden_size=128))
    weights = {**references.timm(references.arrays(model)), "head.weight": np.zeros((2, 128))}
    tensors = {name: torch.tensor(value) for name, value in weights.items()}
    torch.save({"model": tensors}, tmp_path / "deit.pth")
    assert_same(model, huggingface.load(str(tmp_path / "deit.pth")))


def test_a_directory_of_timm(tmp_path):
    model = reference("vit", square(1e-6, "gelu", 9, hidden_size=128))
    save_file(references.timm(references.arrays(model)), tmp_path / "model.safetensors")
    config = {
        "architecture": "vit_small_patch16_224",
        "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    pretrained = huggingface.load(str(tmp_path))
    assert pretrained.spec.mean == (0.1, 0.2, 0.3)
    assert pretrained.spec.std == (0.4, 0.5, 0.6)
    assert_same(model, pretrained)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("table", ["VIT", "TIMM_VIT"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_back_to_the_same_bits(kind, table, dtype, tmp_path):
    model = reference(kind, square(1e-6, "gelu", 9, hidden_size=64))
    weights = references.arrays(model)
    if table == "TIMM_VIT":
        weights = references.timm(weights)
    else:
        model.config.save_pretrained(tmp_path)
    source = {name: np.asarray(weight, dtype) for name, weight in weights.items()}
    save_file(source, tmp_path / "model.safetensors")
    back = names.from_flax(huggingface.load(str(tmp_path)).params, getattr(names, table))
    assert back.keys() == source.keys()
    for name, weight in source.items():
        assert back[name].dtype == np.float32
        np.testing.assert_array_equal(back[name].astype(dtype), weight)
