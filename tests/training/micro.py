"""A dual encoder of a few thousand parameters and random batches for it."""

import dataclasses

import numpy as np

from unipt_jax.config import schema
from unipt_jax.models.bert import TextSpec
from unipt_jax.models.dual_encoder import DualEncoder, DualEncoderSpec
from unipt_jax.models.pgu import PguSpec
from unipt_jax.models.vit import VisionSpec
from unipt_jax.training import objective, optimizer, step

VOCABULARY, LENGTH, PREDICTIONS = 40, 12, 3
PGU = PguSpec(
    dictionary_size=6,
    prototypes=3,
    part_dim=4,
    heads=2,
    dictionary_head_size=4,
    dictionary_mlp_size=8,
    prototype_layers=1,
    prototype_head_size=4,
    prototype_mlp_size=8,
)


def model(temperature="learned", dropout=0.0, **changes):
    """Returns the model of pre-training, or, with `changes` of its specification, another."""
    spec = DualEncoderSpec(
        image=VisionSpec(
            image_size=(16, 8), patch_size=4, hidden_size=16, layers=1, heads=2, mlp_size=32
        ),
        text=TextSpec(
            vocab_size=VOCABULARY,
            hidden_size=16,
            layers=1,
            heads=2,
            mlp_size=32,
            max_positions=LENGTH,
            dropout=dropout,
        ),
        embedding_dim=8,
        pooling="max",
        pool_padding=False,
        mlm=True,
        temperature=temperature,
        logit_scale=10.0,
    )
    return DualEncoder(dataclasses.replace(spec, **changes))


def batch(rows=16, seed=0):
    rng = np.random.default_rng(seed)
    text = rng.integers(5, VOCABULARY, (rows, LENGTH), dtype=np.int32)
    lengths = rng.integers(4, LENGTH + 1, rows)
    positions = np.tile(np.arange(1, PREDICTIONS + 1, dtype=np.int32), (rows, 1))
    masked = text.copy()
    np.put_along_axis(masked, positions, 4, axis=1)
    return {
        "image": rng.integers(256, size=(rows, 16, 8, 3), dtype=np.uint8),
        "text": text,
        "text_mask": np.arange(LENGTH)[None] < lengths[:, None],
        "masked_text": masked,
        "mlm_positions": positions,
        "mlm_labels": np.take_along_axis(text, positions, axis=1),
        # Rows differ in how many predictions they have: 0, 1, 2 or 3.
        "mlm_mask": np.arange(PREDICTIONS)[None] < (np.arange(rows) % 4)[:, None],
        "identity": np.arange(rows, dtype=np.int32),
        "record": np.arange(rows, dtype=np.int32),
        "valid": np.ones(rows, bool),
    }


def parts(dropout=0.0, steps=100, rate=1e-2, accumulate=1, clip_norm=0.0, warmup=0.0, ema=0.0):
    """Returns the model, the optimizer and the (not jitted) train step."""
    net = model(dropout=dropout)
    schedule = optimizer.learning_rate_schedule(peak=rate, steps=steps, warmup=warmup, decay="none")
    adamw = optimizer.make_optimizer(
        schedule, beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.01, clip_norm=clip_norm
    )
    train_step = step.make_train_step(
        objective=objective.weighted(net, schema.Loss(contrastive=1.0, mlm=1.0)),
        optimizer=adamw,
        schedule=schedule,
        accumulate=accumulate,
        ema=ema,
    )
    return net, adamw, train_step
