"""How a training is spread over 1, 8 and 256 devices, for the configurations that train.

`docs/scaling.md` tells the memory and the time that these come to.
"""

DEVICES = {
    1: {
        "dtype": "bfloat16",
        "compute": {"cache": "~/.cache/unipt_jax"},
    },
    # One host: the model fits each device, so only the batch is split.
    8: {
        "dtype": "bfloat16",
        "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
        "workers": 16,
        "compute": {"cache": "~/.cache/unipt_jax"},
    },
    # Many hosts: parameters and moments are split within groups of eight. Whole on each device they
    # may not fit 16 GB beside the activations.
    256: {
        "dtype": "bfloat16",
        "mesh": {"data": -1, "fsdp": 8, "tensor": 1},
        "workers": 16,
        "compute": {"cache": "~/.cache/unipt_jax"},
    },
}
