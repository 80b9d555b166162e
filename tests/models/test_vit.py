"""The Vision Transformer against transformers' torch model, and its variations by hand."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unipt_jax.core.errors import ConfigError
from unipt_jax.core.trees import flatten
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


@pytest.fixture(scope="module")
def images():
    pixels = np.random.default_rng(1).uniform(-1, 1, (2, 12, 6, 3))
    return jnp.asarray(pixels, jnp.float32)


def _random(spec, images):
    variables = jax.eval_shape(
        lambda: VisionTransformer(spec).init(jax.random.key(0), images, train=False)
    )
    rng = np.random.default_rng(2)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32),
        nn.unbox(variables)["params"],
    )


def _run(spec, params, images):
    model = VisionTransformer(spec)
    return np.asarray(
        jax.jit(lambda p, x: model.apply({"params": p}, x, train=False))(params, images)
    )


@pytest.mark.parametrize("layers", [0, 1, 3])
@pytest.mark.parametrize("first", [1, 2])
def test_first_tokens_are_those_of_all(images, layers, first):
    """And their gradients: what the last block leaves out must not matter to them."""
    spec = dataclasses.replace(SPEC, layers=layers)
    params, model = _random(spec, images), VisionTransformer(spec)

    def total(params, first, cut):
        tokens = model.apply({"params": params}, images, train=False, first=first)
        return (tokens[:, :cut] ** 3).sum(), tokens

    fast, have = jax.grad(total, has_aux=True)(params, first, None)
    slow, want = jax.grad(total, has_aux=True)(params, None, first)
    assert have.shape == (len(images), first, spec.hidden_size)
    np.testing.assert_allclose(have, want[:, :first], atol=1e-5)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(slow))
    for one, other in zip(jax.tree.leaves(fast), jax.tree.leaves(slow), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * largest)


def _norm(x, params, eps):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
    return x * np.asarray(params["scale"]) + np.asarray(params["bias"])


@pytest.mark.parametrize("distillation_token", [False, True])
@pytest.mark.parametrize("pre_layer_norm", [False, True])
@pytest.mark.parametrize("patch_bias", [False, True])
def test_what_enters_the_blocks_by_hand(images, distillation_token, pre_layer_norm, patch_bias):
    """Without blocks, tokens are sums that NumPy can do."""
    spec = dataclasses.replace(
        SPEC,
        layers=0,
        distillation_token=distillation_token,
        pre_layer_norm=pre_layer_norm,
        patch_bias=patch_bias,
    )
    params = _random(spec, images)
    shapes = {"class_token": (16,), "position_embedding": (spec.prefix + 8, 16)}
    shapes |= {"patch_embedding/kernel": (3, 3, 3, 16)}
    shapes |= {"patch_embedding/bias": (16,)} if patch_bias else {}
    shapes |= {"distillation_token": (16,)} if distillation_token else {}
    for name in ("pre_layer_norm", "layer_norm") if pre_layer_norm else ("layer_norm",):
        shapes |= {f"{name}/scale": (16,), f"{name}/bias": (16,)}
    assert {name: leaf.shape for name, leaf in flatten(params).items()} == shapes

    values = {name: np.asarray(leaf, np.float64) for name, leaf in flatten(params).items()}
    want = np.zeros((2, spec.prefix + 8, 16))
    want[:, 0] = values["class_token"]
    if distillation_token:
        want[:, 1] = values["distillation_token"]
    for row in range(4):
        for column in range(2):
            patch = np.asarray(images)[:, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
            want[:, spec.prefix + 2 * row + column] = np.einsum(
                "bhwc,hwcd->bd", patch, values["patch_embedding/kernel"]
            ) + values.get("patch_embedding/bias", 0.0)
    want += values["position_embedding"]
    if pre_layer_norm:
        want = _norm(want, params["pre_layer_norm"], spec.layer_norm_eps)
    want = _norm(want, params["layer_norm"], spec.layer_norm_eps)
    np.testing.assert_allclose(_run(spec, params, images), want, atol=1e-4)


def test_the_first_norm_takes_out_the_scale_of_what_enters(images):
    """Only before the blocks: a norm at another place would see sums of scaled and other terms."""
    entering = ("class_token", "patch_embedding", "position_embedding")

    def scaled(params):
        return {
            name: jax.tree.map(lambda leaf: 7.0 * leaf, value) if name in entering else value
            for name, value in params.items()
        }

    for pre_layer_norm in (True, False):
        spec = dataclasses.replace(
            SPEC, pre_layer_norm=pre_layer_norm, patch_bias=False, layer_norm_eps=1e-9
        )
        params = _random(spec, images)
        have, want = _run(spec, scaled(params), images), _run(spec, params, images)
        assert np.allclose(have, want, atol=1e-3) == pre_layer_norm


def test_swapped_sides_are_named(key):
    with pytest.raises(ValueError, match=r"6x12 .* takes 12x6"):
        VisionTransformer(SPEC).init(key, jnp.zeros((1, 6, 12, 3)), train=False)


@pytest.mark.parametrize("size", [(384, 130), (380, 128)])
def test_image_size_must_be_whole_patches(size):
    with pytest.raises(ConfigError, match=f"image_size={size[0]}x{size[1]}.*patch_size=16"):
        VisionSpec(size, patch_size=16, hidden_size=16, layers=1, heads=4, mlp_size=16)


def test_heads_must_divide_the_width():
    with pytest.raises(ConfigError, match=r"hidden_size=16 .* heads=3"):
        VisionSpec((12, 6), patch_size=3, hidden_size=16, layers=1, heads=3, mlp_size=16)


def test_grid_is_rows_by_columns():
    spec = VisionSpec((384, 128), 16, 768, 12, 12, 3072)
    assert (spec.grid, spec.prefix) == ((24, 8), 1)
    assert dataclasses.replace(spec, distillation_token=True).prefix == 2
