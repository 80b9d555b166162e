"""Small models of transformers with random weights, as its files and as others' state dicts.

Configurations keep to sizes at which a missing transposition is legal: square matrices, patches as
wide as they have channels.
"""

import contextlib
import tempfile

import numpy as np
import pytest
from hypothesis import strategies as st

from unipt_jax.interop import huggingface

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

EPSILONS = [1e-12, 1e-8, 1e-6, 1e-5, 1e-3]
ACTIVATIONS = ["gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu"]


@st.composite
def towers(draw):
    """The part of a configuration that every transformer has."""
    heads = draw(st.sampled_from([1, 2, 4]))
    return {
        "hidden_size": heads * draw(st.sampled_from([8, 12])),
        "num_attention_heads": heads,
        "num_hidden_layers": draw(st.integers(1, 2)),
        "intermediate_size": draw(st.sampled_from([8, 16, 40])),
        "layer_norm_eps": draw(st.sampled_from(EPSILONS)),
        "hidden_act": draw(st.sampled_from(ACTIVATIONS)),
    }


def each_eps_and_activation(test):
    """Runs a test for every pair; what Hypothesis draws would leave most of them out."""
    for name, values in (("eps", EPSILONS), ("activation", ACTIVATIONS)):
        test = pytest.mark.parametrize(name, values)(test)
    return test


def tower(eps, activation, hidden_size=16):
    """One configuration of `towers`, with square matrices throughout."""
    return {
        "hidden_size": hidden_size,
        "num_attention_heads": hidden_size // 64 or 2,
        "num_hidden_layers": 2,
        "intermediate_size": hidden_size,
        "layer_norm_eps": eps,
        "hidden_act": activation,
    }


def randomised(model, seed=0):
    """Gives every weight, LayerNorms and biases too, a value that is nowhere else."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@contextlib.contextmanager
def saved(model):
    """A directory as transformers writes it."""
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        yield directory


def reload(model, **arguments):
    """What `huggingface.load` makes of a model of transformers."""
    with saved(model) as directory:
        return huggingface.load(directory, **arguments)


def arrays(model):
    """A model's weights under the names in its file."""
    from safetensors.numpy import load_file

    with saved(model) as directory:
        return load_file(f"{directory}/model.safetensors")


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def openai(weights):
    """The state dict that OpenAI's and open_clip's code has for a CLIP of transformers."""
    renamed = {
        "logit_scale": weights["logit_scale"],
        "visual.class_embedding": weights["vision_model.embeddings.class_embedding"],
        "visual.positional_embedding": weights["vision_model.embeddings.position_embedding.weight"],
        "visual.conv1.weight": weights["vision_model.embeddings.patch_embedding.weight"],
        "visual.proj": weights["visual_projection.weight"].T,
        "token_embedding.weight": weights["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": weights["text_model.embeddings.position_embedding.weight"],
        "text_projection": weights["text_projection.weight"].T,
    }
    norms = {
        "visual.ln_pre": "vision_model.pre_layrnorm",
        "visual.ln_post": "vision_model.post_layernorm",
        "ln_final": "text_model.final_layer_norm",
    }
    parts = {
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
        "attn.out_proj": "self_attn.out_proj",
    }
    for kind in ("weight", "bias"):
        for theirs, ours in norms.items():
            renamed[f"{theirs}.{kind}"] = weights[f"{ours}.{kind}"]
        for tower, side in (("visual.transformer", "vision_model"), ("transformer", "text_model")):
            for number in blocks(weights, f"{side}.encoder.layers"):
                theirs, ours = f"{tower}.resblocks.{number}", f"{side}.encoder.layers.{number}"
                renamed[f"{theirs}.attn.in_proj_{kind}"] = np.concatenate(
                    [weights[f"{ours}.self_attn.{name}_proj.{kind}"] for name in "qkv"]
                )
                for part, our_part in parts.items():
                    renamed[f"{theirs}.{part}.{kind}"] = weights[f"{ours}.{our_part}.{kind}"]
    return {name: weight.copy(order="C") for name, weight in renamed.items()}


def timm(weights):
    """The state dict that timm has for a ViT or DeiT of transformers."""
    renamed = {
        "cls_token": weights["embeddings.cls_token"],
        "pos_embed": weights["embeddings.position_embeddings"],
    }
    if "embeddings.distillation_token" in weights:
        renamed["dist_token"] = weights["embeddings.distillation_token"]
    parts = {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    for kind in ("weight", "bias"):
        renamed[f"norm.{kind}"] = weights[f"layernorm.{kind}"]
        projection = f"embeddings.patch_embeddings.projection.{kind}"
        renamed[f"patch_embed.proj.{kind}"] = weights[projection]
        for number in blocks(weights, "encoder.layer"):
            theirs, ours = f"blocks.{number}", f"encoder.layer.{number}"
            renamed[f"{theirs}.attn.qkv.{kind}"] = np.concatenate(
                [
                    weights[f"{ours}.attention.attention.{name}.{kind}"]
                    for name in ("query", "key", "value")
                ]
            )
            for part, our_part in parts.items():
                renamed[f"{theirs}.{part}.{kind}"] = weights[f"{ours}.{our_part}.{kind}"]
    return renamed


def blocks(weights, prefix):
    """Numbers of the blocks that a state dict has under `prefix`."""
    places = len(prefix.split("."))
    return {name.split(".")[places] for name in weights if name.startswith(f"{prefix}.")}
