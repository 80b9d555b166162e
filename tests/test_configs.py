"""The configurations: every variant is valid, and the defaults are the paper's figures."""

from pathlib import Path

import pytest

from unipt_jax.config import load
from unipt_jax.core.errors import ConfigError
from unipt_jax.data import annotations

VARIANTS = ["", "vit_b16", "deit_s", "released", "demo", "deit_s,released"]


def pretrain(variant=""):
    return load.load(f"configs/pretrain.py:{variant}", {"data": "somewhere"})


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_of_pre_training_is_valid(variant):
    assert pretrain(variant).stage == "pretrain"


def test_no_variant_is_untested():
    values = {}
    exec(Path("configs/pretrain.py").read_text(), values)
    assert set(values["VARIANTS"]) <= set(VARIANTS)


def test_the_defaults_are_the_papers():
    """Paper, sections 3.3 and 4.1: the figures it states, and no temperature (Eq. 1)."""
    made = pretrain()
    assert (made.image.height, made.image.width) == (384, 128)
    assert made.text.length == 100
    assert (made.batch_size, made.epochs, made.steps) == (512, 15.0, 0)
    assert (made.optimizer.learning_rate, made.optimizer.warmup) == (1e-5, 0.1)
    assert (made.mlm.weight, made.mlm.probability, made.mlm.whole_word) == (1.0, 0.15, False)
    assert made.contrastive.temperature == "none" and made.contrastive.negatives == 0
    assert not made.model.pool_padding
    assert (made.model.image, made.model.text) == ("vit_b16", "bert_base")


def test_released_is_the_published_code():
    """Rows of the README's table where the published code departs from the paper."""
    made = pretrain("released")
    assert made.model.pool_padding and made.text.buckets == ()
    assert made.contrastive.negatives == 64 and made.contrastive.temperature == "none"
    assert made.mlm.whole_word
    assert (made.optimizer.decay, made.optimizer.beta2) == ("linear", 0.98)
    assert made.dtype == "bfloat16"


@pytest.mark.parametrize("name", annotations.LAYOUTS)
def test_every_layout_can_be_prepared(name):
    made = load.load(f"configs/prepare.py:{name}", {"source": "somewhere"})
    assert made.dataset == name


def test_the_demo_needs_no_source():
    assert load.load("configs/prepare.py:demo").source == "examples/pedestrians"
    assert load.load("configs/caption.py:demo").images == "examples/pedestrians/imgs"


def test_captions_are_the_papers():
    """Paper, section 3.1: CLIP ViT-B/16, and a softmax above 0.9 for an optional attribute."""
    made = load.load("configs/caption.py", {"images": "somewhere"})
    assert made.clip == "openai/clip-vit-base-patch16"
    assert (made.threshold, made.wrappers) == (0.9, 1)


def test_pooling_over_padding_refuses_buckets():
    """Embeddings would otherwise depend on the longest caption that happens to be in the batch."""
    with pytest.raises(ConfigError, match=r"needs text\.buckets=\(\)"):
        load.load("configs/pretrain.py", {"data": "x", "model.pool_padding": True})
