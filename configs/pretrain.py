"""Pre-training. The defaults are the paper's recipe; `unipt_jax/config/schema.py` tells each field.

Variants: `deit_s`, `vit_b16` (the paper's two image encoders), `released` (what the published code
does where it differs from the paper), `recipe=sdm` (CLIP with similarity distribution matching, as
MLLM4Text-ReID pre-trained it for direct transfer), `demo` (a small model, minutes on a laptop),
`drawn_reid` (the tiny model of `benchmarks/drawn_reid`), and `devices=1`, `devices=8`,
`devices=256` (for a GPU, a host and a pod slice).
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

DEVICES = runpy.run_path(str(Path(__file__).parent / "common/devices.py"))["DEVICES"]
VARIANTS = {
    "vit_b16": {
        "model": {"image": "vit_b16"},
        "init_image": "google/vit-base-patch16-224",
    },
    "deit_s": {
        "model": {"image": "deit_s"},
        "init_image": "facebook/deit-small-patch16-224",
    },
    "released": {
        "dtype": "bfloat16",
        "model": {"pool_padding": True},
        "text": {"buckets": ()},
        "mlm": {"whole_word": True},
        "loss": {"negatives": 64},
        "optimizer": {"decay": "linear", "beta2": 0.98},
    },
    "recipe=sdm": {
        "epochs": 30.0,
        "image": {"height": 384, "width": 128},
        "text": {"tokenizer": "openai/clip-vit-base-patch16", "length": 77, "buckets": (32, 48)},
        "mlm": {"probability": 0.0},
        "model": {
            "image": "clip_b16",
            "text": "clip_b16",
            "embedding_dim": 512,
            "pooling": "class",
        },
        "init": "openai/clip-vit-base-patch16",
        "loss": {"contrastive": 0.0, "mlm": 0.0, "sdm": 1.0},
        "optimizer": {"decay": "cosine"},
    },
    "demo": {
        "steps": 480,
        "batch_size": 32,
        "log_every": 20,
        "checkpoint_every": 240,
        "image": {"height": 112, "width": 112, "padding": 8, "erase": 0.5},
        "text": {"tokenizer": "examples/tokenizer", "length": 64, "buckets": (32, 48)},
        "model": {"image": "small_clip", "text": "tiny", "embedding_dim": 128},
        # What ImageNet's weights are to the paper's image encoder.
        "init_image": "examples/small_clip",
        "init_text": "",
        "similarity": {"temperature": "learned"},
        # Where minutes must do, masked words teach less than whole sentences.
        "loss": {"mlm": 0.2},
        "optimizer": {"learning_rate": 1e-3, "decay": "cosine"},
    },
    # benchmarks/drawn_reid: from random weights, so that all they know is of the texts.
    "drawn_reid": {
        "steps": 400,
        "batch_size": 64,
        "log_every": 20,
        "checkpoint_every": 400,
        "image": {"height": 64, "width": 32},
        "text": {"tokenizer": "benchmarks/drawn_reid/tokenizer", "length": 48, "buckets": (32,)},
        "model": {"image": "tiny", "text": "tiny", "embedding_dim": 128},
        "init_image": "",
        "init_text": "",
        "similarity": {"temperature": "learned"},
        "optimizer": {"learning_rate": 1e-3, "decay": "cosine"},
    },
    # The paper's batch in parts, for memory: `docs/scaling.md` tells what they take.
    "devices=1": DEVICES[1] | {"accumulate": 8},
    "devices=8": DEVICES[8],
    # A batch that fits 16 GB by every compiler asked; Adam's learning rate grows with its root
    # (Malladi et al., 2022, "On the SDEs and scaling rules for adaptive gradient algorithms").
    # Nobody has trained so yet.
    "devices=256": DEVICES[256] | {"batch_size": 8192, "optimizer": {"learning_rate": 4e-5}},
}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the paper's recipe, changed by each of the comma-separated variants in turn."""
    config = ConfigDict(
        {
            "stage": "pretrain",
            "seed": 0,
            "epochs": 15.0,
            "batch_size": 512,
            "image": {"height": 384, "width": 128, "flip": 0.5},
            "text": {"tokenizer": "bert-base-uncased", "length": 100, "buckets": (32, 48, 64)},
            "mlm": {"probability": 0.15, "whole_word": False},
            "model": {"image": "vit_b16", "text": "bert_base", "embedding_dim": 768},
            "init_image": "google/vit-base-patch16-224",
            "init_text": "bert-base-uncased",
            "similarity": {"temperature": "none"},
            "loss": {"contrastive": 1.0, "mlm": 1.0},
            "optimizer": {"learning_rate": 1e-5, "warmup": 0.1, "decay": "none"},
        },
        convert_dict=True,
    )
    with config.unlocked():
        for name in filter(None, variant.split(",")):
            config.update(VARIANTS[name])
    return config
