"""Values that a field cannot have, by its annotation."""

import dataclasses
from typing import Literal

import pytest

from unipt_jax.core.errors import ConfigError
from unipt_jax.models.checks import require_fields


@dataclasses.dataclass
class Part:
    """A field's type."""


# A dataclass of this library would be checked by jaxtyping before, in tests alone.
@dataclasses.dataclass
class Whole:
    """Every kind of field."""

    size: int = 3
    sides: tuple[int, int] = (2, 3)
    scale: float = 0.5
    offset: float = 0.0
    kind: Literal["max", "class"] = "max"
    flag: bool = False
    part: Part | list = dataclasses.field(default_factory=Part)
    extra: Part | None = None

    def __post_init__(self):
        require_fields(self, zero=("offset",))


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"sides": (1, 1), "scale": 2, "offset": 1},
        {"kind": "class", "flag": True, "part": []},
        {"extra": Part()},
    ],
)
def test_what_fits(values):
    Whole(**values)


@pytest.mark.parametrize(
    ("name", "values", "wanted"),
    [
        ("size", [0, -1, 3.0, "3", None, True, [3]], "an integer above 0"),
        ("size", [2**31, 10**400], "at most 2147483647"),
        ("size", [-(10**400)], "an integer above 0"),
        ("sides", [(2, 2**31)], "2 numbers above 0"),
        ("scale", [10**400], "at most 2147483647"),
        ("sides", [2, (2,), (2, 3, 4), [2, 3], (2, 0), (2, "3"), None], "2 numbers above 0"),
        ("scale", [0, -0.5, float("nan"), float("inf"), "x", None, False], "a finite number above"),
        ("offset", [-1e-9, float("nan"), "x", 1j], "a finite number from 0 on"),
        ("kind", ["mean", None, ["max"], 1], "one of max, class"),
        ("flag", [0, 1, None, "no"], "bool"),
        ("part", [None, {}, 3], "Part"),
        ("extra", [0, False, "", {}, []], r"Part \| None"),
    ],
)
def test_what_does_not(name, values, wanted):
    for value in values:
        with pytest.raises(ConfigError, match=rf"^{name}=.* is not .*{wanted}"):
            Whole(**{name: value})


def test_every_fault_is_told_at_once():
    with pytest.raises(ConfigError, match=r"^size=0 is .*; scale=None is [^;]*; flag=1 is [^;]*$"):
        Whole(size=0, scale=None, flag=1)


def test_more_layers_than_a_program_has():
    """Each is traced on its own: a slip or damage would be found out after hours."""

    @dataclasses.dataclass
    class Deep:
        layers: int

        def __post_init__(self):
            require_fields(self)

    Deep(layers=256)
    with pytest.raises(ConfigError, match=r"^layers=257 is more than 256$"):
        Deep(layers=257)
