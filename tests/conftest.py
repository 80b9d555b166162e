"""Eight virtual devices and strict array semantics for every test."""

import os

import jax
import pytest

# Children (launch scripts, worker processes) must never look for a hub.
os.environ["HF_HUB_OFFLINE"] = "1"
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def key() -> jax.Array:
    """The typed random key that tests start from."""
    return jax.random.key(0)
