"""Decisions against a brute force, prompts against their definition, shards against one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.test_conversion import SPEC
from tests.training.test_initial import noise
from unipt_jax.captioning import scorer
from unipt_jax.captioning.attributes import AttributeSet, Phrase
from unipt_jax.core.errors import ConfigError
from unipt_jax.core.sharding import make_mesh, put_batch
from unipt_jax.models import specs
from unipt_jax.models.dual_encoder import DualEncoder


def made(name, labels, negatives=(), required=True):
    phrases = {label: Phrase(label, f"a person with {label}", {}, {}) for label in labels}
    return AttributeSet(name, required, phrases, tuple(negatives))


SETS = {
    "hair": made("hair", ["short", "long", "bald"]),
    "bag": made("bag", ["sack", "purse"], ["a person without", "nobody"], required=False),
    "hat": made("hat", ["cap"], ["a bare head"], required=False),
}
WHERE = scorer.layout(SETS)
PROMPTS = 3 + 4 + 2


def brute_force(logits, threshold):
    """One image and one set at a time, in float64."""
    indices, probabilities = [], []
    for row in np.asarray(logits, np.float64):
        start = 0
        for each in SETS.values():
            size = len(each.phrases) + len(each.negatives)
            among = np.exp(row[start : start + size])
            among /= among.sum()
            best = int(among.argmax())
            absent = not each.required and (best >= len(each.phrases) or among[best] <= threshold)
            indices.append(-1 if absent else best)
            probabilities.append(among[best])
            start += size
    return np.reshape(indices, (-1, 3)), np.reshape(probabilities, (-1, 3))


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.9, 1.0])
def test_decisions_are_those_of_a_brute_force(threshold):
    logits = np.random.default_rng(0).normal(size=(500, PROMPTS)).astype(np.float32) * 4
    have = scorer.decide(jnp.asarray(logits), WHERE, threshold)
    want = brute_force(logits, threshold)
    np.testing.assert_array_equal(have[0], want[0])
    np.testing.assert_allclose(have[1], want[1], rtol=1e-5)
    # Every kind of decision occurs, unless nothing can be that sure.
    kept = {tuple(np.unique(column)) for column in np.asarray(have[0]).T}
    if threshold < 1:
        assert kept == {(0, 1, 2), (-1, 0, 1), (-1, 0)}
    else:
        assert kept == {(0, 1, 2), (-1,)}


def test_the_threshold_is_exceeded_not_met():
    """Two equal prompts: exactly 0.5, which is not above 0.5."""
    logits = jnp.zeros((1, PROMPTS))
    index, probability = scorer.decide(logits, WHERE, 0.5)
    assert probability[0, 2] == 0.5 and index[0, 2] == -1
    index, _ = scorer.decide(logits, WHERE, 0.49)
    assert index[0, 2] == 0


def test_features_are_averaged_over_wrappers():
    """The unit row of the mean; phrases stand before negatives, one set after another."""
    seen = []

    def encode(texts):
        seen.append(texts)
        rows = np.random.default_rng(len(seen)).normal(size=(len(texts), 5)).astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    features = scorer.prompt_features(encode, SETS, ["A photo of {}.", "Blurry: {}"])
    assert seen[0][2:5] == [
        "A photo of a person with bald.",
        "A photo of a person with sack.",
        "A photo of a person with purse.",
    ]
    assert seen[0][5] == "A photo of a person without." and seen[1][-1] == "Blurry: a bare head"
    seen.clear()
    mean = (encode(["x"] * PROMPTS) + encode(["x"] * PROMPTS)) / 2
    np.testing.assert_allclose(
        features, mean / np.linalg.norm(mean, axis=1, keepdims=True), rtol=1e-5
    )
    with pytest.raises(ConfigError, match="wrapper"):
        scorer.prompt_features(encode, SETS, [])


def test_cosines_have_float32s_bits_on_every_device():
    """A GPU or a TPU would multiply with fewer by default, and near prompts would tie (P91)."""
    params = jax.tree.map(jnp.asarray, noise(specs.abstract_params(SPEC)))
    features = jnp.zeros((PROMPTS, SPEC.embedding_dim))
    images = jnp.zeros((8, 16, 16, 3), jnp.uint8)
    score = scorer.make_scorer(DualEncoder(SPEC), WHERE, make_mesh(8, 1, 1))
    (product,) = [
        equation
        for equation in jax.make_jaxpr(score)(params, features, images).eqns[0].params["jaxpr"].eqns
        if equation.primitive.name == "dot_general"
        and equation.outvars[0].aval.shape[1:] == (PROMPTS,)
    ]
    assert set(product.params["precision"]) == {jax.lax.Precision.HIGHEST}


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 4, 1)])
def test_a_batch_over_devices_is_judged_as_on_one(shape):
    """Against embeddings by `apply`, cosines and the temperature in NumPy."""
    model, rng = DualEncoder(SPEC), np.random.default_rng(0)
    params = jax.tree.map(jnp.asarray, noise(specs.abstract_params(SPEC)))
    params["logit_scale"] = jnp.log(20.0)
    features = rng.normal(size=(PROMPTS, SPEC.embedding_dim)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    images = rng.integers(256, size=(16, 16, 16, 3), dtype=np.uint8)

    embed = jax.jit(lambda images: model.apply({"params": params}, images, method="encode_image"))
    embedding = np.array(embed(images))
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    want = brute_force(20.0 * embedding @ features.T, 0.9)

    mesh = make_mesh(*shape)
    score = scorer.make_scorer(model, WHERE, mesh)
    index, probability = score(params, features, put_batch({"image": images}, mesh)["image"])
    np.testing.assert_array_equal(index, want[0])
    np.testing.assert_allclose(probability, want[1], atol=1e-4)
    assert len(index.sharding.device_set) == 8
