"""Preparing a data set: annotations and images to what the other stages read."""

from ml_collections import ConfigDict

VARIANTS = {
    "cuhk_pedes": {"dataset": "cuhk_pedes"},
    "icfg_pedes": {"dataset": "icfg_pedes"},
    "rstp_reid": {"dataset": "rstp_reid"},
    "pairs": {"dataset": "pairs"},
    "luperson_t": {"dataset": "luperson_t"},
    "luperson_mllm": {"dataset": "luperson_mllm"},
    "mals": {"dataset": "mals"},
    "synth_pedes": {"dataset": "synth_pedes"},
    "drawn": {"dataset": "drawn"},
    "demo_drawn": {
        "dataset": "drawn",
        "tokenizer": "examples/tokenizer",
        "count": 12_000,
        "height": 128,
        "width": 64,
    },
    # The data sets of benchmarks/drawn_reid.
    "drawn_reid": {
        "dataset": "cuhk_pedes",
        "tokenizer": "benchmarks/drawn_reid/tokenizer",
        "pixels": (64, 32),
    },
    "demo": {
        "dataset": "cuhk_pedes",
        "name": "sample",
        "source": "examples/pedestrians",
        "tokenizer": "examples/tokenizer",
    },
}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the values of the comma-separated variants, later ones winning."""
    config = ConfigDict({"stage": "prepare"})
    for name in filter(None, variant.split(",")):
        config.update(VARIANTS[name])
    return config
