"""The losses of fine-tuning, and their gradients, against the papers' formulas in torch.

The references take one anchor at a time, in float64.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unipt_jax.losses.cyclic import c_itc
from unipt_jax.losses.identity import identity_cross_entropy
from unipt_jax.losses.matching import n_itc, r_itc, sdm
from unipt_jax.losses.ranking import draw_semi_hard, semi_hard_ranking, tal
from unipt_jax.losses.sigmoid import pairwise_sigmoid

torch = pytest.importorskip("torch")

BATCH = 9
SEEDS = range(3)


def _case(seed):
    """Pairs that lean to each other and to their identity; 3 to 6 identities, so some recur."""
    rng = np.random.default_rng(seed)
    identity = rng.integers(0, 3 + seed, BATCH).astype(np.int32)
    assert 1 < len(np.unique(identity)) < BATCH
    person = rng.normal(size=(10, 6))[identity]
    image, text = person + rng.normal(size=(2, BATCH, 6))
    return image.astype(np.float32), (4 * text).astype(np.float32), identity


def _cosine(first, second):
    return (first * second).sum() / (first.norm() * second.norm())


def _directions(image, text):
    """Yields the anchors of both directions: their index and cosines with the other side."""
    for anchors, others in ((image, text), (text, image)):
        for i, anchor in enumerate(anchors):
            yield i, torch.stack([_cosine(anchor, other) for other in others])


def _compare(loss, reference, arrays, rtol=1e-5):
    """Compares the value and the gradients with respect to all arrays."""
    inputs = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in arrays]
    want = reference(*inputs)
    want.backward()
    have, gradients = loss(*map(jnp.asarray, arrays))
    assert abs(want.item()) > 1e-3
    assert have == pytest.approx(want.item(), rel=rtol)
    for gradient, given in zip(gradients, inputs, strict=True):
        wanted = given.grad.numpy()
        size = np.linalg.norm(wanted)
        assert size > 1e-4
        assert np.linalg.norm(gradient - wanted) <= rtol * size


def _with_gradients(loss, count):
    """Jits `loss(*differentiated, *others)` to its value and gradients; metrics are left out."""
    return jax.jit(jax.value_and_grad(lambda *inputs: loss(*inputs)[0], tuple(range(count))))


# ---------------------------------------------------------------------------- identity


@functools.cache
def _identity():
    return _with_gradients(identity_cross_entropy, 2)


@pytest.mark.parametrize("seed", SEEDS)
def test_identity(seed):
    rng = np.random.default_rng(seed)
    image, text = 4 * rng.normal(size=(2, BATCH, 5)).astype(np.float32)
    identity = rng.integers(0, 5, BATCH).astype(np.int32)

    def reference(image, text):
        total = 0
        for logits in (image, text):
            for row, label in zip(logits, identity, strict=True):
                total = total - torch.log(torch.exp(row)[label] / torch.exp(row).sum()) / BATCH
        return total

    loss = lambda i, t: _identity()(i, t, jnp.asarray(identity), jnp.ones(BATCH, bool))  # noqa: E731
    _compare(loss, reference, (image, text))


# ---------------------------------------------------------------------------- ranking


_draw = jax.jit(draw_semi_hard, static_argnames="margin")


@functools.cache
def _ranking():
    return _with_gradients(functools.partial(semi_hard_ranking, margin=0.3), 2)


@pytest.mark.parametrize("seed", SEEDS)
def test_semi_hard_ranking(seed):
    """P106: none of the same person is a negative."""
    image, text, identity = _case(seed)
    key = jax.random.key(seed)
    margin = 0.3
    drawn = []
    with torch.no_grad():
        similarity = torch.stack(
            [cosines for _, cosines in _directions(torch.tensor(image), torch.tensor(text))]
        )
    negative = jnp.asarray(identity[:, None] != identity)
    for side, half in enumerate(similarity.split(BATCH)):
        # Each anchor's key: folded by side, then by row.
        keys = [jax.random.fold_in(jax.random.fold_in(key, side), row) for row in range(BATCH)]
        half = jnp.asarray(half.numpy())
        columns, found = _draw(jnp.diagonal(half), half, negative, jnp.stack(keys), margin=margin)
        drawn += [int(j) if any_ else None for j, any_ in zip(columns, found, strict=True)]
    assert sum(column is not None for column in drawn) >= 4

    def reference(image, text):
        total = 0
        for (i, cosines), column in zip(_directions(image, text), drawn, strict=True):
            allowed = [
                j
                for j in range(BATCH)
                if identity[j] != identity[i] and cosines[i] - margin < cosines[j] < cosines[i]
            ]
            assert column in (allowed or [None])
            if column is not None:
                total = total + margin - cosines[i] + cosines[column]
        return total

    loss = lambda i, t: _ranking()(i, t, jnp.asarray(identity), jnp.ones(BATCH, bool), key)  # noqa: E731
    _compare(loss, reference, (image, text))


@functools.cache
def _tal(temperature, margin):
    return _with_gradients(functools.partial(tal, temperature=temperature, margin=margin), 2)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("temperature", "margin"), [(0.015, 0.1), (0.2, 0.3)])
def test_tal(seed, temperature, margin):
    image, text, identity = _case(seed)

    def reference(image, text):
        total = 0
        for i, cosines in _directions(image, text):
            same = torch.tensor(identity == identity[i])
            exponentials = torch.exp(cosines / temperature)
            weights = (exponentials[same] / exponentials[same].sum()).detach()
            positive = (weights * cosines[same]).sum()
            negative = temperature * torch.log(exponentials[~same].sum())
            total = total + torch.relu(margin - positive + negative)
        return total

    loss = lambda i, t: _tal(temperature, margin)(  # noqa: E731
        i, t, jnp.asarray(identity), jnp.ones(BATCH, bool)
    )
    _compare(loss, reference, (image, text))


# ---------------------------------------------------------------------------- matching


def _distribution(identity, i):
    """The labels of anchor i: its identity's rows share the mass."""
    same = torch.tensor(identity == identity[i], dtype=torch.float64)
    return same / same.sum()


def _divergence(image, text, identity, scale, epsilon):
    """The mean over anchors of both directions' KL, summed over the directions."""
    total = 0
    for i, cosines in _directions(image, text):
        prediction = torch.softmax(scale * cosines, dim=0)
        target = _distribution(identity, i)
        total = total + sum(
            p * (torch.log(p) - torch.log(q + epsilon))
            for p, q in zip(prediction, target, strict=True)
        )
    return total / BATCH


@functools.cache
def _sdm(temperature, epsilon):
    return _with_gradients(functools.partial(sdm, temperature=temperature, epsilon=epsilon), 2)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("temperature", "epsilon"), [(0.02, 1e-8), (0.3, 1e-3)])
def test_sdm(seed, temperature, epsilon):
    """P106: captions of one person are positives of each other."""
    image, text, identity = _case(seed)
    loss = lambda i, t: _sdm(temperature, epsilon)(  # noqa: E731
        i, t, jnp.asarray(identity), jnp.ones(BATCH, bool)
    )
    reference = lambda i, t: _divergence(i, t, identity, 1 / temperature, epsilon)  # noqa: E731
    _compare(loss, reference, (image, text))


@functools.cache
def _r_itc():
    return _with_gradients(r_itc, 3)


@pytest.mark.parametrize("seed", SEEDS)
def test_r_itc(seed):
    image, text, identity = _case(seed)
    loss = lambda i, t, s: _r_itc()(i, t, s, jnp.asarray(identity), jnp.ones(BATCH, bool))  # noqa: E731
    reference = lambda i, t, s: _divergence(i, t, identity, s, 1e-2) / 2  # noqa: E731
    _compare(loss, reference, (image, text, np.float32(14.3)))


@functools.cache
def _n_itc(soft_weight):
    return _with_gradients(functools.partial(n_itc, soft_weight=soft_weight), 3)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("soft_weight", [0.5, 0.2])
def test_n_itc(seed, soft_weight):
    """P106: captions of one person are positives of each other."""
    image, text, identity = _case(seed)

    def reference(image, text, scale):
        total = 0
        for i, cosines in _directions(image, text):
            prediction = torch.softmax(scale * cosines, dim=0)
            hard = _distribution(identity, i)
            target = soft_weight * prediction.detach() + (1 - soft_weight) * hard
            total = total - (target * torch.log(prediction)).sum()
        return total / (2 * BATCH)

    loss = lambda i, t, s: _n_itc(soft_weight)(  # noqa: E731
        i, t, s, jnp.asarray(identity), jnp.ones(BATCH, bool)
    )
    _compare(loss, reference, (image, text, np.float32(14.3)))


# ---------------------------------------------------------------------------- cyclic and sigmoid


@functools.cache
def _c_itc():
    return _with_gradients(
        functools.partial(c_itc, in_modal_weight=0.25, cross_modal_weight=0.4), 2
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_c_itc(seed):
    image, text, _ = _case(seed)

    def reference(image, text):
        total = 0
        for i in range(BATCH):
            for j in range(BATCH):
                in_modal = _cosine(image[i], image[j]) - _cosine(text[i], text[j])
                cross_modal = _cosine(image[i], text[j]) - _cosine(image[j], text[i])
                total = total + 0.25 * in_modal**2 + 0.4 * cross_modal**2
        return total / BATCH**2

    loss = lambda i, t: _c_itc()(i, t, jnp.ones(BATCH, bool))  # noqa: E731
    _compare(loss, reference, (image, text))


@functools.cache
def _sigmoid(by_identity):
    def loss(image, text, scale, bias, identity, valid):
        identity = identity if by_identity else None
        return pairwise_sigmoid(image, text, scale, bias, valid, identity=identity)

    return _with_gradients(loss, 4)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("by_identity", [True, False])
def test_pairwise_sigmoid(seed, by_identity):
    image, text, identity = _case(seed)

    def reference(image, text, scale, bias):
        total = 0
        for i in range(BATCH):
            for j in range(BATCH):
                positive = identity[i] == identity[j] if by_identity else i == j
                sign = 1 if positive else -1
                logit = scale * _cosine(image[i], text[j]) + bias
                total = total - torch.log(1 / (1 + torch.exp(-sign * logit)))
        return total / BATCH

    loss = lambda i, t, s, b: _sigmoid(by_identity)(  # noqa: E731
        i, t, s, b, jnp.asarray(identity), jnp.ones(BATCH, bool)
    )
    _compare(loss, reference, (image, text, np.float32(10), np.float32(-4)))
