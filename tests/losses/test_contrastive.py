"""InfoNCE against torch's cross-entropy and the released code's formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unipt_jax.core.errors import ConfigError
from unipt_jax.core.sharding import batch_sharding, make_mesh, put_batch
from unipt_jax.losses import matching
from unipt_jax.losses.contrastive import info_nce
from unipt_jax.models.compute import compiler_options


def _embeddings(batch=8, width=5):
    rng = np.random.default_rng(0)
    image, text = rng.normal(size=(2, batch, width)).astype(np.float32)
    return 3 * image, text + 0.3 * image


_info_nce = jax.jit(info_nce, static_argnames="group")


def _loss(image, text, scale, valid, group=0):
    return _info_nce(
        jnp.asarray(image), jnp.asarray(text), jnp.float32(scale), jnp.asarray(valid), group=group
    )


def _torch_loss(torch, image, text, scale):
    """The released code's `compute_cl` without its masked-image term."""
    image = image / (image.norm(dim=1, keepdim=True) + 1e-12)
    text = text / (text.norm(dim=1, keepdim=True) + 1e-12)
    similarity = scale * torch.mm(image, text.t())
    labels = torch.arange(len(image))
    cross_entropy = torch.nn.functional.cross_entropy
    return (cross_entropy(similarity, labels) + cross_entropy(similarity.t(), labels)) / 2


@pytest.mark.parametrize("scale", [1.0, 14.3])
def test_value_and_gradients_equal_torch(scale):
    """P110: with a scale of 1, the released code's own formula."""
    torch = pytest.importorskip("torch")
    image, text = _embeddings()
    inputs = [torch.tensor(x, requires_grad=True) for x in (image, text, np.float32(scale))]
    want = _torch_loss(torch, *inputs)
    want.backward()

    loss = lambda i, t, s: info_nce(i, t, s, jnp.ones(8, bool))[0]  # noqa: E731
    have, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(
        jnp.asarray(image), jnp.asarray(text), jnp.float32(scale)
    )
    assert have == pytest.approx(want.item(), abs=1e-6)
    for gradient, reference in zip(gradients, inputs, strict=True):
        np.testing.assert_allclose(gradient, reference.grad.numpy(), atol=1e-6)


def test_groups_contrast_within_themselves():
    """P110: the released code's negatives, by name."""
    torch = pytest.importorskip("torch")
    image, text = _embeddings()
    parts = [
        _torch_loss(torch, torch.tensor(image[i : i + 4]), torch.tensor(text[i : i + 4]), 2.0)
        for i in (0, 4)
    ]
    have, _ = _loss(image, text, 2.0, np.ones(8, bool), group=4)
    assert have == pytest.approx(sum(parts).item() / 2, abs=1e-6)
    assert have != pytest.approx(float(_loss(image, text, 2.0, np.ones(8, bool))[0]), abs=1e-3)


def test_invalid_rows_might_as_well_be_absent():
    image, text = _embeddings()
    valid = np.array([1, 0, 1, 1, 0, 1, 1, 0], bool)
    want, want_metrics = _loss(image[valid], text[valid], 2.0, np.ones(5, bool))
    image[~valid], text[~valid] = np.nan, np.inf
    have, metrics = _loss(image, text, 2.0, valid)
    assert have == pytest.approx(float(want), abs=1e-6)
    assert metrics == pytest.approx({k: float(v) for k, v in want_metrics.items()})

    gradient = jax.grad(lambda x: _loss(x, text, 2.0, valid)[0])(jnp.asarray(image))
    assert np.isfinite(gradient).all()
    assert not gradient[~valid].any()


def test_groups_weigh_their_anchors_equally():
    image, text = _embeddings()
    valid = np.array([1, 1, 1, 1, 1, 0, 0, 0], bool)
    have, _ = _loss(image, text, 2.0, valid, group=4)
    first, _ = _loss(image[:4], text[:4], 2.0, np.ones(4, bool))
    # The fifth row is alone in its group: its own loss is 0.
    assert have == pytest.approx(float(first) * 4 / 5, abs=1e-6)


@pytest.mark.parametrize("group", [0, 4])
def test_without_a_valid_row_all_is_zero(group):
    image, text = _embeddings()
    valid = np.zeros(8, bool)
    loss = lambda i, t, s: info_nce(i, t, s, jnp.asarray(valid), group=group)  # noqa: E731
    (have, metrics), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(
        jnp.asarray(image), jnp.asarray(text), jnp.float32(2.0)
    )
    assert have == 0
    assert all(value == 0 for value in metrics.values())
    assert all(not np.asarray(gradient).any() for gradient in gradients)


def test_a_zero_embedding_has_finite_gradients():
    image, text = _embeddings()
    image[3] = 0
    gradient = jax.grad(lambda x: _loss(x, text, 2.0, np.ones(8, bool))[0])(jnp.asarray(image))
    assert np.isfinite(gradient).all()


def test_only_directions_count():
    image, text = _embeddings()
    have, _ = _loss(1000 * image, 0.001 * text, 2.0, np.ones(8, bool))
    assert have == pytest.approx(float(_loss(image, text, 2.0, np.ones(8, bool))[0]), abs=1e-6)


def test_accuracy_counts_partners_on_top():
    image = np.eye(4, dtype=np.float32)
    # Text 0 points to image 1 and the others to their own; image 0 finds all texts equally far
    # but for its own, which is no nearer: text 3 leans to it a little.
    text = image.copy()
    text[0] = [0, 1, 0, 0]
    text[3] = [0.1, 0, 0, 1]
    _, metrics = _loss(image, text, 1.0, np.ones(4, bool))
    assert metrics["accuracy/text_to_image"] == 0.75
    # Image 0 takes text 3. Texts 0 and 1 are the same for image 1, and the first of them wins.
    assert metrics["accuracy/image_to_text"] == 0.5


@pytest.mark.parametrize(("second", "hits"), [([1, 0, 0], 2 / 3), ([0, 1, 0], 1)])
def test_other_captions_of_a_person_are_negatives_here_alone(second, hits):
    """P106: Eq. 1 knows pairs alone, as `contrastive` does; `n_itc` and `sdm` go by identity.

    By hand, with the first image twice in the batch, and with two images of one person.
    """
    image = jnp.asarray([[1, 0, 0], second, [0, 0, 1]], jnp.float32)
    scale, identity, valid = jnp.float32(1.0), jnp.asarray([7, 7, 8]), jnp.ones(3, bool)
    losses = {
        "contrastive": lambda rows: info_nce(rows, image, scale, valid),
        "n_itc": lambda rows: matching.n_itc(rows, image, scale, identity, valid, soft_weight=0.0),
        "sdm": lambda rows: matching.sdm(rows, image, identity, valid, temperature=1.0),
    }
    found = {
        name: jax.jit(jax.value_and_grad(loss, has_aux=True))(image)
        for name, loss in losses.items()
    }

    # Texts are as their images, so both directions are alike.
    softmax = np.exp(image @ image.T)
    softmax /= softmax.sum(axis=1, keepdims=True)
    shared = np.array([[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]])
    divergence = softmax * (np.log(softmax) - np.log(shared + 1e-8))
    want = {
        "contrastive": -np.log(np.diagonal(softmax)).mean(),
        "n_itc": -(shared * np.log(softmax)).sum(axis=1).mean(),
        "sdm": 2 * divergence.sum(axis=1).mean(),
    }
    assert {name: value for name, ((value, _), _) in found.items()} == pytest.approx(want, rel=1e-5)

    # Of two equally near rows the first is taken, and to `contrastive` a row's own is right alone.
    accuracy = {name: told["accuracy/image_to_text"] for name, ((_, told), _) in found.items()}
    assert accuracy == pytest.approx({"contrastive": hits, "n_itc": 1, "sdm": 1})
    # Where the person's other caption differs, it is pushed away, or pulled.
    if second[1]:
        pulled = {name: -gradient[0, 1] > 0 for name, (_, gradient) in found.items()}
        assert pulled == {"contrastive": False, "n_itc": True, "sdm": True}


def test_bfloat16_embeddings_are_compared_in_float32():
    image, text = (jnp.asarray(x, jnp.bfloat16) for x in _embeddings())
    with jax.numpy_dtype_promotion("strict"):
        have, _ = _info_nce(image, text, jnp.float32(9.0), jnp.ones(8, bool))
    want, _ = _loss(image.astype(jnp.float32), text.astype(jnp.float32), 9.0, np.ones(8, bool))
    assert have.dtype == jnp.float32
    assert have == want


def test_eight_devices_compute_what_one_does():
    """P23: also its gradient."""
    image, text = _embeddings()
    valid = np.array([1, 1, 1, 1, 1, 1, 0, 1], bool)
    mesh = make_mesh()
    batch = put_batch({"image": image, "text": text, "valid": valid}, mesh)
    loss = lambda i, t, v: info_nce(i, t, jnp.float32(5.0), v)[0]  # noqa: E731
    with jax.set_mesh(mesh):
        have, gradient = jax.jit(jax.value_and_grad(loss))(
            batch["image"], batch["text"], batch["valid"]
        )
    want, reference = jax.jit(jax.value_and_grad(loss))(*map(jnp.asarray, (image, text, valid)))
    assert have == pytest.approx(float(want), abs=1e-6)
    np.testing.assert_allclose(gradient, reference, atol=1e-6)


# ---------------------------------------------------------------------------- one block of logits


def _dense(image, text, scale, seen):
    """The textbook's loss on all logits at once, of which those not seen are out of the way."""
    unit = lambda rows: rows / jnp.linalg.norm(rows, axis=1, keepdims=True)  # noqa: E731
    logits = jnp.where(seen, scale * unit(image) @ unit(text).T, -1e30)
    normalizers = jax.nn.logsumexp(logits, axis=1) + jax.nn.logsumexp(logits, axis=0)
    return (normalizers / 2 - jnp.diagonal(logits)).mean()


def _on(sizes, image, text, scale, valid, group):
    """Loss and metrics on a mesh, and the gradients of embeddings and scale."""
    mesh = make_mesh(*sizes)
    batch = put_batch({"image": image, "text": text, "valid": valid}, mesh)
    loss = lambda i, t, s: info_nce(i, t, s, batch["valid"], group=group)  # noqa: E731
    with jax.set_mesh(mesh):
        return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(
            batch["image"], batch["text"], jnp.float32(scale)
        )


@pytest.mark.parametrize("group", [0, 12])
# 3 rows a device cannot be met in 4 parts, 12 can.
@pytest.mark.parametrize("size", [24, 96])
@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2), (1, 1, 8)])
def test_value_and_gradients_equal_the_dense_loss(sizes, size, group):
    """P23."""
    image, text = _embeddings(size)
    valid = np.random.default_rng(1).random(size) > 0.2
    (have, _), gradients = _on(sizes, image, text, 9.0, valid, group)
    where = (np.arange(size) // (group or size))[valid]
    want, references = jax.jit(jax.value_and_grad(_dense, (0, 1, 2)))(
        image[valid], text[valid], jnp.float32(9.0), where[:, None] == where
    )
    assert have == pytest.approx(float(want), rel=1e-6)
    # Invalid rows have no gradient.
    wanted = [np.zeros_like(image), np.zeros_like(text)]
    for whole, of_valid in zip(wanted, references[:2], strict=True):
        whole[valid] = of_valid
    for gradient, reference in zip(gradients, [*wanted, references[2]], strict=True):
        assert np.abs(reference).max() > 1e-3
        np.testing.assert_allclose(gradient, reference, atol=1e-6)


@pytest.mark.parametrize("group", [0, 16])
@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 4, 2), (1, 1, 8)])
def test_the_first_of_equals_wins_wherever_it_lies(sizes, group):
    rng = np.random.default_rng(2)
    size = 64
    # Few directions, so that most anchors find several candidates equally near.
    directions = np.eye(8, dtype=np.float32)
    image, text = directions[rng.integers(0, 8, (2, size))]
    valid = rng.random(size) > 0.2
    (_, have), _ = _on(sizes, image, text, 3.0, valid, group)

    where = np.arange(size) // (group or size)
    cosine = np.where((where[:, None] == where) & valid & valid[:, None], image @ text.T, -np.inf)
    for name, side in (("image_to_text", cosine), ("text_to_image", cosine.T)):
        want = (side.argmax(axis=1) == np.arange(size))[valid].mean()
        assert 0 < want < 1
        assert have[f"accuracy/{name}"] == pytest.approx(want)


def test_each_pair_is_multiplied_once():
    """One product forward, and one for the gradient of either side: as many as any loss takes."""
    batch, width = 64, 1024
    image, text = map(jnp.asarray, _embeddings(batch, width))
    loss = lambda i, t: info_nce(i, t, jnp.float32(5.0), jnp.ones(batch, bool))[0]  # noqa: E731
    gradient = jax.jit(jax.value_and_grad(loss, (0, 1)))
    operations = gradient.lower(image, text).compile().cost_analysis()["flops"]
    assert 3 <= operations / (2 * batch * batch * width) < 3.5


def test_eight_devices_take_an_eighth_of_the_dense_losss_memory():
    size, width = 4096, 768

    def temporary(loss, devices):
        mesh = make_mesh(devices=jax.devices()[:devices])
        split = batch_sharding(mesh)
        embedding = jax.ShapeDtypeStruct((size, width), jnp.float32, sharding=split)
        gradient = jax.jit(
            jax.value_and_grad(loss, (0, 1)),
            out_shardings=(None, (split, split)),
            compiler_options=compiler_options("cpu"),
        )
        with jax.set_mesh(mesh):
            compiled = gradient.lower(embedding, embedding).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    ours = lambda i, t: info_nce(i, t, jnp.float32(1.0), jnp.ones(size, bool))[0]  # noqa: E731
    dense = temporary(lambda i, t: _dense(i, t, 1.0, True), 1)
    # At least the logits and their gradient.
    assert dense > 2 * 4 * size * size
    assert temporary(ours, 8) < dense / 8
    assert temporary(ours, 1) < dense


@pytest.mark.parametrize("group", [-1, 3, 16])
def test_groups_must_divide_the_batch(group):
    with pytest.raises(ConfigError, match=f"batch of 8 .* groups of {group}"):
        _loss(*_embeddings(), 1.0, np.ones(8, bool), group=group)
