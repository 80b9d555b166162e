"""What is optimised. An objective has two halves, so that a batch can be taken in parts.

`features` looks at each example alone: its outputs have one row an example. `loss` couples the
rows: the negatives of a contrastive loss are the whole batch's, however `features` was computed.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Shaped

from unipt_jax.losses import contrastive, mlm

Batch = Mapping[str, Any]  # as `data.pipeline.LoadPair` tells, with a leading batch dimension
Features = Mapping[str, Shaped[Array, "..."]]
Metrics = dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class Objective:
    """A pair of pure functions.

    `features(params, batch, key)` maps parameters, a batch and a dropout key to arrays that all
    have the batch as their first dimension; `loss(features, batch)` maps them to a float32 scalar
    and metrics.
    """

    features: Callable[[Any, Batch, Key[Array, ""]], Features]
    loss: Callable[[Features, Batch], tuple[Float[Array, ""], Metrics]]


def pretraining(model: nn.Module, *, mlm_weight: float, negatives: int) -> Objective:
    """The paper's pre-training objective, L_con + beta * L_mlm (section 3.3).

    Args:
        model: a `DualEncoder`.
        mlm_weight: beta; the paper's is 1.
        negatives: examples contrasted with each other; 0 is the whole batch.
    """

    def features(params: Any, batch: Batch, key: Key[Array, ""]) -> Features:
        out = model.apply({"params": params}, batch, train=True, rngs={"dropout": key})
        mask = batch["mlm_mask"] & batch["valid"][:, None]
        sums, counts, correct = mlm.masked_cross_entropy(
            out["mlm_logits"], batch["mlm_labels"], mask
        )
        return {
            "image_embedding": out["image_embedding"],
            "text_embedding": out["text_embedding"],
            # A row an example, so that its gradient adds up over the parts of a batch too.
            "logit_scale": jnp.broadcast_to(out["logit_scale"], sums.shape),
            "mlm_sum": sums,
            "mlm_count": counts,
            "mlm_correct": correct,
        }

    def loss(features: Features, batch: Batch) -> tuple[Float[Array, ""], Metrics]:
        logit_scale = jnp.mean(features["logit_scale"])
        con, metrics = contrastive.info_nce(
            features["image_embedding"],
            features["text_embedding"],
            logit_scale,
            batch["valid"],
            group=negatives,
        )
        predictions = jnp.maximum(jnp.sum(features["mlm_count"]), 1.0)
        language = jnp.sum(features["mlm_sum"]) / predictions
        total = con + mlm_weight * language
        return total, metrics | {
            "loss": total,
            "loss/contrastive": con,
            "loss/mlm": language,
            "accuracy/mlm": jnp.sum(features["mlm_correct"]) / predictions,
            "logit_scale": logit_scale,
            "valid_examples": jnp.sum(batch["valid"].astype(jnp.float32)),
        }

    return Objective(features, loss)
