"""Blocks of rows: their parts by hand, and every loss on many devices as on one."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unipt_jax.core.sharding import make_mesh, put_batch
from unipt_jax.losses import contrastive, cyclic, matching, ranking, rows, sigmoid

WIDTH = 6


def _anchors(first, second, identity, valid, take=slice(None)):
    every = rows.Rows(
        rows.unit_rows(first, valid),
        rows.unit_rows(second, valid),
        jnp.asarray(identity),
        valid,
        jnp.arange(len(valid)),
    )
    some = jax.tree.map(lambda array: array[take], every)
    return rows.Anchors(rows.dots(some.image, every.text), some, every, "image")


# ---------------------------------------------------------------------------- parts by hand


def test_dots_have_the_first_argument_in_rows():
    first = jnp.asarray([[2.0, 0.0], [0.0, 0.0], [0.3, 0.4]])
    second = jnp.asarray([[0.0, 5.0], [1.0, 0.0], [3.0, 4.0]])
    have = _anchors(first, second, [0, 1, 2], jnp.ones(3, bool)).similarity
    np.testing.assert_allclose(have, [[0, 1, 0.6], [0, 0, 0], [0.8, 0.6, 1]], atol=1e-6)


def test_invalid_rows_are_exactly_0():
    values = jnp.asarray([[1.0, 2.0], [np.nan, np.inf], [3.0, 4.0]])
    valid = jnp.asarray([True, False, True])
    np.testing.assert_array_equal(rows.unit_rows(values, valid)[1], [0, 0])
    have = np.asarray(_anchors(values, values, [0, 1, 2], valid).similarity)
    assert not have[1].any()
    assert not have[:, 1].any()


def test_a_row_of_zeros_has_a_finite_gradient():
    gradient = jax.grad(lambda x: rows.unit_rows(x, jnp.ones(2, bool)).sum())(
        jnp.asarray([[0.0, 0.0], [3.0, 4.0]])
    )
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("take", [slice(None), slice(1, 3), slice(3, 4)])
def test_pairs_are_of_valid_rows(take):
    identity = jnp.asarray([7, 7, 9, 7], jnp.int32)
    valid = jnp.asarray([True, True, True, False])
    have = _anchors(jnp.ones((4, 2)), jnp.ones((4, 2)), identity, valid, take)
    same = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]], bool)
    other = np.array([[0, 0, 1, 0], [0, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]], bool)
    np.testing.assert_array_equal(have.same, same[take])
    np.testing.assert_array_equal(have.other, other[take])
    np.testing.assert_array_equal(have.pair, (same | other)[take])
    np.testing.assert_array_equal(have.own, np.eye(4, dtype=bool)[take])
    np.testing.assert_array_equal(have.candidate, [valid])


def test_means_are_of_valid_rows():
    valid = jnp.asarray([True, False, True])
    assert rows.valid_mean(jnp.asarray([1.0, np.nan, 4.0]), valid) == 2.5
    assert rows.valid_mean(jnp.asarray([1.0, np.nan, 4.0]), jnp.zeros(3, bool)) == 0
    assert rows.valid_count(valid) == 2 and rows.valid_count(jnp.zeros(3, bool)) == 1


def test_hits_are_positives_on_top():
    # Anchor 0 takes candidate 1, of its identity; 1 takes 2; 2 its own; candidate 3 is none.
    similarity = [[0.1, 0.8, 0.2, 0.9], [0.3, 0.4, 0.7, 0.9], [0.2, 0.1, 0.6, 0.9], [1, 1, 1, 1]]
    valid = jnp.asarray([True, True, True, False])
    blank = _anchors(jnp.ones((4, 2)), jnp.ones((4, 2)), jnp.asarray([5, 5, 6, 6]), valid)
    anchors = rows.Anchors(jnp.asarray(similarity), blank.rows, blank.every, "image")
    np.testing.assert_array_equal(anchors.hits(anchors.same), [True, False, True, False])
    np.testing.assert_array_equal(anchors.hits(anchors.own), [False, False, True, False])


# ---------------------------------------------------------------------------- on many devices

SCALE, BIAS = 7.0, -3.0
LOSSES = {
    "info_nce": lambda i, t, p, v, s: contrastive.info_nce(i, t, s, v),
    "info_nce grouped": lambda i, t, p, v, s: contrastive.info_nce(i, t, s, v, group=8),
    "sdm": lambda i, t, p, v, s: matching.sdm(i, t, p, v, temperature=0.1),
    "r_itc": lambda i, t, p, v, s: matching.r_itc(i, t, s, p, v),
    "n_itc": lambda i, t, p, v, s: matching.n_itc(i, t, s, p, v, soft_weight=0.3),
    "c_itc": lambda i, t, p, v, s: cyclic.c_itc(i, t, v),
    "sigmoid": lambda i, t, p, v, s: sigmoid.pairwise_sigmoid(
        i, t, s, jnp.float32(BIAS), v, identity=p
    ),
    "ranking": lambda i, t, p, v, s: ranking.semi_hard_ranking(i, t, p, v, jax.random.key(4)),
    "tal": lambda i, t, p, v, s: ranking.tal(i, t, p, v, temperature=0.1),
}
MESHES = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2), (4, 1, 2)]
# That each loss is the same on each mesh is compiled for minutes.
FEW = ["info_nce", "sdm", "ranking"]
EACH = [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in LOSSES]


def _batch(size, seed=0):
    rng = np.random.default_rng(seed)
    image, text = rng.normal(size=(2, size, WIDTH)).astype(np.float32)
    valid = rng.random(size) > 0.2
    identity = rng.integers(0, size // 2, size).astype(np.int32)
    return {"image": 3 * image, "text": text + 0.5 * image, "identity": identity, "valid": valid}


@functools.cache
def _compiled(name):
    def loss(batch, scale):
        given = batch["image"], batch["text"]
        return jax.value_and_grad(
            lambda i, t, s: LOSSES[name](i, t, batch["identity"], batch["valid"], s),
            (0, 1, 2),
            has_aux=True,
        )(*given, scale)

    return jax.jit(loss)


@pytest.mark.parametrize("name", EACH)
def test_each_mesh_computes_what_one_device_does(name):
    batch = _batch(32)
    (want, wanted), references = _compiled(name)(batch, jnp.float32(SCALE))
    assert want != 0 and all(np.abs(r).max() > 0 for r in references[:2])
    for sizes in MESHES:
        mesh = make_mesh(*sizes)
        with jax.set_mesh(mesh):
            (have, metrics), gradients = _compiled(name)(put_batch(batch, mesh), jnp.float32(SCALE))
        assert have == pytest.approx(float(want), rel=1e-6, abs=1e-6), sizes
        assert metrics == pytest.approx(jax.tree.map(float, wanted), abs=1e-6), sizes
        for gradient, reference in zip(gradients, references, strict=True):
            np.testing.assert_allclose(gradient, reference, atol=1e-6, err_msg=str(sizes))


@pytest.mark.parametrize("name", ["info_nce", "sdm"])
def test_a_batch_that_the_devices_do_not_divide_is_one_part(name):
    batch = _batch(12)
    (want, _), _ = _compiled(name)(batch, jnp.float32(SCALE))
    with jax.set_mesh(make_mesh()):
        (have, _), _ = _compiled(name)(batch, jnp.float32(SCALE))
    assert have == pytest.approx(float(want), abs=1e-6)


def _compiled_on(name, size, devices):
    mesh = make_mesh(devices=jax.devices()[:devices])
    batch = put_batch(_batch(size), mesh)
    with jax.set_mesh(mesh):
        return _compiled(name).lower(batch, jnp.float32(SCALE)).compile()


@pytest.mark.parametrize("name", LOSSES)
def test_no_device_holds_more_than_its_rows(name):
    """No array of the compiled program, forward or backward, is larger than a block."""
    size = 256
    parts = contrastive.PARTS if name.startswith("info_nce") else 1
    for devices in (2, 8):
        text = _compiled_on(name, size, devices).as_text()
        shapes = {
            tuple(map(int, dims.split(",")))
            for dims in re.findall(r"\b(?:f32|pred|s32|u32)\[([\d,]+)\]", text)
        }
        largest = max(int(np.prod(shape)) for shape in shapes)
        block = size * size // devices
        assert block // parts <= largest <= 2 * block // parts, (devices, largest)


@pytest.mark.parametrize("name", ["info_nce", "sdm", "sigmoid"])
def test_memory_falls_with_the_devices(name):
    peaks = [
        _compiled_on(name, 1024, devices).memory_analysis().temp_size_in_bytes
        for devices in (1, 2, 8)
    ]
    assert peaks[0] > 1.6 * peaks[1] and peaks[1] > 3 * peaks[2], peaks
