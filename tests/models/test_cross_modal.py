"""The cross-modal encoder: what may matter to its guesses and what may not, and its start."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unipt_jax.core.errors import ConfigError
from unipt_jax.core.sharding import batch_sharding, make_mesh, parameter_shardings
from unipt_jax.core.trees import flatten
from unipt_jax.models.cross_modal import CrossModal, CrossModalSpec

SPEC, WIDTH, VOCABULARY = CrossModalSpec(layers=2, heads=2), 8, 13
MODEL = CrossModal(SPEC, VOCABULARY)


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    return {
        "text_tokens": jnp.asarray(rng.normal(size=(3, 7, WIDTH)), jnp.float32),
        "text_mask": jnp.arange(7)[None] < jnp.array([[7], [4], [5]]),
        "image_tokens": jnp.asarray(rng.normal(size=(3, 5, WIDTH)), jnp.float32),
        "positions": jnp.array([[1, 5], [3, 1], [4, 0]]),
    }


@pytest.fixture(scope="module")
def params(inputs):
    variables = jax.eval_shape(lambda: MODEL.init(jax.random.key(0), **inputs))
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape), jnp.float32),
        nn.unbox(variables)["params"],
    )


@jax.jit
def _apply(params, inputs):
    return MODEL.apply({"params": params}, **inputs)


def run(params, inputs, **changes):
    return np.asarray(_apply(params, inputs | changes))


_LINEAR, _NORM = ("kernel", "bias"), ("scale", "bias")


def test_parameters(params):
    attention = {f"{name}_proj/{kind}" for name in ("q", "k", "v", "out") for kind in _LINEAR}
    block = {f"self_attn/{name}" for name in attention}
    block |= {f"mlp/{name}/{kind}" for name in ("fc1", "fc2") for kind in _LINEAR}
    block |= {f"{name}/{kind}" for name in ("layer_norm1", "layer_norm2") for kind in _NORM}
    want = {f"cross_attn/{name}" for name in attention}
    want |= {f"layers_{index}/{name}" for index in range(2) for name in block}
    norms = ("text_layer_norm", "image_layer_norm", "layer_norm", "mlm_head/layer_norm")
    want |= {f"{name}/{kind}" for name in norms for kind in _NORM}
    want |= {f"mlm_head/dense/{kind}" for kind in _LINEAR} | {"mlm_head/bias", "decoder"}
    flat = flatten(params)
    assert set(flat) == want
    assert flat["decoder"].shape == (VOCABULARY, WIDTH)
    assert flat["layers_0/mlp/fc1/kernel"].shape == (WIDTH, 4 * WIDTH)


def test_only_the_positions_are_guessed(params, inputs):
    every = run(params, inputs, positions=jnp.broadcast_to(jnp.arange(7)[None], (3, 7)))
    want = np.take_along_axis(every, np.asarray(inputs["positions"])[:, :, None], axis=1)
    np.testing.assert_allclose(run(params, inputs), want, atol=1e-5)
    program = str(jax.make_jaxpr(_apply)(params, inputs))
    assert f"[3,2,{VOCABULARY}]" in program
    assert f"[3,7,{VOCABULARY}]" not in program


def test_padding_does_not_matter(params, inputs):
    want = run(params, inputs)
    tokens, mask = inputs["text_tokens"], inputs["text_mask"]
    other = jnp.where(mask[:, :, None], tokens, 9.0)
    np.testing.assert_allclose(run(params, inputs, text_tokens=other), want, atol=1e-5)
    longer = jnp.pad(tokens, ((0, 0), (0, 4), (0, 0)), constant_values=3.0)
    more = jnp.pad(mask, ((0, 0), (0, 4)))
    have = run(params, inputs, text_tokens=longer, text_mask=more)
    np.testing.assert_allclose(have, want, atol=1e-5)
    assert np.abs(run(params, inputs, text_mask=jnp.ones_like(mask)) - want)[1:].max() > 1e-2


def test_the_image_matters_and_its_order_does_not(params, inputs):
    image, want = inputs["image_tokens"], run(params, inputs)
    np.testing.assert_allclose(run(params, inputs, image_tokens=image[:, ::-1]), want, atol=1e-5)
    for token in range(5):
        other = image.at[:, token, 0].add(3.0)
        assert np.abs(run(params, inputs, image_tokens=other) - want).max() > 1e-3


def test_tokens_are_read_from_the_image_alone(params, inputs):
    """As published: no residual connection leads around the cross-attention."""
    blind = params["cross_attn"] | {
        "v_proj": jax.tree.map(jnp.zeros_like, params["cross_attn"]["v_proj"])
    }
    logits = run(params | {"cross_attn": blind}, inputs)
    np.testing.assert_allclose(logits, np.broadcast_to(logits[:1, :1], logits.shape), atol=1e-5)


def test_rows_do_not_mix(params, inputs):
    alone = run(params, {name: value[1:2] for name, value in inputs.items()})
    np.testing.assert_allclose(alone, run(params, inputs)[1:2], atol=1e-5)


def test_a_text_of_padding_alone_stays_finite(params, inputs):
    blank = {"text_mask": jnp.zeros((3, 7), bool)}
    gradients = jax.jit(jax.grad(lambda p: _apply(p, inputs | blank).sum()))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_defaults_and_start_are_those_of_the_published_code(key):
    """IRRA's deviations; cutting a normal distribution at two of them leaves 0.8796 of each."""
    assert (CrossModalSpec().layers, CrossModalSpec().heads) == (4, 8)
    width = 256
    tokens, mask = jnp.zeros((1, 2, width)), jnp.ones((1, 2), bool)
    model = CrossModal(CrossModalSpec(layers=2), vocab_size=300)
    fresh = jax.jit(model.init)(key, tokens, mask, tokens, jnp.zeros((1, 1), jnp.int32))
    stds = {"q_proj": 1 / 16, "k_proj": 1 / 16, "v_proj": 1 / 16}
    stds |= dict.fromkeys(("fc1", "dense"), 512**-0.5)
    stds |= dict.fromkeys(("out_proj", "fc2", "decoder"), 1 / 16 / 2)
    for path, leaf in flatten(nn.unbox(fresh)["params"]).items():
        parent, name = ["", *path.split("/")][-2:]
        if name in ("bias", "scale"):
            np.testing.assert_array_equal(leaf, float(name == "scale"), err_msg=path)
        else:
            want = stds[parent or name]
            assert abs(float(leaf.std()) / want - 0.8796) < 0.02, path


def test_half_precision_gives_float32(params, inputs):
    model = CrossModal(SPEC, VOCABULARY, jnp.bfloat16)
    with jax.numpy_dtype_promotion("strict"):
        have = jax.jit(lambda p: model.apply({"params": p}, **inputs))(params)
    assert have.dtype == jnp.float32
    np.testing.assert_allclose(have, run(params, inputs), atol=0.5)
    assert np.abs(have - run(params, inputs)).max() > 1e-4  # It did compute in half precision.


def test_devices_and_axes(params):
    """Every parameter names its axes, and data parallelism needs no communication."""
    rng = np.random.default_rng(2)
    tokens = jnp.asarray(rng.normal(size=(8, 4, WIDTH)), jnp.float32)
    inputs = (tokens, jnp.ones((8, 4), bool), tokens[:, ::-1], jnp.zeros((8, 1), jnp.int32))
    boxed = jax.eval_shape(lambda: MODEL.init(jax.random.key(0), *inputs))["params"]
    leaves = jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    assert len(leaves) == len(flatten(params))
    for leaf in leaves:
        assert isinstance(leaf, nn.LogicallyPartitioned)
        assert len(leaf.names) == leaf.value.ndim
    want = jax.jit(lambda p: MODEL.apply({"params": p}, *inputs))(params)
    for sizes in ((8, 1, 1), (2, 2, 2)):
        mesh = make_mesh(*sizes)
        placed = jax.device_put(params, parameter_shardings(boxed, mesh))
        with jax.set_mesh(mesh):
            given = jax.device_put(inputs, batch_sharding(mesh))
            step = jax.jit(lambda p, x: MODEL.apply({"params": p}, *x)).lower(placed, given)
            compiled = step.compile()
            np.testing.assert_allclose(compiled(placed, given), want, atol=2e-5)
        talk = re.search(r"all-(gather|reduce|to-all)|collective-permute", compiled.as_text())
        assert bool(talk) == (sizes != (8, 1, 1))


@pytest.mark.parametrize("field", ["layers", "heads"])
def test_sizes_are_checked(field):
    with pytest.raises(ConfigError, match=f"{field}=0"):
        CrossModalSpec(**{field: 0})


def test_heads_must_divide_the_width(inputs):
    with pytest.raises(ConfigError, match=r"hidden_size=8 .* heads=3"):
        CrossModal(CrossModalSpec(heads=3), VOCABULARY).init(jax.random.key(0), **inputs)
