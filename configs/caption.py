"""Pseudo texts for unlabelled pedestrians; `unipt_jax/config/schema.py` tells each field."""

from ml_collections import ConfigDict

VARIANTS: dict = {}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the paper's values; there are no variants."""
    return ConfigDict(
        {
            "stage": "caption",
            "clip": "openai/clip-vit-base-patch16",
            "threshold": 0.9,
            "wrappers": 1,
        }
    )
