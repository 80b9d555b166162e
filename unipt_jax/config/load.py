"""From `configs/pretrain.py:demo` and overrides to a checked configuration."""

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unipt_jax.config import schema
from unipt_jax.core.errors import ConfigError, nearest


def load(spec: str, overrides: Mapping[str, Any] | None = None) -> Any:
    """Reads `FILE[:variant,...,key=value,...]`, applies `{"a.b": value}` overrides, and checks.

    The file defines `get_config(variant) -> ConfigDict` and `VARIANTS`, the names it accepts.
    Overrides given as strings are read as Python literals where the field is not a string.

    Raises:
        ConfigError: the file, a variant or a field is unknown, or a value does not fit the schema.
    """
    return schema.build(read(spec, overrides))


def read(spec: str, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns the nested values that `load` checks.

    Raises:
        ConfigError: the file or a variant is unknown, or a value has fields.
    """
    path, words = split_spec(spec)
    values, pairs = read_file(path, words)
    for key, value in {**pairs, **(overrides or {})}.items():
        _assign(values, key, value)
    return values


def split_spec(spec: str) -> tuple[str, list[str]]:
    """Splits `FILE[:word,...]` into the file and the words, variants or `key=value`.

    Commas inside brackets belong to a value: `text.buckets=(32,64)`.
    """
    path, _, suffix = spec.partition(":")
    return path, [word for word in re.split(r",(?![^(\[]*[)\]])", suffix) if word]


def read_file(path: str, words: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Runs a configuration file.

    A word that `VARIANTS` has is a variant, `recipe=irra` too; else `key=value` sets a field.

    Returns:
        The plain nested values of the variants among `words`, and the other words' fields.

    Raises:
        ConfigError: no such file, it fails, no `get_config` in it, or an unknown variant.
    """
    if not Path(path).is_file():
        raise ConfigError(f"--config={path}: no such file")
    # Not imported: Python's cache of modules takes a file changed within a second for the old one.
    module: dict[str, Any] = {"__name__": f"_unipt_config_{Path(path).stem}", "__file__": path}
    try:
        exec(compile(Path(path).read_bytes(), path, "exec"), module)
    except Exception as error:
        raise ConfigError(f"--config={path} cannot be run: {error!r}") from error
    if "get_config" not in module:
        raise ConfigError(f"--config={path} defines no get_config")
    known = module.get("VARIANTS", {})
    pairs = dict(word.split("=", 1) for word in words if "=" in word and word not in known)
    names = [word for word in words if word in known or "=" not in word]
    unknown = [name for name in names if name not in known]
    if not unknown:
        try:
            values = module["get_config"](",".join(names)).to_dict()
        except Exception as error:
            raise ConfigError(f"--config={path}: get_config failed: {error!r}") from error
        choices = {name.split("=")[0] for name in known if "=" in name}
        fields = [key for key in pairs if _field_kind(values, key)]
        unknown = [f"{key}={pairs[key]}" for key in pairs if key in choices and key not in fields]
    if unknown:
        raise ConfigError(f"{path} has no variant {unknown[0]!r}{nearest(unknown[0], known)}")
    return values, pairs


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    """Sets the nested `values["a"]["b"]` for the key `a.b`; the schema judges it afterwards."""
    *parents, name = key.split(".")
    kind = _field_kind(values, key)
    # A list of texts may come without brackets, and a directory may be called 2024.
    texts = ("str",) if str(value).startswith(("(", "[")) else ("str", "tuple of str")
    if isinstance(value, str) and kind not in texts:
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            value = {"true": True, "false": False}.get(value.lower(), value)
    node = values
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigError(f"{key}: {parent!r} is a value, not a group of fields")
    node[name] = value


def _field_kind(values: Any, key: str) -> str | None:
    """Returns the type name of a field, or None where the schema does not know it."""
    try:
        stage = schema.stage_of(values)
    except ConfigError:
        return None
    kinds = {each.name: each.kind for each in schema.describe(stage)}
    return kinds.get(key)
