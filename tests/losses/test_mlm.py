"""The masked-language-model loss against torch's cross-entropy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unipt_jax.core.sharding import make_mesh, put_batch
from unipt_jax.losses.mlm import masked_cross_entropy

V = 7


def _case(counts, places=9):
    rng = np.random.default_rng(0)
    logits = 3 * rng.normal(size=(len(counts), places, V)).astype(np.float32)
    labels = rng.integers(0, V, (len(counts), places), np.int32)
    mask = np.arange(places)[None] < np.asarray(counts)[:, None]
    return logits, labels, mask


def _loss(logits, labels, mask):
    return jax.jit(masked_cross_entropy)(*map(jnp.asarray, (logits, labels, mask)))


def test_sums_and_counts_merge_to_the_global_mean():
    """P111: with 0, 1, 5 and 9 masked tokens."""
    torch = pytest.importorskip("torch")
    logits, labels, mask = _case([0, 1, 5, 9])
    want = torch.nn.functional.cross_entropy(
        torch.tensor(logits).reshape(-1, V),
        torch.tensor(np.where(mask, labels, -100)).long().reshape(-1),
        ignore_index=-100,
    )
    sums, counts, correct = _loss(logits, labels, mask)
    np.testing.assert_array_equal(counts, [0, 1, 5, 9])
    assert sums.sum() / counts.sum() == pytest.approx(want.item(), rel=1e-6)
    # The mean of the texts' means is another number.
    assert np.mean(sums[1:] / counts[1:]) != pytest.approx(want.item(), rel=1e-2)
    hits = (logits.argmax(axis=2) == labels) & mask
    np.testing.assert_array_equal(correct, hits.sum(axis=1))


def test_sums_are_the_same_over_devices():
    """P75, P111: of four devices one has no masked token."""
    logits, labels, mask = _case([0, 1, 5, 9])
    mesh = make_mesh(data=4, devices=jax.devices()[:4])
    batch = put_batch({"logits": logits, "labels": labels, "mask": mask}, mesh)
    with jax.set_mesh(mesh):
        have = jax.jit(masked_cross_entropy)(batch["logits"], batch["labels"], batch["mask"])
    for value, want in zip(have, _loss(logits, labels, mask), strict=True):
        np.testing.assert_allclose(value, want, rtol=1e-6)


def test_without_a_masked_token_all_is_zero():
    """P75, P111: and not 0 / 0."""
    logits, labels, mask = _case([0, 0])
    sums, counts, correct = _loss(logits, labels, mask)
    for value in (sums, counts, correct):
        np.testing.assert_array_equal(value, [0, 0])
    gradient = jax.grad(lambda x: _loss(x, labels, mask)[0].sum())(jnp.asarray(logits))
    np.testing.assert_array_equal(gradient, np.zeros_like(logits))


def test_token_0_is_a_token_like_any_other():
    """P77."""
    logits = np.log(np.array([[[0.5, 0.25, 0.25]]], np.float32))
    sums, counts, correct = _loss(logits, np.zeros((1, 1), np.int32), np.ones((1, 1), bool))
    assert sums[0] == pytest.approx(np.log(2))
    assert (counts[0], correct[0]) == (1, 1)


def test_labels_elsewhere_may_be_anything():
    """P77: no label means that a position does not count."""
    logits, labels, mask = _case([2, 3])
    want = _loss(logits, labels, mask)
    for filler in (-100, -1, 0, V + 5):
        have = _loss(logits, np.where(mask, labels, filler).astype(np.int32), mask)
        for value, reference in zip(have, want, strict=True):
            np.testing.assert_array_equal(value, reference)


def test_gradients_equal_torch():
    torch = pytest.importorskip("torch")
    logits, labels, mask = _case([1, 4])
    given = torch.tensor(logits, requires_grad=True)
    torch.nn.functional.cross_entropy(
        given.reshape(-1, V),
        torch.tensor(np.where(mask, labels, -100)).long().reshape(-1),
        reduction="sum",
    ).backward()
    gradient = jax.grad(lambda x: _loss(x, labels, mask)[0].sum())(jnp.asarray(logits))
    np.testing.assert_allclose(gradient, given.grad.numpy(), atol=1e-6)


def test_large_logits_stay_finite_and_bfloat16_is_summed_in_float32():
    logits, labels, mask = _case([3, 9])
    with jax.numpy_dtype_promotion("strict"):
        sums, _, _ = jax.jit(masked_cross_entropy)(
            jnp.asarray(1e30 * logits, jnp.bfloat16), jnp.asarray(labels), jnp.asarray(mask)
        )
    assert sums.dtype == jnp.float32
    assert np.isfinite(sums).all()
