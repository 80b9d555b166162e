"""Text-to-image person re-identification, pre-trained on pseudo texts, in JAX and Flax."""

from typing import Any

__all__ = ["Encoder", "load"]


def __getattr__(name: str) -> Any:
    # Loaded when asked for: worker processes and scripts that do not encode start sooner.
    if name in __all__:
        from unipt_jax import encoder

        return getattr(encoder, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
