"""Trees of arrays seen as tables from paths to leaves."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np


def path_string(path: tuple[Any, ...]) -> str:
    """Writes a JAX key path as `a/b/c`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def flatten(tree: Any) -> dict[str, Any]:
    """Returns `{"a/b/c": leaf}` in the tree's own order."""
    return {path_string(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested values, whose leaves may be lists, by their dotted names: `{"a.b": 1}`."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= dotted(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def map_with_path(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """Maps `function(path, leaf)` over the tree, with paths written as `a/b/c`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(path_string(path), leaf), tree
    )


def shape_differences(have: Any, want: Any) -> list[str]:
    """Lists every leaf of `want` that `have` lacks, holds besides, or holds in another shape."""
    have, want = flatten(have), flatten(want)
    lines = [f"{path}: missing" for path in want if path not in have]
    lines += [f"{path}: unexpected" for path in have if path not in want]
    lines += [
        f"{path}: shape {tuple(have[path].shape)}, expected {tuple(want[path].shape)}"
        for path in want
        if path in have and tuple(have[path].shape) != tuple(want[path].shape)
    ]
    return lines


def count_parameters(tree: Any) -> int:
    """Returns the number of array elements in the tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def not_finite(tree: Any) -> list[str]:
    """Returns the paths of leaves with an infinity or something that is not a number."""
    return [path for path, leaf in flatten(tree).items() if not np.isfinite(np.asarray(leaf)).all()]


def fingerprint(tree: Any) -> str:
    """Returns 32 hexadecimal digits that follow from the values, in the tree's own order."""
    digest = hashlib.blake2b(digest_size=16)
    for leaf in jax.tree.leaves(tree):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()
