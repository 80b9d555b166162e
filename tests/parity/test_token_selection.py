"""Token selection against plain torch, and attention against transformers' CLIP."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.test_token_selection import SPEC, WIDTH, _parameters
from tests.parity import references, test_clip
from tests.parity.references import torch
from unipt_jax.models.clip import ClipText
from unipt_jax.models.token_selection import TokenSelection, words_before
from unipt_jax.models.vit import VisionTransformer

LONGEST = 7  # Half of which are three.


def linear(x, p):
    return x @ p["kernel"] + p["bias"]


def reference(tokens, attention, candidates, p):
    """One row at a time, the candidates alone."""
    rows = []
    for token, weight, keep in zip(tokens, attention, candidates, strict=True):
        token, weight = token[keep], weight[keep]
        x = token[weight.topk(min(3, len(weight))).indices]
        x = x / x.norm(dim=1, keepdim=True)
        x = linear(x, p["projection"]) + linear(torch.relu(linear(x, p["fc1"])), p["fc2"])
        rows.append(x.amax(dim=0))
    return torch.stack(rows)


@jax.jit
@functools.partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
def total(params, tokens, attention, candidates, out):
    """The embeddings' sum weighed by `out`, and the embeddings."""
    model = TokenSelection(SPEC, LONGEST)
    embeddings = model.apply({"params": params}, tokens, attention, candidates)
    return (embeddings * out).sum(), embeddings


@pytest.mark.parametrize("seed", range(5))
def test_embeddings_and_gradients(seed):
    rng = np.random.default_rng(seed)
    tokens = rng.normal(size=(5, LONGEST + 1, WIDTH)).astype(np.float32)
    attention = rng.uniform(size=(5, LONGEST + 1)).astype(np.float32)
    candidates = np.arange(LONGEST + 1)[None] < rng.integers(1, LONGEST + 2, (5, 1))
    params, out = _parameters(SPEC, WIDTH, seed), rng.normal(size=(5, 6)).astype(np.float32)
    (_, have), gradients = total(params, tokens, attention, candidates, out)
    leaves = jax.tree.map(lambda leaf: torch.tensor(leaf, dtype=torch.float64), params)
    jax.tree.map(lambda leaf: leaf.requires_grad_(), leaves)
    inputs = torch.tensor(tokens, dtype=torch.float64, requires_grad=True)
    want = reference(inputs, torch.tensor(attention), torch.tensor(candidates), leaves)
    (want * torch.tensor(out)).sum().backward()
    np.testing.assert_allclose(have, want.detach(), atol=1e-5)
    *ours, of_attention = jax.tree.leaves(gradients)
    theirs = [leaf.grad for leaf in (*jax.tree.leaves(leaves), inputs)]
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * max(1, float(other.abs().max())))
    np.testing.assert_array_equal(of_attention, 0.0)  # The choice itself has no slope.


@pytest.fixture(scope="module")
def clip():
    """A CLIP of transformers that tells its attention, and ours of the same weights."""
    model = test_clip.reference(*test_clip.square(1e-5, "quick_gelu"))
    pretrained = references.reload(model)
    model.set_attn_implementation("eager")
    return model, pretrained


@functools.partial(jax.jit, static_argnums=0)
def attended(encoder, params, *inputs):
    return encoder.apply({"params": params}, *inputs, train=False, attention=True)


def test_the_class_tokens_attention(clip):
    model, pretrained = clip
    spec = pretrained.spec.image
    images = np.random.default_rng(0).normal(size=(4, *spec.image_size, 3)).astype(np.float32)
    with torch.no_grad():
        vision = model.vision_model(
            torch.tensor(images.transpose(0, 3, 1, 2)), output_attentions=True
        )
    want = vision.attentions[-1].mean(dim=1)[:, 0]
    params = pretrained.params["image_encoder"]
    tokens, have = attended(VisionTransformer(spec), params, images)
    np.testing.assert_allclose(have, want, atol=1e-6)
    last = model.vision_model.post_layernorm(vision.last_hidden_state).detach()
    np.testing.assert_allclose(tokens, last, atol=1e-4)
    assert np.abs(want - want.mean(dim=1, keepdim=True)).max() > 1e-3


def test_the_end_of_texts_attention(clip):
    model, pretrained = clip
    text, mask = test_clip.sentences()
    with torch.no_grad():
        encoded = model.text_model(
            torch.tensor(text), attention_mask=torch.tensor(mask), output_attentions=True
        )
    ends = mask.sum(axis=1) - 1
    want = encoded.attentions[-1].mean(dim=1)[torch.arange(len(text)), torch.tensor(ends)]
    params = pretrained.params["text_encoder"]
    _, have = attended(ClipText(pretrained.spec.text), params, text, mask)
    np.testing.assert_allclose(have, want, atol=1e-6)
    # What is left to select from: all but the first and the last of each text's tokens.
    candidates = words_before(jnp.asarray(ends), jnp.asarray(mask))
    np.testing.assert_array_equal(candidates.sum(axis=1), mask.sum(axis=1) - 2)
