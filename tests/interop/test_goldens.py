"""Names and shapes that timm and open_clip themselves have: goldens/make.py wrote them."""

import json
from pathlib import Path

import numpy as np
import pytest

from unipt_jax.core.trees import flatten
from unipt_jax.interop import huggingface
from unipt_jax.models import clip, specs
from unipt_jax.models.clip import ClipTextSpec
from unipt_jax.models.dual_encoder import DualEncoderSpec
from unipt_jax.models.vit import VisionSpec

GOLDENS = Path(__file__).parent / "goldens"
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def vit(width, **others):
    sizes = {"layers": 12, "heads": width // 64, "mlp_size": 4 * width}
    return VisionSpec((224, 224), 16, width, **sizes, **others)


def openai(patch_size, activation):
    image = {"hidden_size": 768, "layers": 12, "heads": 12, "mlp_size": 3072}
    text = {"hidden_size": 512, "layers": 12, "heads": 8, "mlp_size": 2048}
    return DualEncoderSpec(
        image=clip.vision_spec(
            image_size=(224, 224), patch_size=patch_size, activation=activation, **image
        ),
        text=ClipTextSpec(49408, max_positions=77, end_token=49407, activation=activation, **text),
        embedding_dim=512,
        pooling="class",
        pool_padding=False,
        mlm=False,
        temperature="learned",
        logit_scale=1.0,
    )


MODELS = {
    "timm_deit_small_patch16_224": vit(384),
    "timm_deit_small_distilled_patch16_224": vit(384, distillation_token=True, **IMAGENET),
    "timm_vit_base_patch16_224": vit(768),
    "open_clip_ViT-B-32-quickgelu": openai(32, "quick_gelu"),
    "open_clip_ViT-B-16": openai(16, "gelu"),
}


def weights(name):
    """Zeros of the golden names and shapes; they take no memory."""
    golden = json.loads((GOLDENS / f"{name}.json").read_text())
    return {
        template.replace("{i}", str(number)): np.broadcast_to(np.float32(0), shape)
        for template, shape in golden["shapes"].items()
        for number in range(golden["blocks"] if "{i}" in template else 1)
    }


@pytest.mark.parametrize("name", MODELS)
def test_each_is_the_model_that_it_is_named_after(name, tmp_path, monkeypatch):
    """P16: every weight has its place, and every parameter its weight."""
    have, file = weights(name), tmp_path / "weights.pt"
    file.touch()
    monkeypatch.setattr(huggingface.weight_files, "read", lambda _: have)
    spec = MODELS[name]
    activation = spec.image.activation if name.startswith("open_clip") else ""
    pretrained = huggingface.load(str(file), activation=activation)
    assert pretrained.spec == spec
    shapes = {path: leaf.shape for path, leaf in flatten(specs.abstract_params(spec)).items()}
    assert {path: leaf.shape for path, leaf in flatten(pretrained.params).items()} == shapes
