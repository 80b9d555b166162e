"""Search; `unipt_jax/config/schema.py` tells each field. `demo` searches the embedded sample."""

from ml_collections import ConfigDict

VARIANTS = {
    "demo": {
        "images": "examples/pedestrians/imgs",
        "checkpoint": "examples/small_clip",
        "clip": "examples/small_clip",
    },
}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the values, changed by each of the comma-separated variants in turn."""
    config = ConfigDict({"stage": "search", "k": 10})
    with config.unlocked():
        for name in filter(None, variant.split(",")):
            config.update(VARIANTS[name])
    return config
