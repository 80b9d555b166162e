"""What holds for every loss of a batch of embeddings, whatever its formula."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unipt_jax.core.sharding import make_mesh, put_batch
from unipt_jax.losses.cyclic import c_itc
from unipt_jax.losses.matching import n_itc, r_itc, sdm
from unipt_jax.losses.ranking import semi_hard_ranking, tal
from unipt_jax.losses.sigmoid import pairwise_sigmoid

# With this margin, no anchor of the batch below has more than one semi-hard negative: what is drawn
# depends neither on the order of the rows nor on the key.
MARGIN = 0.05
# (image, text, identity, valid) and 1 / temperature to the loss and its metrics.
LOSSES = {
    "semi_hard_ranking": lambda i, t, identity, valid, scale: semi_hard_ranking(
        i, t, identity, valid, jax.random.key(0), margin=MARGIN
    ),
    "tal": lambda i, t, identity, valid, scale: tal(i, t, identity, valid, temperature=1 / scale),
    "sdm": lambda i, t, identity, valid, scale: sdm(i, t, identity, valid, temperature=1 / scale),
    "r_itc": lambda i, t, identity, valid, scale: r_itc(i, t, jnp.float32(scale), identity, valid),
    "n_itc": lambda i, t, identity, valid, scale: n_itc(i, t, jnp.float32(scale), identity, valid),
    "c_itc": lambda i, t, identity, valid, scale: c_itc(i, t, valid),
    "pairwise_sigmoid": lambda i, t, identity, valid, scale: pairwise_sigmoid(
        i, t, jnp.float32(scale), jnp.float32(-scale), valid, identity=identity
    ),
}
each_loss = pytest.mark.parametrize("name", LOSSES)


def _all_losses(image, text, identity, valid, *, scale=10.0):
    """Computes each loss as `((loss, metrics), gradients)`; one program compiles faster."""
    arguments = image, text, identity, valid
    return {
        name: jax.value_and_grad(
            functools.partial(loss, scale=scale), argnums=(0, 1), has_aux=True
        )(*arguments)
        for name, loss in LOSSES.items()
    }


_jitted = jax.jit(_all_losses, static_argnames="scale")


def _batch():
    """Eight pairs of five identities."""
    rng = np.random.default_rng(2834)
    image, noise = rng.normal(size=(2, 8, 5)).astype(np.float32)
    return 3 * image, noise + 0.5 * image, np.array([4, 0, 4, 2, 7, 0, 0, 3], np.int32)


def _run(name, image, text, identity, valid, scale=10.0):
    arrays = map(jnp.asarray, (image, text, identity, np.asarray(valid, bool)))
    return _on_host(_jitted(*arrays, scale=scale)[name])


def _on_host(result):
    (value, metrics), gradients = result
    metrics = {name: float(metric) for name, metric in metrics.items()}
    return float(value), metrics, tuple(map(np.asarray, gradients))


def _assert_close(have, want):
    """Compares losses, metrics and gradients, but for rounding."""
    assert have[0] == pytest.approx(want[0], rel=1e-5)
    assert have[1] == pytest.approx(want[1], rel=1e-5)
    for gradient, reference in zip(have[2], want[2], strict=True):
        np.testing.assert_allclose(gradient, reference, atol=1e-5 * np.abs(reference).max())


def test_the_batch_leaves_the_draws_no_choice():
    image, text, identity = _batch()
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text)]
    similarity = unit[0] @ unit[1].T
    counts = []
    for matrix in (similarity, similarity.T):
        gap = np.diagonal(matrix)[:, None] - matrix
        semi_hard = (identity[:, None] != identity) & (gap > 0) & (gap < MARGIN)
        counts.append(semi_hard.sum(axis=1))
    assert np.max(counts) == 1
    assert (np.sum(counts, axis=1) >= 3).all()


@each_loss
def test_invalid_rows_might_as_well_be_absent(name):
    image, text, identity = _batch()
    valid = np.array([1, 0, 1, 1, 1, 1, 0, 1], bool)
    want = _run(name, image[valid], text[valid], identity[valid], np.ones(6))
    assert want[0] > 0
    assert all(gradient.any() for gradient in want[2])
    # These rows share an identity with a valid one.
    image[~valid], text[~valid] = np.nan, np.inf
    value, metrics, gradients = _run(name, image, text, identity, valid)
    _assert_close((value, metrics, [gradient[valid] for gradient in gradients]), want)
    assert all(not gradient[~valid].any() for gradient in gradients)


@each_loss
def test_without_a_valid_row_all_is_zero(name):
    value, metrics, gradients = _run(name, *_batch(), np.zeros(8))
    assert value == 0
    assert set(metrics.values()) == {0.0}
    assert all(not gradient.any() for gradient in gradients)


@each_loss
def test_order_does_not_matter(name):
    image, text, identity = _batch()
    valid = np.array([1, 1, 1, 1, 1, 1, 0, 1], bool)
    order = np.array([3, 6, 0, 7, 5, 1, 4, 2])
    value, metrics, gradients = _run(name, image, text, identity, valid)
    want = value, metrics, [gradient[order] for gradient in gradients]
    _assert_close(_run(name, image[order], text[order], identity[order], valid[order]), want)


@each_loss
def test_only_directions_count(name):
    image, text, identity = _batch()
    value, metrics, gradients = _run(
        name, 1000 * image, 0.001 * text, identity, valid := np.ones(8)
    )
    have = value, metrics, (1000 * gradients[0], 0.001 * gradients[1])
    _assert_close(have, _run(name, image, text, identity, valid))


@each_loss
def test_sides_can_be_exchanged(name):
    image, text, identity = _batch()
    value, metrics, gradients = _run(name, image, text, identity, np.ones(8))
    other = {"image_to_text": "text_to_image", "text_to_image": "image_to_text"}
    exchanged = {}
    for metric, number in metrics.items():
        kind, direction = metric.split("/")
        exchanged[f"{kind}/{other.get(direction, direction)}"] = number
    have = _run(name, text, image, identity, np.ones(8))
    _assert_close(have, (value, exchanged, gradients[::-1]))


@each_loss
def test_extreme_embeddings_and_temperatures_stay_finite(name):
    image, text, identity = _batch()
    image[0], text[1] = 0, 0  # no direction
    image[2], text[3] = 1e15, -1e15
    image[4], text[5] = 1e-15, 1e-15
    value, metrics, gradients = _run(name, image, text, identity, np.ones(8), scale=1e5)
    assert np.isfinite([value, *metrics.values()]).all()
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_bfloat16_embeddings_are_compared_in_float32():
    image, text, identity = map(jnp.asarray, _batch())
    image, text = image.astype(jnp.bfloat16), text.astype(jnp.bfloat16)
    with jax.numpy_dtype_promotion("strict"):
        results = _jitted(image, text, identity, jnp.ones(8, bool))
    image, text = image.astype(jnp.float32), text.astype(jnp.float32)
    for name, ((value, metrics), _) in results.items():
        assert {x.dtype for x in (value, *metrics.values())} == {jnp.dtype(jnp.float32)}
        want, wanted, _ = _run(name, image, text, identity, np.ones(8))
        assert value == pytest.approx(want, rel=1e-6)
        assert metrics == pytest.approx(wanted, rel=1e-6)


@each_loss
def test_products_have_the_highest_precision(name):
    """What a GPU or TPU would otherwise round to 10 bits or 7; forwards and backwards."""
    inputs = (*map(jnp.asarray, _batch()), jnp.ones(8, bool))
    loss = functools.partial(LOSSES[name], scale=10.0)
    program = jax.make_jaxpr(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(*inputs)
    products = re.findall(r"dot_general\[.*?\] \w", str(program), flags=re.DOTALL)
    assert len(products) >= 3
    assert all("Precision.HIGHEST" in product for product in products)


def test_eight_devices_compute_what_one_does():
    image, text, identity = _batch()
    valid = np.array([1, 1, 1, 1, 1, 1, 0, 1], bool)
    mesh = make_mesh()
    batch = put_batch({"image": image, "text": text, "identity": identity, "valid": valid}, mesh)
    with jax.set_mesh(mesh):
        results = _jitted(batch["image"], batch["text"], batch["identity"], batch["valid"])
    for name, result in results.items():
        _assert_close(_on_host(result), _run(name, image, text, identity, valid))
