"""Export to PyTorch; `unipt_jax/config/schema.py` tells each field."""

from ml_collections import ConfigDict

VARIANTS: dict = {}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the values; there are no variants."""
    return ConfigDict({"stage": "export"})
