"""The cross-modal encoder against plain torch, layer by layer from the paper's description."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.test_cross_modal import MODEL, SPEC, VOCABULARY, WIDTH
from tests.parity.references import torch

F = torch.nn.functional


def normalise(x, p):
    return F.layer_norm(x, (WIDTH,), p["scale"], p["bias"], 1e-5)


def linear(x, p):
    return x @ p["kernel"] + p["bias"]


def attend(readers, read, p):
    """One head at a time."""
    q, k, v = linear(readers, p["q_proj"]), linear(read, p["k_proj"]), linear(read, p["v_proj"])
    size = WIDTH // SPEC.heads
    parts = []
    for head in range(SPEC.heads):
        at = slice(head * size, (head + 1) * size)
        parts.append(torch.softmax(q[:, at] @ k[:, at].T / size**0.5, dim=1) @ v[:, at])
    return linear(torch.cat(parts, dim=1), p["out_proj"])


def quick_gelu(x):
    return x * torch.sigmoid(1.702 * x)


def reference(text, lengths, image, positions, p):
    """One pair at a time, without padding."""
    rows = []
    for row, length in enumerate(lengths):
        x = normalise(text[row, :length], p["text_layer_norm"])
        x = attend(x, normalise(image[row], p["image_layer_norm"]), p["cross_attn"])
        for index in range(SPEC.layers):
            block = p[f"layers_{index}"]
            y = normalise(x, block["layer_norm1"])
            x = x + attend(y, y, block["self_attn"])
            y = quick_gelu(linear(normalise(x, block["layer_norm2"]), block["mlp"]["fc1"]))
            x = x + linear(y, block["mlp"]["fc2"])
        x = normalise(x, p["layer_norm"])[positions[row]]
        x = normalise(quick_gelu(linear(x, p["mlm_head"]["dense"])), p["mlm_head"]["layer_norm"])
        rows.append(x @ p["decoder"].T + p["mlm_head"]["bias"])
    return torch.stack(rows)


@jax.jit
@functools.partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
def total(params, text, image, mask, positions, out):
    """The logits' sum weighed by `out`, and the logits."""
    logits = MODEL.apply({"params": params}, text, mask, image, positions)
    return (logits * out).sum(), logits


@pytest.mark.parametrize("seed", range(3))
def test_logits_and_gradients(seed):
    rng = np.random.default_rng(seed)
    text = rng.normal(size=(3, 6, WIDTH)).astype(np.float32)
    image = rng.normal(size=(3, 4, WIDTH)).astype(np.float32)
    lengths = rng.integers(1, 7, 3)
    positions = rng.integers(0, lengths[:, None], (3, 2))
    mask = np.arange(6)[None] < lengths[:, None]
    inputs = map(jnp.asarray, (text, mask, image, positions))
    shapes = jax.eval_shape(lambda: MODEL.init(jax.random.key(0), *inputs))
    params = jax.tree.map(
        lambda leaf: (0.5 * rng.normal(size=leaf.shape)).astype(np.float32),
        nn.unbox(shapes)["params"],
    )
    out = rng.normal(size=(3, 2, VOCABULARY)).astype(np.float32)
    (_, have), gradients = total(params, text, image, mask, positions, out)
    leaves = jax.tree.map(lambda leaf: torch.tensor(leaf, dtype=torch.float64), params)
    jax.tree.map(lambda leaf: leaf.requires_grad_(), leaves)
    inputs = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (text, image)]
    want = reference(inputs[0], lengths, inputs[1], torch.tensor(positions), leaves)
    (want * torch.tensor(out)).sum().backward()
    largest = float(want.detach().abs().max())
    np.testing.assert_allclose(have, want.detach(), atol=1e-5 * max(1, largest))
    theirs = [leaf.grad for leaf in (*jax.tree.leaves(leaves), *inputs)]
    for ours, other in zip(jax.tree.leaves(gradients), theirs, strict=True):
        other = other.numpy()
        np.testing.assert_allclose(ours, other, atol=1e-5 * max(1, np.abs(other).max()), rtol=1e-3)
