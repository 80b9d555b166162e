"""The Vision Transformer against transformers' torch model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unipt_jax.core.errors import ConfigError
from unipt_jax.models.vit import VisionSpec, VisionTransformer

# A patch of 3x3 pixels with 3 channels, a grid of 4x2, square matrices throughout: only values can
# tell swapped dimensions.
SPEC = VisionSpec(
    image_size=(12, 6),
    patch_size=3,
    hidden_size=16,
    layers=2,
    heads=4,
    mlp_size=16,
    layer_norm_eps=1e-3,
)


def _parameters(model):
    weights = {name: value.detach().numpy() for name, value in model.named_parameters()}

    def linear(name):
        return {"kernel": weights[f"{name}.weight"].T, "bias": weights[f"{name}.bias"]}

    def norm(name):
        return {"scale": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}

    patches = "embeddings.patch_embeddings.projection"
    parameters = {
        "class_token": weights["embeddings.cls_token"][0, 0],
        "position_embedding": weights["embeddings.position_embeddings"][0],
        "patch_embedding": {
            "kernel": weights[f"{patches}.weight"].transpose(2, 3, 1, 0),
            "bias": weights[f"{patches}.bias"],
        },
        "layer_norm": norm("layernorm"),
    }
    for index in range(SPEC.layers):
        layer = f"layers.{index}"
        parameters[f"layers_{index}"] = {
            "self_attn": {
                "q_proj": linear(f"{layer}.attention.q_proj"),
                "k_proj": linear(f"{layer}.attention.k_proj"),
                "v_proj": linear(f"{layer}.attention.v_proj"),
                "out_proj": linear(f"{layer}.attention.o_proj"),
            },
            "mlp": {"fc1": linear(f"{layer}.mlp.fc1"), "fc2": linear(f"{layer}.mlp.fc2")},
            "layer_norm1": norm(f"{layer}.layernorm_before"),
            "layer_norm2": norm(f"{layer}.layernorm_after"),
        }
    return jax.tree.map(jnp.asarray, parameters)


def test_tokens_equal_torch():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=SPEC.hidden_size,
        num_hidden_layers=SPEC.layers,
        num_attention_heads=SPEC.heads,
        intermediate_size=SPEC.mlp_size,
        image_size=SPEC.image_size,
        patch_size=SPEC.patch_size,
        layer_norm_eps=SPEC.layer_norm_eps,
    )
    reference = transformers.ViTModel(config, add_pooling_layer=False).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, std=0.4, generator=generator)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 12, 6, 3)).astype(np.float32)
    with torch.no_grad():
        want = reference(torch.tensor(images.transpose(0, 3, 1, 2))).last_hidden_state.numpy()

    variables = {"params": _parameters(reference)}
    have = jax.jit(lambda v, x: VisionTransformer(SPEC).apply(v, x, train=False))(
        variables, jnp.asarray(images)
    )
    assert have.shape == (2, 1 + 4 * 2, 16)
    np.testing.assert_allclose(have, want, atol=1e-4)


def test_swapped_sides_are_named(key):
    with pytest.raises(ValueError, match=r"6x12 .* takes 12x6"):
        VisionTransformer(SPEC).init(key, jnp.zeros((1, 6, 12, 3)), train=False)


@pytest.mark.parametrize("size", [(384, 130), (380, 128), (0, 128)])
def test_image_size_must_be_whole_patches(size):
    with pytest.raises(ConfigError, match=f"image_size={size[0]}x{size[1]}.*patch_size=16"):
        VisionSpec(size, patch_size=16, hidden_size=16, layers=1, heads=4, mlp_size=16)


def test_heads_must_divide_the_width():
    with pytest.raises(ConfigError, match=r"hidden_size=16 .* heads=3"):
        VisionSpec((12, 6), patch_size=3, hidden_size=16, layers=1, heads=3, mlp_size=16)


def test_grid_is_rows_by_columns():
    assert VisionSpec((384, 128), 16, 768, 12, 12, 3072).grid == (24, 8)
