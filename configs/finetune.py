"""Fine-tuning. `unipt_jax/config/schema.py` tells each field.

`cuhk_pedes`, `icfg_pedes`, `rstp_reid`: the paper (section 4.1) on each data set, together with
    backbone=deit_s|vit_b16|clip_b16    the image encoder (clip_b16: both encoders of CLIP)
    init=unipt|imagenet|clip            what it starts from; `init=DIR` names a pre-training run
    recipe=irra|rde|tbps_clip|clip      later recipes, all of them on CLIP, instead of the paper's
`devices=1`, `devices=8`: a GPU's or a host's use, whatever comes besides.
`demo`: the small model of `configs/pretrain.py:demo` on the sample and on drawn pedestrians.
`drawn_reid`: the paper's losses on the tiny model of `configs/pretrain.py:drawn_reid`.
`small_clip`: both encoders of `examples/small_clip` on the sample (`notebooks/3_finetune.ipynb`).

The paper tells neither epochs nor schedule of its fine-tuning: those here are IRRA's 60 epochs and
a cosine after a warm-up. Later variants win: choose the data set, then backbone, recipe and init.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

DEVICES = runpy.run_path(str(Path(__file__).parent / "common/devices.py"))["DEVICES"]
CLIP = {
    "text": {"tokenizer": "openai/clip-vit-base-patch16", "length": 77, "buckets": (32, 48)},
    "model": {"image": "clip_b16", "text": "clip_b16", "embedding_dim": 512, "pooling": "class"},
    "init": "openai/clip-vit-base-patch16",
}
# IRRA's optimizer and images, which RDE has too; 5 of the 60 epochs are warm-up.
IRRA = CLIP | {
    "image": {"padding": 10, "erase": 0.5},
    "optimizer": {
        "name": "adam",
        "learning_rate": 1e-5,
        "image": 1.0,
        "text": 1.0,
        "new": 5.0,
        "bias": 2.0,
        "epsilon": 1e-3,
        "weight_decay": 4e-5,
        "warmup": 5 / 60,
        "start": 0.1,
        "decay": "cosine",
    },
}

VARIANTS = {
    "cuhk_pedes": {},
    "icfg_pedes": {"evaluate": False},  # It has no validation split.
    "rstp_reid": {},
    "backbone=vit_b16": {
        "model": {"image": "vit_b16"},
        "init_image": "google/vit-base-patch16-224",
    },
    "backbone=deit_s": {
        "model": {"image": "deit_s"},
        "init_image": "facebook/deit-small-patch16-224",
    },
    "backbone=clip_b16": CLIP,
    "init=unipt": {"init": "runs/pretrain"},
    "init=imagenet": {"init": ""},
    "init=clip": CLIP,
    "recipe=irra": IRRA
    | {
        "text": CLIP["text"] | {"noise": "mask"},
        "mlm": {"probability": 0.15},
        "model": CLIP["model"] | {"pgu": "", "cross_modal": True},
        "loss": {"identity": 0.5, "ranking": 0.0, "sdm": 1.0, "mlm": 1.0},
    },
    "recipe=rde": IRRA
    | {
        "text": CLIP["text"] | {"noise": "corrupt", "noise_probability": 0.2},
        "model": CLIP["model"] | {"pgu": "", "selection": True},
        "loss": {"identity": 0.0, "ranking": 0.0, "tal": 1.0},
    },
    "recipe=tbps_clip": CLIP
    | {
        "epochs": 5.0,
        "batch_size": 320,
        "image": {"height": 224, "width": 224, "flip": 0.0, "pool": 2},
        "text": CLIP["text"] | {"noise": "delete", "noise_probability": 0.05},
        "model": CLIP["model"] | {"pgu": ""},
        "similarity": {"temperature": "learned"},
        "loss": {"identity": 0.0, "ranking": 0.0, "n_itc": 1.0, "r_itc": 1.0, "c_itc": 0.1},
        "optimizer": {
            "name": "adamw",
            "learning_rate": 1e-4,
            "text": 1.0,
            "warmup": 0.2,
            "decay": "cosine",
            "end": 0.05,
        },
    },
    "recipe=clip": CLIP
    | {
        "model": CLIP["model"] | {"pgu": ""},
        "similarity": {"temperature": "learned"},
        "loss": {"identity": 0.0, "ranking": 0.0, "contrastive": 1.0},
        "optimizer": {"learning_rate": 1e-5, "text": 1.0, "decay": "cosine"},
    },
    # With six identities to tell apart there is little to learn of identities: captions that share
    # one are each other's positives instead, drawn pedestrians keep the words alive, and a low
    # learning rate keeps what was seen and read before.
    "demo": {
        "steps": 60,
        "batch_size": 64,
        "repeats": (28, 1),
        "log_every": 10,
        "checkpoint_every": 30,
        "evaluate": False,  # The sample has no validation split.
        "image": {"height": 112, "width": 112, "padding": 8, "erase": 0.5},
        "text": {"tokenizer": "examples/tokenizer", "length": 64, "buckets": (32, 48)},
        "model": {"image": "small_clip", "text": "tiny", "embedding_dim": 128, "pgu": ""},
        "init_image": "examples/small_clip",
        "init_text": "",
        "similarity": {"temperature": "learned"},
        "loss": {"identity": 0.0, "ranking": 0.0, "n_itc": 1.0, "soft_labels": 0.0},
        "optimizer": {"name": "adamw", "learning_rate": 3e-5},
    },
    "drawn_reid": {
        "steps": 400,
        "batch_size": 32,
        "log_every": 40,
        "checkpoint_every": 400,
        "evaluate": False,
        "image": {"height": 64, "width": 32},
        "text": {"tokenizer": "benchmarks/drawn_reid/tokenizer", "length": 48, "buckets": (32,)},
        "model": {"image": "tiny", "text": "tiny", "embedding_dim": 128, "pgu": "tiny"},
        "init_image": "",
        "init_text": "",
        # From random weights the text encoder cannot learn at a tenth of the rate, nor PGU at one
        # that suits the encoders, in so few steps. Settled by looking at `val` of `street`.
        "optimizer": {"learning_rate": 2.5e-4, "text": 1.0, "new": 5.0},
    },
    "small_clip": {
        "steps": 40,
        "batch_size": 32,
        "log_every": 5,
        "checkpoint_every": 40,
        "evaluate": False,
        "image": {"height": 112, "width": 112, "padding": 8, "erase": 0.5},
        "text": {"tokenizer": "examples/small_clip", "length": 32, "buckets": ()},
        "model": {
            "image": "small_clip",
            "text": "small_clip",
            "embedding_dim": 128,
            "pooling": "class",
            "pgu": "",
        },
        "init": "examples/small_clip",
        "similarity": {"temperature": "learned"},
        "loss": {"identity": 0.0, "ranking": 0.0, "n_itc": 1.0, "soft_labels": 0.0},
        "optimizer": {"name": "adamw", "learning_rate": 1e-3},
    },
    "devices=1": DEVICES[1],
    "devices=8": DEVICES[8],
}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the paper's recipe, changed by each of the comma-separated variants in turn."""
    config = ConfigDict(
        {
            "stage": "finetune",
            "seed": 0,
            "epochs": 60.0,
            "batch_size": 64,
            "evaluate": True,
            "image": {"height": 384, "width": 128, "flip": 0.5},
            "text": {"tokenizer": "bert-base-uncased", "length": 100, "buckets": (32, 48, 64)},
            "mlm": {"probability": 0.0},
            "model": {
                "image": "vit_b16",
                "text": "bert_base",
                "embedding_dim": 768,
                "pgu": "paper",
            },
            "init": "",
            "init_image": "google/vit-base-patch16-224",
            "init_text": "bert-base-uncased",
            "loss": {
                "contrastive": 0.0,
                "mlm": 0.0,
                "identity": 1.0,
                "ranking": 1.0,
                "pgu": 1.0,
            },
            # The paper: 1e-4 for the image encoder and PGU, 1e-5 for the text encoder.
            "optimizer": {
                "name": "adam",
                "learning_rate": 1e-4,
                "text": 0.1,
                "weight_decay": 0.0,
                "warmup": 0.1,
                "decay": "cosine",
            },
        },
        convert_dict=True,
    )
    with config.unlocked():
        for name in filter(None, variant.split(",")):
            config.update(VARIANTS[name])
    return config
