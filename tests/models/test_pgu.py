"""Granularity-unified features: shapes, what may matter to them and what may not."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from unipt_jax.core.errors import ConfigError
from unipt_jax.core.trees import flatten
from unipt_jax.models.pgu import Pgu, PguSpec

SPEC = PguSpec(
    dictionary_size=7,
    prototypes=3,
    part_dim=5,
    heads=2,
    dictionary_head_size=4,
    dictionary_mlp_size=6,
    prototype_layers=2,
    prototype_head_size=8,
    prototype_mlp_size=9,
)
WIDTH = 10


@pytest.fixture(scope="module")
def tokens():
    return jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, WIDTH)), jnp.float32)


@pytest.fixture(scope="module")
def params(tokens):
    variables = jax.eval_shape(
        lambda: Pgu(SPEC).init(jax.random.key(0), tokens, None, is_image=True)
    )
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32),
        nn.unbox(variables)["params"],
    )


def run(params, tokens, mask=None, is_image=False):
    model = Pgu(SPEC)
    return np.asarray(
        jax.jit(lambda p, x: model.apply({"params": p}, x, mask, is_image=is_image))(params, tokens)
    )


def test_a_feature_a_prototype(params, tokens):
    assert run(params, tokens).shape == (4, 3, 5)


def test_defaults_are_those_of_the_published_code():
    """LGUR's options: 400 vectors, 6 queries, features of 512."""
    spec = PguSpec()
    assert (spec.dictionary_size, spec.prototypes, spec.part_dim, spec.heads) == (400, 6, 512, 6)
    assert (spec.dictionary_head_size, spec.dictionary_mlp_size) == (64, 768)
    assert (spec.prototype_head_size, spec.prototype_mlp_size, spec.prototype_layers) == (
        512,
        512,
        2,
    )


def test_what_is_masked_does_not_matter(params, tokens):
    mask = jnp.asarray([[True] * 4 + [False] * 2] * 4)
    other = tokens.at[:, 4:].set(9.0)
    np.testing.assert_allclose(run(params, tokens, mask), run(params, other, mask), atol=1e-5)
    np.testing.assert_allclose(
        run(params, tokens, mask), run(params, tokens[:, :4]), atol=1e-4, rtol=1e-4
    )
    assert np.abs(run(params, tokens) - run(params, other)).max() > 1e-2


def test_rows_do_not_mix_and_tokens_have_no_order(params, tokens):
    whole = run(params, tokens)
    np.testing.assert_allclose(run(params, tokens[2:3]), whole[2:3], atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(run(params, tokens[:, ::-1]), whole, atol=1e-3, rtol=1e-4)


def test_the_foreground_weighs_images_alone(params, tokens):
    """A weight of one everywhere leaves images as texts are; one of zero leaves nothing to read."""
    gate = params["foreground"]
    kernel = jnp.zeros_like(gate["kernel"])

    def with_bias(value):
        bias = jnp.full_like(gate["bias"], value)
        return params | {"foreground": {"kernel": kernel, "bias": bias}}

    text = run(params, tokens)
    np.testing.assert_allclose(run(with_bias(40.0), tokens, is_image=True), text, atol=1e-4)
    blank = run(with_bias(-200.0), tokens, is_image=True)
    np.testing.assert_allclose(blank, np.broadcast_to(blank[:1], blank.shape), atol=1e-4)
    assert np.abs(text - text[:1]).max() > 1e-2


def test_parameters_start_as_in_the_published_code():
    model = Pgu(PguSpec(dictionary_size=500, prototypes=4, part_dim=8))
    tokens = jnp.zeros((1, 2, 64))
    params = nn.unbox(model.init(jax.random.key(0), tokens, None, is_image=True))["params"]
    assert abs(float(params["dictionary"].std()) - 1) < 0.05  # N(0, 1)
    flat = flatten(params)
    assert not any("bias" in path for path in flat if "_proj" in path and "out_proj" not in path)
    assert {path.split("/")[0] for path in flat} == {
        "dictionary", "prototypes", "foreground", "projection",
        "dictionary_decoder", "prototype_decoder_0", "prototype_decoder_1",
    }  # fmt: skip


def test_maps_start_as_wide_as_torch_makes_them():
    spec = PguSpec(dictionary_size=5, prototypes=3, part_dim=96)
    params = Pgu(spec).init(jax.random.key(0), jnp.zeros((1, 2, 48)), None, is_image=True)
    flat = flatten(nn.unbox(params)["params"])
    kernels = [path for path in flat if path.endswith("kernel")]
    assert len(kernels) == 3 * 6 + 1
    cut = 0.88  # What a normal distribution that ends at two deviations has left of one.
    for path in kernels:
        expected = torch.nn.Linear(*flat[path].shape).weight.detach().numpy().std()
        # The foreground's map is one column, of 48 numbers.
        slack = 0.3 if path.startswith("foreground") else 0.03
        assert float(flat[path].std()) == pytest.approx(cut * expected, rel=slack), path
    part = torch.empty(96, 48, 1, 1)
    torch.nn.init.kaiming_normal_(part, mode="fan_out", nonlinearity="relu")
    assert float(flat["projection"].std()) == pytest.approx(cut * float(part.std()), rel=0.03)


def test_half_precision_gives_float32(params, tokens):
    model = Pgu(SPEC, dtype=jnp.bfloat16)
    out = model.apply({"params": params}, tokens.astype(jnp.bfloat16), None, is_image=True)
    assert out.dtype == jnp.float32 and np.isfinite(out).all()


def test_sizes_are_checked():
    with pytest.raises(ConfigError, match="prototypes=0"):
        PguSpec(prototypes=0)
