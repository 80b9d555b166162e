"""How blocks are computed changes memory and the program, and nothing that the blocks compute."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unipt_jax.core import trees
from unipt_jax.core.errors import ConfigError
from unipt_jax.models.bert import Bert, TextSpec
from unipt_jax.models.clip import ClipText, ClipTextSpec
from unipt_jax.models.compute import Compute, compiler_options
from unipt_jax.models.cross_modal import CrossModal, CrossModalSpec
from unipt_jax.models.layers import (
    Attention,
    TransformerBlock,
    attend,
    fused_attend,
    fused_implementation,
    run_blocks,
)
from unipt_jax.models.vit import VisionSpec, VisionTransformer

SHAPE = {"hidden_size": 16, "heads": 4, "mlp_size": 24}
WORDS = {"vocab_size": 19, "max_positions": 8}
END = 17
SCANNED, SAVING = Compute(scan=True), Compute(scan=True, remat="full")
QUICK = {"xla_backend_optimization_level": 0}  # for compilation, which takes most of the time


def vit(compute=None, layers=3):
    return VisionTransformer(
        VisionSpec((8, 4), patch_size=2, layers=layers, **SHAPE), compute=compute or Compute()
    )


def bert(compute=None, layers=3, dropout=0.0):
    spec = TextSpec(layers=layers, dropout=dropout, **SHAPE, **WORDS)
    return Bert(spec, compute=compute or Compute())


def clip_text(compute=None, layers=3):
    spec = ClipTextSpec(layers=layers, end_token=END, **SHAPE, **WORDS)
    return ClipText(spec, compute=compute or Compute())


def cross_modal(compute=None):
    return CrossModal(CrossModalSpec(layers=3, heads=4), 19, compute=compute or Compute())


def inputs(make):
    """What an encoder reads; texts are of 8, 5 and 2 tokens, and end in CLIP's way."""
    rng = np.random.default_rng(0)
    if make is vit:
        return (jnp.asarray(rng.normal(size=(3, 8, 4, 3)), jnp.float32),)
    lengths = np.array([8, 5, 2])
    mask = jnp.arange(8)[None] < lengths[:, None]
    if make is cross_modal:
        text, image = (jnp.asarray(rng.normal(size=(3, n, 16)), jnp.float32) for n in (8, 5))
        return text, mask, image, jnp.array([[1, 7], [4, 2], [0, 1]])
    text = rng.integers(1, END, (3, 8))
    text[np.arange(3), lengths - 1] = END
    return jnp.asarray(text, jnp.int32), mask


def parameters(module, *arrays, **options):
    """Parameters far from their start, where each layer is another and biases are not zero."""
    streams = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    shapes = jax.eval_shape(lambda: module.init(streams, *arrays, **options))
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape, scale=0.3), jnp.float32), shapes
    )


def value_and_gradient(module, variables, arrays, key=None, **options):
    """All that a module returns, and the gradient of its mean square."""

    def total(variables):
        rngs = None if key is None else {"dropout": key}
        results = jax.tree.leaves(module.apply(variables, *arrays, rngs=rngs, **options))
        return sum(jnp.mean(result**2) for result in results), results

    both = jax.jit(jax.value_and_grad(total, has_aux=True), compiler_options=QUICK)
    (_, results), gradient = both(variables)
    return results, gradient


def assert_same(one, other, tolerance):
    """Equal, each leaf to `tolerance` of its largest value."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for path, leaf in trees.flatten({"": other}).items():
        want = np.asarray(trees.flatten({"": one})[path])
        scale = max(1.0, np.abs(want).max())
        np.testing.assert_allclose(leaf, want, rtol=0, atol=tolerance * scale, err_msg=path)


CASES = [
    pytest.param(vit, {"train": True, "first": 3, "attention": True}, id="vit-first-reader"),
    pytest.param(bert, {"train": True}, id="bert"),
    pytest.param(
        clip_text, {"train": True, "attention": True}, id="clip-reader", marks=pytest.mark.slow
    ),
    pytest.param(cross_modal, {}, id="cross-modal", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def expected():
    """Values and gradients of every case as the loop computes them, once."""
    found = {}

    def of(make, options):
        at = make.__name__, *options.items()
        if at not in found:
            variables = parameters(make(), *inputs(make), **options)
            found[at] = variables, value_and_gradient(make(), variables, inputs(make), **options)
        return found[at]

    return of


@pytest.mark.parametrize(("make", "options"), CASES)
def test_values_and_gradients_are_those_of_the_loop(expected, make, options):
    variables, want = expected(make, options)
    have = value_and_gradient(make(SAVING), variables, inputs(make), **options)
    assert_same(want, have, 1e-6)


@pytest.mark.parametrize("make", [vit, bert])
def test_every_choice_has_the_same_parameters_from_the_same_start(make):
    """Names, values to the bit, and the logical axes by which they are laid out."""

    def start(compute):
        made = lambda key: make(compute).init(key, *inputs(make), train=False)  # noqa: E731
        return jax.jit(made, compiler_options=QUICK)(jax.random.key(3))

    want, have = start(Compute()), start(Compute(True, "full", "fused"))
    assert "layers_2" in want["params"]
    assert jax.tree.structure(want) == jax.tree.structure(have)  # The boxes tell the axes.
    jax.tree.map(np.testing.assert_array_equal, want, have)


# ---------------------------------------------------------------------------- dropout


class Stack(nn.Module):
    """Blocks that drop half of what their branches add."""

    layers: int
    compute: Compute

    @nn.compact
    def __call__(self, tokens):
        blocks = [
            TransformerBlock(
                4,
                24,
                1e-6,
                "gelu",
                "pre",
                dropout=0.5,
                compute=self.compute,
                name=f"layers_{index}",
            )
            for index in range(self.layers)
        ]
        return run_blocks(blocks, tokens, None, train=True)[0]


@pytest.mark.parametrize(("scan", "remat"), [(False, "dots"), (True, "full")])
def test_rematerialised_dropout_draws_the_same(scan, remat):
    """Forward and backward pass see one mask, and the one that is drawn without."""
    tokens = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8, 16)), jnp.float32)
    variables, key = parameters(Stack(2, Compute()), tokens), jax.random.key(7)
    want, have, other = (
        value_and_gradient(Stack(2, Compute(scan, how)), variables, (tokens,), key)
        for how, key in (("none", key), (remat, key), (remat, jax.random.key(8)))
    )
    assert_same(want, have, 1e-6)
    assert np.abs(have[0][0] - other[0][0]).max() > 0.1


def test_each_layer_drops_other_values():
    """A sum of 0 or 2 a layer: binomial, unless layers drop the same, which gives 0 or 2 L."""
    layers, tokens = 6, jnp.zeros((4, 8, 16))
    stack = Stack(layers, SAVING)
    variables = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.full(leaf.shape, float("fc2" in str(path) and "bias" in str(path))),
        parameters(stack, tokens),
    )
    rngs = {"dropout": jax.random.key(1)}
    sums = np.asarray(jax.jit(stack.apply, compiler_options=QUICK)(variables, tokens, rngs=rngs))
    assert set(np.unique(sums)) <= set(range(0, 2 * layers + 1, 2))
    assert sums.mean() == pytest.approx(layers, abs=0.6)
    assert sums.var() == pytest.approx(layers, rel=0.4)


# ---------------------------------------------------------------------------- the program


def program(module, *arrays):
    """The gradient of an encoder, lowered."""
    shapes = jax.eval_shape(lambda key: module.init(key, *arrays, train=True), jax.random.key(0))

    def total(variables):
        return jnp.sum(module.apply(variables, *arrays, train=True) ** 2)

    return jax.jit(jax.grad(total)).lower(shapes)


@pytest.mark.parametrize(
    "make", [vit, *(pytest.param(it, marks=pytest.mark.slow) for it in (bert, clip_text))]
)
def test_the_scanned_program_does_not_grow_with_the_depth(make):
    def count(compute, layers):
        text = program(make(compute, layers=layers), *inputs(make)).as_text()
        return len(re.findall(r"stablehlo\.dot_general", text))

    shallow, deep = (count(SCANNED, layers) for layers in (3, 9))
    assert shallow == deep
    assert count(Compute(), 9) > 2.5 * count(Compute(), 3)
    assert shallow < count(Compute(), 3)


@pytest.mark.parametrize("scan", [pytest.param(False, marks=pytest.mark.slow), True])
def test_rematerialising_saves_memory(scan):
    """XLA's own figure for the gradient of a deep, narrow encoder, compiled as training steps."""
    spec = VisionSpec((32, 16), patch_size=2, layers=8, **SHAPE)
    options = QUICK | compiler_options("cpu")

    def memory(remat):
        module = VisionTransformer(spec, compute=Compute(scan, remat))
        compiled = program(module, jnp.zeros((8, 32, 16, 3))).compile(options)
        return compiled.memory_analysis().temp_size_in_bytes

    full, some, none = (memory(remat) for remat in ("full", "dots", "none"))
    assert full < 0.8 * some
    assert some < 0.5 * none


# ---------------------------------------------------------------------------- fused attention


@pytest.mark.parametrize(("make", "options"), CASES)
def test_fused_attention_gives_what_plain_gives(expected, make, options):
    variables, want = expected(make, options)
    compute = Compute(attention="fused")
    assert_same(want, value_and_gradient(make(compute), variables, inputs(make), **options), 1e-5)


MASK = jnp.arange(7)[None] < jnp.array([[7], [4], [1]])


@pytest.mark.parametrize(
    ("mask", "causal", "context", "first"),
    [
        (None, False, False, None),
        (MASK, False, False, 1),
        (MASK, True, False, None),
        (None, True, False, 3),
        (MASK, False, True, 3),
        (None, False, True, None),
    ],
)
def test_fused_attention_of_one_layer(mask, causal, context, first):
    """Values, and gradients by the tokens that read, those that are read, and the parameters."""
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.normal(size=(3, 7 if not context else 5, 16)), jnp.float32)
    read = jnp.asarray(rng.normal(size=(3, 7, 16)), jnp.float32) if context else None
    plain = Attention(4, causal)
    variables = parameters(plain, tokens, mask, train=True, context=read)

    def run(attention):
        def total(variables, tokens, read):
            x = attention.apply(variables, tokens, mask, train=True, first=first, context=read)
            return jnp.mean(x**2), x

        by = (0, 1, 2) if context else (0, 1)  # of parameters and both kinds of tokens
        both = jax.jit(jax.value_and_grad(total, by, has_aux=True), compiler_options=QUICK)
        return both(variables, tokens, read)

    assert_same(run(plain), run(plain.clone(compute=Compute(attention="fused"))), 1e-5)


def test_fused_attention_in_bfloat16():
    rng = np.random.default_rng(0)
    heads = [jnp.asarray(rng.normal(size=(3, 4, 7, 8)), jnp.bfloat16) for _ in range(3)]
    have = fused_attend(*heads, MASK, causal=False)
    assert have.dtype == jnp.bfloat16
    want = attend(*(x.astype(jnp.float32) for x in heads), [MASK[:, None, None]])
    np.testing.assert_allclose(have.astype(jnp.float32), want, atol=0.02)


def test_fused_attention_takes_padding_at_the_end_alone():
    """Lengths cannot tell a gap: such a row is NaN, and no other is; padding alone stays finite."""
    rng = np.random.default_rng(0)
    heads = [jnp.asarray(rng.normal(size=(4, 4, 3, 8)), jnp.float32) for _ in range(3)]
    mask = jnp.array([[1, 1, 1], [1, 0, 1], [0, 1, 1], [0, 0, 0]], bool)
    have = np.asarray(fused_attend(*heads, mask, causal=False))
    np.testing.assert_array_equal(np.isnan(have).all(axis=(1, 2)), [False, True, True, False])
    assert np.isfinite(have[[0, 3]]).all()


def test_fused_attention_drops_nothing():
    tokens, key = jnp.ones((3, 7, 16)), jax.random.key(0)
    dropping = Attention(4, dropout=0.1, compute=Compute(attention="fused"))
    variables = dropping.init(key, tokens, MASK, train=False)  # Nothing is to be dropped here.
    with pytest.raises(ConfigError, match=r"attention='fused'.*dropout=0\.1.*set dropout=0"):
        dropping.apply(variables, tokens, MASK, train=True, rngs={"dropout": key})


@pytest.mark.parametrize(
    ("backend", "dtype", "implementation"),
    [
        ("gpu", jnp.bfloat16, "cudnn"),
        ("gpu", "bfloat16", "cudnn"),
        ("gpu", jnp.float32, "xla"),
        ("cpu", jnp.bfloat16, "xla"),
        ("tpu", jnp.bfloat16, "xla"),
        ("cpu", jnp.float32, "xla"),
    ],
)
def test_the_kernel_follows_backend_and_precision(backend, dtype, implementation):
    assert fused_implementation(backend, dtype) == implementation
