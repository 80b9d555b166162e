"""Text-to-image person re-identification, pre-trained on pseudo texts, in JAX and Flax."""

import importlib
from typing import Any

__all__ = ["Encoder", "Gallery", "evaluate_ranks", "load"]

_HOMES = {
    "Encoder": "encoder",
    "Gallery": "search.gallery",
    "evaluate_ranks": "evaluation.retrieval",
    "load": "encoder",
}


def __getattr__(name: str) -> Any:
    # Loaded when asked for: worker processes and scripts that do not encode start sooner.
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
