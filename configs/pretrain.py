"""Pre-training. The defaults are the paper's recipe; `unipt_jax/config/schema.py` tells each field.

Variants: `deit_s`, `vit_b16` (the paper's two image encoders), `released` (what the published code
does where it differs from the paper), `demo` (a small model on the sample, minutes on a laptop).
"""

from ml_collections import ConfigDict

VARIANTS = {
    "vit_b16": {
        "model": {"image": "vit_b16"},
        "init": {"image": "google/vit-base-patch16-224"},
    },
    "deit_s": {
        "model": {"image": "deit_s"},
        "init": {"image": "facebook/deit-small-patch16-224"},
    },
    "released": {
        "dtype": "bfloat16",
        "model": {"pool_padding": True},
        "text": {"buckets": ()},
        "mlm": {"whole_word": True},
        "contrastive": {"negatives": 64},
        "optimizer": {"decay": "linear", "beta2": 0.98},
    },
    "demo": {
        "steps": 300,
        "batch_size": 32,
        "log_every": 10,
        "checkpoint_every": 100,
        "image": {"height": 128, "width": 64},
        "text": {"tokenizer": "examples/tokenizer", "length": 64, "buckets": (32, 48)},
        "model": {"image": "tiny", "text": "tiny", "embedding_dim": 128},
        "init": {"image": "", "text": ""},
        "contrastive": {"temperature": "learned"},
        "optimizer": {"learning_rate": 1e-3, "decay": "cosine"},
    },
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
            "mlm": {"weight": 1.0, "probability": 0.15, "whole_word": False},
            "model": {"image": "vit_b16", "text": "bert_base", "embedding_dim": 768},
            "init": {"image": "google/vit-base-patch16-224", "text": "bert-base-uncased"},
            "contrastive": {"temperature": "none"},
            "optimizer": {"learning_rate": 1e-5, "warmup": 0.1, "decay": "none"},
        },
        convert_dict=True,
    )
    with config.unlocked():
        for name in filter(None, variant.split(",")):
            config.update(VARIANTS[name])
    return config
