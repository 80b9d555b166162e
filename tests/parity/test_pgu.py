"""Granularity-unified features against plain torch, layer by layer from the paper's description."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.test_pgu import SPEC, WIDTH
from tests.parity.references import torch
from unipt_jax.models.pgu import Pgu

F = torch.nn.functional


def decode(queries, tokens, mask, p, heads):
    """One row at a time, one head at a time."""
    norm1, norm2 = p["layer_norm1"], p["layer_norm2"]
    scale, shift = norm1["scale"], norm1["bias"]
    rows = []
    for query, token, keep in zip(queries, tokens, mask, strict=True):
        a = F.layer_norm(query, (WIDTH,), scale, shift, 1e-5)
        b = F.layer_norm(token, (WIDTH,), scale, shift, 1e-5)[keep]
        q, k, v = (
            x @ p[name]["kernel"] for x, name in ((a, "q_proj"), (b, "k_proj"), (b, "v_proj"))
        )
        size = q.shape[1] // heads
        parts = []
        for head in range(heads):
            at = slice(head * size, (head + 1) * size)
            weights = torch.softmax(q[:, at] @ k[:, at].T / size**0.5, dim=1)
            parts.append(weights @ v[:, at])
        x = query + torch.cat(parts, dim=1) @ p["out_proj"]["kernel"] + p["out_proj"]["bias"]
        y = F.layer_norm(x, (WIDTH,), norm2["scale"], norm2["bias"], 1e-5)
        y = torch.relu(y @ p["fc1"]["kernel"] + p["fc1"]["bias"])
        rows.append(x + y @ p["fc2"]["kernel"] + p["fc2"]["bias"])
    return torch.stack(rows)


def reference(tokens, mask, p, is_image):
    batch = len(tokens)
    everything = torch.ones(batch, SPEC.dictionary_size, dtype=torch.bool)
    words = p["dictionary"].expand(batch, -1, -1)
    rebuilt = decode(tokens, words, everything, p["dictionary_decoder"], SPEC.heads)
    if is_image:
        gate = tokens @ p["foreground"]["kernel"] + p["foreground"]["bias"]
        rebuilt = rebuilt * torch.sigmoid(gate)
    x = p["prototypes"].expand(batch, -1, -1)
    for layer in range(SPEC.prototype_layers):
        x = decode(x, rebuilt, mask, p[f"prototype_decoder_{layer}"], SPEC.heads)
    parts = [x[:, part] @ p["projection"][part] for part in range(SPEC.prototypes)]
    return torch.stack(parts, dim=1)


@pytest.mark.parametrize("is_image", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_features_and_gradients(seed, is_image):
    rng = np.random.default_rng(seed)
    tokens = rng.normal(size=(3, 6, WIDTH)).astype(np.float32)
    mask = np.arange(6)[None] < rng.integers(1, 7, (3, 1))
    model = Pgu(SPEC)
    shapes = nn.unbox(
        jax.eval_shape(
            lambda: model.init(jax.random.key(0), jnp.asarray(tokens), None, is_image=True)
        )
    )["params"]
    params = jax.tree.map(
        lambda leaf: (0.5 * rng.normal(size=leaf.shape)).astype(np.float32), shapes
    )
    out = rng.normal(size=(3, SPEC.prototypes, SPEC.part_dim)).astype(np.float32)

    def features(params, tokens):
        made = model.apply({"params": params}, tokens, jnp.asarray(mask), is_image=is_image)
        return (made * out).sum(), made

    (_, have), gradients = jax.jit(jax.value_and_grad(features, argnums=(0, 1), has_aux=True))(
        params, jnp.asarray(tokens)
    )
    leaves = jax.tree.map(lambda leaf: torch.tensor(leaf, dtype=torch.float64), params)
    jax.tree.map(lambda leaf: leaf.requires_grad_(), leaves)
    inputs = torch.tensor(tokens, dtype=torch.float64, requires_grad=True)
    want = reference(inputs, torch.tensor(mask), leaves, is_image)
    (want * torch.tensor(out)).sum().backward()
    np.testing.assert_allclose(have, want.detach(), atol=1e-4, rtol=1e-4)
    theirs = jax.tree.map(lambda leaf: 0 * leaf if leaf.grad is None else leaf.grad, leaves)
    for ours, other in zip(
        jax.tree.leaves(gradients), [*jax.tree.leaves(theirs), inputs.grad], strict=True
    ):
        other = other.detach().numpy()
        np.testing.assert_allclose(ours, other, atol=1e-5 * max(1, np.abs(other).max()), rtol=1e-3)
