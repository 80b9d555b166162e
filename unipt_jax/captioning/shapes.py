"""Shapes of JSON values, and what in a value departs from its shape.

A shape is `str`, of one line, or `bool`, `[shape]` for a list with at least one item, `{str:
shape}` for an object with names of one's own, `Record` for one with given names, or `AnyOf` several
shapes that differ in the type of the value.
"""

import dataclasses
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from unipt_jax.core.errors import nearest

# Controls, halves of surrogate pairs, ends of lines and of paragraphs.
_UNWRITABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})
_KINDS = {bool: "true or false", str: "a text", list: "a list", dict: "an object"}


@dataclasses.dataclass(frozen=True)
class Record:
    """An object with these keys and no others."""

    required: Mapping[str, Any]
    optional: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class AnyOf:
    """One of several shapes."""

    shapes: tuple[Any, ...]


def faults_of_shape(value: Any, shape: Any, where: str = "") -> Iterator[str]:
    """Yields a line for everything in `value` that departs from `shape`, with its place."""
    options = shape.shapes if isinstance(shape, AnyOf) else (shape,)
    fitting = [option for option in options if type(value) is _kind(option)]
    place = where or "the file"
    if not fitting:
        expected = " or ".join(_KINDS[kind] for kind in dict.fromkeys(map(_kind, options)))
        yield f"{place} is {_described(value)} and should be {expected}"
        return
    shape = fitting[0]
    if isinstance(shape, Record):
        known = {**shape.required, **shape.optional}
        for key in sorted(shape.required.keys() - value.keys()):
            yield f"{place} lacks {key!r}"
        for key, item in value.items():
            if key in known:
                yield from faults_of_shape(item, known[key], _below(where, key))
            else:
                yield f"{_below(where, key)} is unknown{nearest(key, known)}"
    elif isinstance(shape, dict):
        for key, item in value.items():
            yield from faults_of_shape(item, shape[str], _below(where, key))
    elif isinstance(shape, list):
        if not value:
            yield f"{place} is empty"
        for index, item in enumerate(value):
            yield from faults_of_shape(item, shape[0], f"{where}[{index}]")
    elif isinstance(value, str) and _UNWRITABLE.intersection(map(unicodedata.category, value)):
        yield f"{place} holds a line break or another character that no caption can have: {value!r}"


def _kind(shape: Any) -> type:
    if isinstance(shape, type):
        return shape
    return list if isinstance(shape, list) else dict


def _below(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _described(value: Any) -> str:
    return _KINDS.get(type(value), "null" if value is None else "a number")
