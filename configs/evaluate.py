"""Evaluation; `unipt_jax/config/schema.py` tells each field. `demo` takes what the demo trained."""

from ml_collections import ConfigDict

VARIANTS = {
    "demo": {
        "data": ("runs/demo/data",),
        "checkpoint": "runs/demo/finetune",
        "batch_size": 60,
    },
}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the values, changed by each of the comma-separated variants in turn."""
    config = ConfigDict({"stage": "evaluate", "split": "test", "batch_size": 128})
    for name in filter(None, variant.split(",")):
        config.update(VARIANTS[name])
    return config
