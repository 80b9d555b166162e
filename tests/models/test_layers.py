"""Blocks against torch's own transformer layer."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unipt_jax.core.errors import ConfigError
from unipt_jax.models.compute import compiler_options
from unipt_jax.models.layers import (
    ACTIVATIONS,
    Attention,
    LayerNorm,
    TransformerBlock,
    head_size,
    matmul,
)

# As many heads as a head is wide, and an MLP as wide as the tokens: nothing but the values would
# tell a transposed matrix or swapped dimensions.
WIDTH, HEADS = 16, 4


def _tokens(batch=3, length=5, seed=0):
    return np.random.default_rng(seed).normal(size=(batch, length, WIDTH)).astype(np.float32)


def _torch_block(torch, norm, activation):
    functions = {
        "gelu": torch.nn.functional.gelu,
        "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
        "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    }
    layer = torch.nn.TransformerEncoderLayer(
        WIDTH,
        HEADS,
        dim_feedforward=WIDTH,
        dropout=0.0,
        activation=functions[activation],
        layer_norm_eps=1e-3,
        batch_first=True,
        norm_first=norm == "pre",
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    return layer.train()  # Its fast path for inference takes other shortcuts.


def _parameters(layer):
    weights = {name: value.detach().numpy() for name, value in layer.named_parameters()}

    def linear(name):
        return {"kernel": weights[f"{name}.weight"].T, "bias": weights[f"{name}.bias"]}

    def norm(name):
        return {"scale": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}

    attention = {"out_proj": linear("self_attn.out_proj")}
    kernels = np.split(weights["self_attn.in_proj_weight"], 3)
    biases = np.split(weights["self_attn.in_proj_bias"], 3)
    for stem, kernel, bias in zip("qkv", kernels, biases, strict=True):
        attention[f"{stem}_proj"] = {"kernel": kernel.T, "bias": bias}
    parameters = {
        "self_attn": attention,
        "mlp": {"fc1": linear("linear1"), "fc2": linear("linear2")},
        "layer_norm1": norm("norm1"),
        "layer_norm2": norm("norm2"),
    }
    return jax.tree.map(jnp.asarray, parameters)


@pytest.mark.parametrize(
    ("norm", "activation", "causal"),
    [("pre", "gelu", False), ("post", "gelu_tanh", False), ("pre", "quick_gelu", True)],
)
def test_block_equals_torch(norm, activation, causal):
    torch = pytest.importorskip("torch")
    layer = _torch_block(torch, norm, activation)
    tokens = _tokens()
    mask = np.arange(5)[None] < np.array([5, 3, 1])[:, None]
    past = torch.triu(torch.ones(5, 5, dtype=torch.bool), diagonal=1) if causal else None
    want = layer(torch.tensor(tokens), src_mask=past, src_key_padding_mask=torch.tensor(~mask))

    block = TransformerBlock(HEADS, WIDTH, 1e-3, activation, norm, causal)
    variables = {"params": _parameters(layer)}
    have = jax.jit(lambda v, x, m: block.apply(v, x, m, train=False))(
        variables, jnp.asarray(tokens), jnp.asarray(mask)
    )
    np.testing.assert_allclose(have, want.detach().numpy(), atol=1e-5)


def test_activations_equal_torch():
    torch = pytest.importorskip("torch")
    x = np.linspace(-6, 6, 101, dtype=np.float32)
    exact, tanh = (
        torch.nn.functional.gelu(torch.tensor(x), approximate=form).numpy()
        for form in ("none", "tanh")
    )
    quick = x / (1 + np.exp(-1.702 * x))
    for name, want in (("gelu", exact), ("gelu_tanh", tanh), ("quick_gelu", quick)):
        np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(x)), want, atol=1e-6)
    assert np.abs(exact - tanh).max() > 1e-4


def test_gelu_and_its_gradient_are_torch_s():
    """Of what is above -3 each value in itself, too: farther out 1 + erf has few digits, as there.

    The values are some 0.004 at -3, and fall fast.
    """
    torch = pytest.importorskip("torch")
    x = np.linspace(-8, 8, 321, dtype=np.float32)
    leaf = torch.tensor(x, requires_grad=True)
    want = torch.nn.functional.gelu(leaf)
    want.sum().backward()
    have, slopes = jax.vmap(jax.value_and_grad(ACTIVATIONS["gelu"]))(jnp.asarray(x))
    want = want.detach().numpy()
    np.testing.assert_allclose(have, want, atol=1e-6)
    np.testing.assert_allclose(have[x > -3], want[x > -3], rtol=2e-4)
    np.testing.assert_allclose(slopes, leaf.grad.numpy(), atol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_with_dropout_is_the_same_attention(causal, key):
    tokens = jnp.asarray(_tokens())
    mask = jnp.arange(5)[None] < jnp.array([5, 3, 1])[:, None]
    plain, dropping = Attention(HEADS, causal), Attention(HEADS, causal, dropout=1e-9)
    variables = jax.tree.map(
        lambda x: x + 0.3 * jax.random.normal(key, x.shape),
        plain.init(key, tokens, mask, train=False),
    )
    np.testing.assert_allclose(
        dropping.apply(variables, tokens, mask, train=True, rngs={"dropout": key}),
        plain.apply(variables, tokens, mask, train=True),
        atol=1e-5,
    )


def test_dropout_acts_in_training_alone(key):
    block = TransformerBlock(HEADS, WIDTH, 1e-6, "gelu", "pre", dropout=0.5)
    tokens = jnp.asarray(_tokens())
    variables = block.init(key, tokens, None, train=False)

    @functools.partial(jax.jit, static_argnums=0)
    def run(train, seed):
        rngs = {"dropout": jax.random.key(seed)}
        return block.apply(variables, tokens, None, train=train, rngs=rngs)

    np.testing.assert_array_equal(run(False, 1), run(False, 2))
    np.testing.assert_array_equal(run(True, 1), run(True, 1))
    assert not np.allclose(run(True, 1), run(True, 2))


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_text_of_padding_alone_stays_finite(dropout, key):
    attention = Attention(HEADS, dropout=dropout)
    tokens, mask = jnp.asarray(_tokens()), jnp.zeros((3, 5), bool)
    variables = attention.init(key, tokens, mask, train=False)

    def total(x):
        return attention.apply(variables, x, mask, train=True, rngs={"dropout": key}).sum()

    value, gradient = jax.jit(jax.value_and_grad(total))(tokens)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_bfloat16_computes_beside_float32_parameters(key):
    block = TransformerBlock(HEADS, WIDTH, 1e-6, "gelu", "pre", dtype=jnp.bfloat16)
    tokens = jnp.asarray(_tokens(), jnp.bfloat16)
    variables = block.init(key, tokens, None, train=False)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert block.apply(variables, tokens, None, train=False).dtype == jnp.bfloat16


def test_layer_norm_survives_a_large_mean(key):
    x = jnp.array([[[4096.0, 4097.0, 4098.0, 4099.0]]])
    norm = LayerNorm(1e-6)
    have = norm.apply(norm.init(key, x), x)
    np.testing.assert_allclose(have, np.array([[[-3, -1, 1, 3]]]) / np.sqrt(5), atol=1e-5)


def test_heads_must_divide_the_width():
    assert head_size(768, 12) == 64
    with pytest.raises(ConfigError, match=r"hidden_size=10 .* heads=4"):
        head_size(10, 4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [(5,), (3, 5), (2, 3, 5)])
def test_the_product_is_torch_s_and_so_are_its_gradients(rows, dtype):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    shapes = (*rows, 8), (8, 6), (*rows, 6)
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    tokens, kernel, cotangent = (jnp.asarray(array, dtype) for array in arrays)
    have, pull_back = jax.vjp(matmul, tokens, kernel)
    found = [have, *jax.jit(pull_back, compiler_options=compiler_options("cpu"))(cotangent)]

    leaves = [torch.tensor(array, requires_grad=True) for array in arrays[:2]]
    want = leaves[0] @ leaves[1]
    want.backward(torch.tensor(arrays[2]))
    wanted = [want, *(leaf.grad for leaf in leaves)]
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == jnp.dtype(dtype)
        bound = 1e-6 if dtype == "float32" else 0.02
        other = other.detach().numpy()
        np.testing.assert_allclose(one.astype(jnp.float32), other, atol=bound * abs(other).max())


def test_a_training_step_s_products_turn_round_what_lies_in_memory():
    """On CPUs each product with a parameter keeps its barrier to the end of the compilation."""
    block = TransformerBlock(HEADS, WIDTH, 1e-6, "gelu", "pre")
    tokens = jnp.asarray(_tokens())
    params = block.init(jax.random.key(0), tokens, None, train=False)
    gradient = jax.grad(lambda params: block.apply(params, tokens, None, train=True).sum())
    text = jax.jit(gradient).lower(params).compile(compiler_options("cpu")).as_text()
    products = 6  # queries, keys, values, what they give, and the MLP's two
    assert len(re.findall(r" opt-barrier\(", text)) == products
