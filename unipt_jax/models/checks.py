"""Whether a specification's values are what its fields are declared to be."""

import dataclasses
import math
import typing
from collections.abc import Sequence
from typing import Any, Literal

from unipt_jax.core.errors import ConfigError

# Beyond these a value is a slip or damage: an array's sides are counted in 32 bits, and each layer
# is traced on its own, so that a program of millions would never be done.
MOST = 2**31 - 1
MOST_LAYERS = 256


def require_fields(spec: Any, *, zero: Sequence[str] = ()) -> None:
    """Checks every field by its annotation; specifications come from other people's files too.

    Args:
        spec: an instance of a dataclass.
        zero: names of numbers that may be zero; all others are positive. All are finite, integers
            at most `MOST`, and those of layers at most `MOST_LAYERS`.

    Raises:
        ConfigError: values are of another kind; all of them are listed.
    """
    hints = typing.get_type_hints(type(spec))
    values = {item.name: getattr(spec, item.name) for item in dataclasses.fields(spec)}
    faults = [
        f"{name}={value!r:.50} is not {wanted}"
        for name, value in values.items()
        if (wanted := _wanted(value, hints[name], name in zero))
    ]
    faults += [
        f"{name}={value} is more than {MOST_LAYERS}"
        for name, value in values.items()
        if name.endswith("layers") and isinstance(value, int) and MOST_LAYERS < value <= MOST
    ]
    if faults:
        raise ConfigError("; ".join(faults))


def _wanted(value: Any, hint: Any, zero: bool) -> str:
    """Says what `hint` allows, or nothing if `value` is that."""
    kinds = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return "" if value in kinds else f"one of {', '.join(kinds)}"
    if type(None) in kinds and value is None:
        return ""
    if typing.get_origin(hint) is tuple:
        fits = isinstance(value, tuple) and len(value) == len(kinds)
        wanted = [_wanted(*pair, zero) for pair in zip(value, kinds, strict=True)] if fits else []
        return "" if fits and not any(wanted) else f"{len(kinds)} numbers" + _sign(zero)
    if hint in (int, float):
        # A boolean is an integer to Python.
        fits = isinstance(value, int | hint) and not isinstance(value, bool)
        fits = fits and (value > 0 or (zero and value == 0))
        if fits and isinstance(value, int) and value > MOST:
            return f"at most {MOST}"
        fits = fits and math.isfinite(value)  # Which fails of an integer that no float can hold.
        kind = "an integer" if hint is int else "a finite number"
        return "" if fits else kind + _sign(zero)
    return "" if isinstance(value, hint) else getattr(hint, "__name__", str(hint))


def _sign(zero: bool) -> str:
    return " from 0 on" if zero else " above 0"
