"""What is optimised: a weighted sum of losses, in pre-training and in fine-tuning alike.

An objective has two halves, so that a batch can be taken in parts. `features` looks at each example
alone: its outputs have one row an example. `loss` couples the rows: the negatives of a contrastive
loss are the whole batch's, however `features` was computed.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from unipt_jax.config import schema
from unipt_jax.core import random
from unipt_jax.losses import contrastive, cyclic, identity, matching, mlm, ranking, sigmoid
from unipt_jax.models.dual_encoder import DualEncoderSpec

Batch = Mapping[str, Any]  # as `data.pipeline.LoadRows` tells
Features = Mapping[str, Any]  # as `DualEncoder.__call__` returns them, but for the MLM's logits
Metrics = dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class Objective:
    """A pair of pure functions.

    `features(params, batch, key)` maps parameters, a batch and a dropout key to arrays that all
    have the batch as their first dimension; `loss(features, batch, key)` maps them, and a key for
    what it draws, to a float32 scalar and metrics.
    """

    features: Callable[[Any, Batch, Key[Array, ""]], Features]
    loss: Callable[[Features, Batch, Key[Array, ""]], tuple[Float[Array, ""], Metrics]]


@dataclasses.dataclass(frozen=True)
class _Rows:
    """What the losses between images and texts need besides the embeddings."""

    logit_scale: Float[Array, ""]
    logit_bias: Float[Array, ""]
    identity: Int[Array, "B"]
    valid: Bool[Array, "B"]
    key: Key[Array, ""]


# The losses that compare embeddings, by the field of `schema.Loss` that weighs each.
_COMPARING: dict[str, Callable[..., tuple[Array, Metrics]]] = {
    "contrastive": lambda image, text, rows, how: contrastive.info_nce(
        image, text, rows.logit_scale, rows.valid, group=how.negatives
    ),
    "sdm": lambda image, text, rows, how: matching.sdm(
        image, text, rows.identity, rows.valid, temperature=how.sdm_temperature
    ),
    "tal": lambda image, text, rows, how: ranking.tal(
        image,
        text,
        rows.identity,
        rows.valid,
        temperature=how.tal_temperature,
        margin=how.tal_margin,
    ),
    "n_itc": lambda image, text, rows, how: matching.n_itc(
        image, text, rows.logit_scale, rows.identity, rows.valid, soft_weight=how.soft_labels
    ),
    "r_itc": lambda image, text, rows, how: matching.r_itc(
        image, text, rows.logit_scale, rows.identity, rows.valid
    ),
    "c_itc": lambda image, text, rows, how: cyclic.c_itc(image, text, rows.valid),
    "sigmoid": lambda image, text, rows, how: sigmoid.pairwise_sigmoid(
        image, text, rows.logit_scale, rows.logit_bias, rows.valid, identity=rows.identity
    ),
    "ranking": lambda image, text, rows, how: ranking.semi_hard_ranking(
        image, text, rows.identity, rows.valid, rows.key, margin=how.ranking_margin
    ),
}


def weighted(model: nn.Module, how: schema.Loss, *, reads_masked: bool = False) -> Objective:
    """The sum of the losses that have a weight.

    Losses that compare embeddings, and the identity loss, are taken of each of the model's features
    (the global one, PGU's, the selected tokens') and weighed by that feature's weight too. So the
    paper's pre-training, L_con + beta * L_mlm (section 3.3), and its fine-tuning, L_id + L_rk +
    gamma * L_pgu (section 3.4), are both weights alone.

    Args:
        model: a `DualEncoder` with the heads that the losses need.
        how: weights and constants.
        reads_masked: whether all losses read the masked copy of a text (IRRA), see
            `DualEncoder.__call__`.
    """

    def features(params: Any, batch: Batch, key: Key[Array, ""]) -> Features:
        variables, streams = {"params": params}, {"dropout": key}
        out = model.apply(variables, batch, train=True, reads_masked=reads_masked, rngs=streams)
        rows = len(batch["valid"])
        # A row an example, so that its gradient adds up over the parts of a batch too.
        for name in ("logit_scale", "logit_bias"):
            out[name] = jnp.broadcast_to(out[name], (rows,))
        if "mlm_logits" in out:
            mask = batch["mlm_mask"] & batch["valid"][:, None]
            names = ("mlm_sum", "mlm_count", "mlm_correct")
            out |= zip(
                names,
                mlm.masked_cross_entropy(out.pop("mlm_logits"), batch["mlm_labels"], mask),
                strict=True,
            )
        return out

    def loss(
        features: Features, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], Metrics]:
        valid = batch["valid"]
        rows = _Rows(
            logit_scale=jnp.mean(features["logit_scale"]),
            logit_bias=jnp.mean(features["logit_bias"]),
            identity=batch["identity"],
            valid=valid,
            key=key,
        )
        total, metrics = jnp.zeros(()), {}
        for feature, weight in feature_weights(model.spec, how).items():
            part, found = _feature_loss(feature, features, rows, how)
            total += weight * part
            metrics |= found
        if how.mlm:
            predictions = jnp.maximum(jnp.sum(features["mlm_count"]), 1.0)
            language = jnp.sum(features["mlm_sum"]) / predictions
            total += how.mlm * language
            metrics["loss/mlm"] = language
            metrics["accuracy/mlm"] = jnp.sum(features["mlm_correct"]) / predictions
        return total, metrics | {
            "loss": total,
            "logit_scale": rows.logit_scale,
            "valid_examples": jnp.sum(valid.astype(jnp.float32)),
        }

    return Objective(features, loss)


def feature_weights(spec: DualEncoderSpec, how: schema.Loss) -> dict[str, float]:
    """Returns the weight of each feature of a model by which losses compare."""
    weights = {"global": 1.0, "pgu": how.pgu, "selection": 1.0}
    return {name: weights[name] for name in spec.features if weights[name]}


def _feature_loss(
    feature: str, features: Features, rows: _Rows, how: schema.Loss
) -> tuple[Array, Metrics]:
    """Returns the weighted losses of one feature, and its metrics."""
    found: Metrics = {}
    rows = dataclasses.replace(rows, key=random.stream(rows.key, feature, 0))
    embeddings = [features[side][feature] for side in ("image", "text")]
    total = jnp.zeros(())
    for name, compare in _COMPARING.items():
        if weight := getattr(how, name):
            value, metrics = compare(*embeddings, rows, how)
            total += weight * value
            found |= metrics | {f"loss/{name}": value}
    logits = [features[f"{side}_identity"] for side in ("image", "text")]
    if how.identity and all(feature in side for side in logits):
        value, metrics = _identity_loss(*(side[feature] for side in logits), rows)
        total += how.identity * value
        found |= metrics | {"loss/identity": value}
    if feature != "global":
        found = {name.replace("/", f"/{feature}_", 1): value for name, value in found.items()}
    return total, found


def _identity_loss(
    image: Float[Array, "B Q C"], text: Float[Array, "B Q C"], rows: _Rows
) -> tuple[Array, Metrics]:
    """Averages the identity loss over a feature's parts, each with a classifier of its own."""
    by_part = jax.vmap(identity.identity_cross_entropy, in_axes=(1, 1, None, None))
    return jax.tree.map(jnp.mean, by_part(image, text, rows.identity, rows.valid))
