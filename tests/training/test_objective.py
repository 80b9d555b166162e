"""What is optimised: each weight times its loss, of losses that are called here by themselves."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import micro
from unipt_jax.config import schema
from unipt_jax.core import random
from unipt_jax.losses import contrastive, cyclic, identity, matching, ranking, sigmoid
from unipt_jax.models.clip import ClipTextSpec
from unipt_jax.models.token_selection import TokenSelectionSpec
from unipt_jax.training import objective

B, D, C, Q = 8, 6, 5, micro.PGU.prototypes
OWNER = jnp.asarray([0, 0, 1, 2, 2, 3, 4, 1], jnp.int32)
VALID = jnp.arange(B) != 5
BATCH = {"identity": OWNER, "valid": VALID}
SCALE, BIAS = jnp.asarray(5.0), jnp.asarray(-2.0)
KEY = jax.random.key(3)
NOTHING = schema.Loss(contrastive=0.0, mlm=0.0)
ALWAYS = {"loss", "logit_scale", "valid_examples"}


def drawn(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


IMAGE, TEXT = ({"global": drawn(s, B, D), "pgu": drawn(s + 2, B, D)} for s in (0, 1))
LOGITS = [{"global": drawn(s, B, 1, C), "pgu": drawn(s + 2, B, Q, C)} for s in (4, 5)]
FEATURES = {
    "image": IMAGE,
    "text": TEXT,
    "image_identity": LOGITS[0],
    "text_identity": LOGITS[1],
    "logit_scale": jnp.full(B, SCALE),
    "logit_bias": jnp.full(B, BIAS),
    "mlm_sum": jnp.arange(8.0),
    "mlm_count": jnp.asarray([0.0, 1, 2, 3, 0, 1, 2, 3]),
    "mlm_correct": jnp.asarray([0.0, 1, 0, 2, 0, 0, 1, 1]),
}
PRETRAINED = micro.model()
FINE_TUNED = micro.model(pgu=micro.PGU, identities=C, mlm=False)


def measure(model, features=FEATURES, key=KEY, **weights):
    """Returns the objective's loss and metrics for some weights alone."""
    how = dataclasses.replace(NOTHING, **weights)
    loss, found = objective.weighted(model, how).loss(features, BATCH, key)
    assert float(found["loss"]) == float(loss)
    return float(loss), found


# Each loss by itself, with a constant unlike the default where it has one.
COMPARED = {
    "contrastive": (
        {"negatives": 4},
        lambda image, text, key: contrastive.info_nce(image, text, SCALE, VALID, group=4),
    ),
    "sdm": (
        {"sdm_temperature": 0.3},
        lambda image, text, key: matching.sdm(image, text, OWNER, VALID, temperature=0.3),
    ),
    "tal": (
        {"tal_temperature": 0.4, "tal_margin": 0.7},
        lambda image, text, key: ranking.tal(
            image, text, OWNER, VALID, temperature=0.4, margin=0.7
        ),
    ),
    "n_itc": (
        {"soft_labels": 0.1},
        lambda image, text, key: matching.n_itc(image, text, SCALE, OWNER, VALID, soft_weight=0.1),
    ),
    "r_itc": ({}, lambda image, text, key: matching.r_itc(image, text, SCALE, OWNER, VALID)),
    "c_itc": ({}, lambda image, text, key: cyclic.c_itc(image, text, VALID)),
    "sigmoid": (
        {},
        lambda image, text, key: sigmoid.pairwise_sigmoid(
            image, text, SCALE, BIAS, VALID, identity=OWNER
        ),
    ),
    "ranking": (
        {"ranking_margin": 0.9},
        lambda image, text, key: ranking.semi_hard_ranking(
            image, text, OWNER, VALID, key, margin=0.9
        ),
    ),
}


def test_every_weight_of_the_configuration_is_tried_here():
    constants = {name for given, _ in COMPARED.values() for name in given}
    weights = {item.name for item in dataclasses.fields(schema.Loss)} - constants
    assert weights == {*COMPARED, "mlm", "identity", "pgu"}


@pytest.mark.parametrize("name", COMPARED)
def test_a_loss_counts_by_its_weight(name):
    constants, compare = COMPARED[name]
    alone, metrics = compare(IMAGE["global"], TEXT["global"], random.stream(KEY, "global", 0))
    assert abs(alone) > 1e-2
    loss, found = measure(PRETRAINED, **{name: 0.7}, **constants)
    assert loss == pytest.approx(0.7 * float(alone), rel=1e-6)
    assert set(found) == ALWAYS | {f"loss/{name}"} | set(metrics)
    for metric, value in {f"loss/{name}": alone, **metrics}.items():
        assert float(found[metric]) == pytest.approx(float(value), rel=1e-6)
    for constant in constants:  # Which is read, and not the default.
        others = {key: value for key, value in constants.items() if key != constant}
        assert abs(measure(PRETRAINED, **{name: 0.7}, **others)[0] - loss) > 1e-4


def test_the_papers_pretraining_by_hand():
    """L_con + beta * L_mlm; the masked words' mean is that of the batch."""
    loss, found = measure(PRETRAINED, contrastive=1.0, mlm=0.5)
    con, metrics = contrastive.info_nce(IMAGE["global"], TEXT["global"], SCALE, VALID)
    assert loss == pytest.approx(float(con) + 0.5 * 28 / 12, rel=1e-6)
    assert float(found["loss/mlm"]) == pytest.approx(28 / 12)
    assert float(found["accuracy/mlm"]) == pytest.approx(5 / 12)
    assert (float(found["logit_scale"]), float(found["valid_examples"])) == (5.0, 7.0)
    names = {"loss/contrastive", "loss/mlm", "accuracy/mlm"}
    assert set(found) == ALWAYS | names | set(metrics)


def by_parts(image, text):
    """The identity loss of each part by itself, averaged."""
    losses = [
        identity.identity_cross_entropy(image[:, part], text[:, part], OWNER, VALID)
        for part in range(image.shape[1])
    ]
    return jax.tree.map(lambda *values: sum(values) / len(values), *losses)


def test_the_papers_fine_tuning_by_hand():
    """L_id + L_rk + gamma * L_pgu, where L_pgu is the same two of PGU's features."""
    loss, found = measure(FINE_TUNED, identity=1.0, ranking=1.0, pgu=0.5)
    want, names = 0.0, set(ALWAYS)
    for feature, gamma, prefix in (("global", 1.0, ""), ("pgu", 0.5, "pgu_")):
        named, named_metrics = by_parts(*(side[feature] for side in LOGITS))
        ranked, ranked_metrics = ranking.semi_hard_ranking(
            IMAGE[feature], TEXT[feature], OWNER, VALID, random.stream(KEY, feature, 0)
        )
        want += gamma * float(named + ranked)
        assert float(found[f"loss/{prefix}identity"]) == pytest.approx(float(named), rel=1e-6)
        assert float(found[f"loss/{prefix}ranking"]) == pytest.approx(float(ranked), rel=1e-6)
        metrics = named_metrics | ranked_metrics
        for name, value in metrics.items():
            kind, rest = name.split("/")
            assert float(found[f"{kind}/{prefix}{rest}"]) == pytest.approx(float(value), rel=1e-6)
            names.add(f"{kind}/{prefix}{rest}")
        names |= {f"loss/{prefix}identity", f"loss/{prefix}ranking"}
    assert loss == pytest.approx(want, rel=1e-6)
    assert set(found) == names


def test_parts_have_classifiers_of_their_own():
    """The average over PGU's parts: one part's logits count by a third of their loss."""
    image, text = (side["pgu"] for side in LOGITS)
    confused = FEATURES | {"image_identity": LOGITS[0] | {"pgu": image.at[:, 1].set(0.0)}}
    before, after = (
        float(measure(FINE_TUNED, rows, identity=1.0, pgu=1.0)[1]["loss/pgu_identity"])
        for rows in (FEATURES, confused)
    )
    alone = identity.identity_cross_entropy(image[:, 1], text[:, 1], OWNER, VALID)[0]
    uniform = identity.identity_cross_entropy(jnp.zeros((B, C)), text[:, 1], OWNER, VALID)[0]
    assert after - before == pytest.approx(float(uniform - alone) / Q, abs=1e-5)


def test_gamma_weighs_every_loss_of_the_granularity_unified_features():
    weights = {"identity": 0.5, "sdm": 2.0}
    without, one, two = (measure(FINE_TUNED, pgu=g, **weights) for g in (0.0, 1.0, 2.0))
    assert two[0] - without[0] == pytest.approx(2 * (one[0] - without[0]), rel=1e-5)
    part = 0.5 * one[1]["loss/pgu_identity"] + 2.0 * one[1]["loss/pgu_sdm"]
    assert one[0] - without[0] == pytest.approx(float(part), rel=1e-5)
    assert not any("pgu" in name for name in without[1])
    assert objective.feature_weights(FINE_TUNED.spec, schema.Loss(pgu=0.0)) == {"global": 1.0}


def test_selected_tokens_are_compared_beside_the_global_embedding():
    """RDE: one loss of each, added; the classifier is not theirs."""
    text = ClipTextSpec(
        40, hidden_size=16, layers=1, heads=2, mlp_size=32, max_positions=12, end_token=3
    )
    model = micro.model(text=text, selection=TokenSelectionSpec(feature_dim=D), identities=C)
    rows = dict(FEATURES)
    for side, s in (("image", 0), ("text", 1)):
        rows[side] = {"global": drawn(s, B, D), "selection": drawn(s + 6, B, D)}
        rows[f"{side}_identity"] = {"global": FEATURES[f"{side}_identity"]["global"]}
    loss, found = measure(model, rows, tal=1.0, identity=1.0)
    want = by_parts(*(side["global"] for side in LOGITS))[0]
    for feature in ("global", "selection"):
        want += ranking.tal(rows["image"][feature], rows["text"][feature], OWNER, VALID)[0]
    assert loss == pytest.approx(float(want), rel=1e-6)
    assert "loss/selection_tal" in found and "loss/selection_identity" not in found


def test_draws_follow_the_key_and_differ_between_features():
    """With the features alike, equal draws would give equal losses."""
    alike = FEATURES | {
        side: {"global": FEATURES[side]["global"], "pgu": FEATURES[side]["global"]}
        for side in ("image", "text")
    }
    found = [
        measure(FINE_TUNED, alike, jax.random.key(seed), ranking=1.0, ranking_margin=2.0)[1]
        for seed in (1, 1, 2)
    ]
    draws = [(float(each["loss/ranking"]), float(each["loss/pgu_ranking"])) for each in found]
    assert draws[0] == draws[1]
    assert len({*draws[0], *draws[2]}) == 4


def test_features_have_a_row_an_example():
    """Also what the whole batch shares; masked words of invalid rows are not counted."""
    model = micro.model(pgu=micro.PGU, identities=C, logit_bias=True)
    batch = micro.batch(8) | {"valid": np.arange(8) % 4 != 3}
    aim = objective.weighted(model, schema.Loss())
    masked = objective.weighted(model, schema.Loss(), reads_masked=True)

    def everything(batch, key):
        params = nn.unbox(model.init(key, batch, train=False))["params"]
        return params, aim.features(params, batch, key), masked.features(params, batch, key)

    params, rows, read = jax.jit(everything)(jax.tree.map(jnp.asarray, batch), KEY)
    assert all(leaf.shape[0] == 8 for leaf in jax.tree.leaves((rows, read)))
    assert set(rows) == set(FEATURES)
    np.testing.assert_array_equal(rows["mlm_count"], [0, 1, 2, 0, 0, 1, 2, 0])
    np.testing.assert_array_equal(rows["mlm_sum"] > 0, rows["mlm_count"] > 0)
    assert rows["logit_bias"] == pytest.approx(np.full(8, -10.0))
    # The masked copy, or the text: the embeddings of one are not those of the other.
    encode = jax.jit(functools.partial(model.apply, {"params": params}, method="encode_text"))
    for found, text in ((rows, "text"), (read, "masked_text")):
        want = encode(batch[text], batch["text_mask"])
        np.testing.assert_allclose(found["text"]["global"], want, atol=1e-5)
    assert np.abs(rows["text"]["global"] - read["text"]["global"]).max() > 1e-3
