"""Pseudo texts for unlabelled pedestrians; `unipt_jax/config/schema.py` tells each field.

The defaults are the paper's. `demo` captions the sample with the small CLIP of `examples/`.
"""

from ml_collections import ConfigDict

VARIANTS = {
    "demo": {
        "images": "examples/pedestrians/imgs",
        "clip": "examples/small_clip",
        "tokenizer": "examples/tokenizer",
        "device_batch_size": 16,
    },
    # benchmarks/drawn_reid; the images are its pool's.
    "drawn_reid": {
        "clip": "examples/small_clip",
        "tokenizer": "benchmarks/drawn_reid/tokenizer",
    },
}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the paper's values, changed by each of the comma-separated variants in turn."""
    config = ConfigDict(
        {
            "stage": "caption",
            "clip": "openai/clip-vit-base-patch16",
            "threshold": 0.9,
            "wrappers": 1,
        }
    )
    with config.unlocked():
        for name in filter(None, variant.split(",")):
            config.update(VARIANTS[name])
    return config
