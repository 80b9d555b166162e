"""What tells apart people of the same words: numbers, exact colours, and patterns of cloth."""

import colorsys
import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw

from unipt_jax.core.random import host_generator
from unipt_jax.data.synthetic.people import PURE, Person

Color = tuple[int, int, int]
T = TypeVar("T")

_TRAITS = (
    "build", "height", "legs", "skin", "hair tone", "hair length", "hair cut", "beard",
    *(f"{part} {name}" for part in ("upper", "lower")
      for name in ("hue", "saturation", "value", "cloth", "kind", "scale", "offset")),
    "hem", "sleeve", "trim", "fit", "shoe", "shoe size", "bag", "bag size", "hat", "hat kind",
    "cellphone", "umbrella", "gloves", "vehicle", "upper contrast", "lower contrast",
)  # fmt: skip

# Hue, saturation and value of each named colour, apart enough to survive the light of `scenery`.
_SHADES: Mapping[str, tuple[tuple[float, float], ...]] = {
    "black": ((0.0, 1.0), (0.0, 0.3), (0.05, 0.15)),
    "white": ((0.0, 1.0), (0.0, 0.06), (0.88, 1.0)),
    "gray": ((0.0, 1.0), (0.0, 0.08), (0.38, 0.64)),
    "red": ((-0.03, 0.015), (0.75, 0.95), (0.55, 0.9)),
    "orange": ((0.055, 0.085), (0.8, 1.0), (0.88, 1.0)),
    "yellow": ((0.135, 0.165), (0.65, 0.95), (0.88, 1.0)),
    "green": ((0.28, 0.42), (0.45, 0.9), (0.3, 0.68)),
    "blue": ((0.56, 0.65), (0.5, 0.92), (0.4, 0.9)),
    "purple": ((0.74, 0.81), (0.45, 0.75), (0.4, 0.72)),
    "pink": ((0.9, 0.96), (0.28, 0.5), (0.9, 1.0)),
    "brown": ((0.045, 0.08), (0.55, 0.75), (0.28, 0.46)),
    "khaki": ((0.1, 0.13), (0.27, 0.42), (0.66, 0.82)),
}


def traits(person: Person) -> dict[str, float]:
    """Returns numbers in [0, 1) by name for what tells apart people of the same words."""
    values = host_generator(person.identity, "traits", 0).random(len(_TRAITS))
    return dict(zip(_TRAITS, values.tolist(), strict=True))


def shade(name: str, hue: float, saturation: float, value: float) -> Color:
    """Returns RGB values 0..255 of a colour of this name; its range is run through in [0, 1]."""
    parts = (hue, saturation, value)
    h, s, v = (
        low + (high - low) * part for (low, high), part in zip(_SHADES[name], parts, strict=True)
    )
    red, green, blue = colorsys.hsv_to_rgb(h % 1.0, s, v)
    return round(255 * red), round(255 * green), round(255 * blue)


def lightness(value: float) -> str:
    """Returns "dark", "" or "light" for a third each of a colour's range, run through in [0, 1)."""
    return pick(("dark", "", "light"), value)


def pick(options: Sequence[T], where: float) -> T:
    """Returns one of the options, by a number in [0, 1)."""
    return options[int(where * len(options))]


def tone(color: Color, amount: float) -> Color:
    """Returns a darker colour, or a lighter one where the colour is dark: `amount` in [0, 1]."""
    target = 235 if sum(color) < 200 else 0
    red, green, blue = (round(value + (target - value) * amount) for value in color)
    return red, green, blue


def distinct(options: Sequence[Color], where: float, *others: Color, by: int = 110) -> Color:
    """Picks among options that differ from all others by `by` RGB values, else the farthest."""

    def distance(color: Color) -> int:
        return min(sum((a - b) ** 2 for a, b in zip(color, other, strict=True)) for other in others)

    apart = [color for color in options if distance(color) > by**2]
    return pick(apart or [max(options, key=distance)], where)


# ------------------------------------------------------------------------------ cloth


@dataclasses.dataclass(frozen=True)
class Cloth:
    """A fill; `kind`, `scale` and `offset` in [0, 1) tell apart cloths of one pattern."""

    color: Color
    pattern: str = PURE
    second: Color = (0, 0, 0)
    kind: float = 0.0
    scale: float = 0.0
    offset: float = 0.0


def texture(cloth: Cloth, width: int, height: int, unit: float) -> Image.Image:
    """Returns the cloth as RGB pixels; `unit` is a body height in pixels."""
    image = Image.new("RGB", (width, height), cloth.color)
    draw = ImageDraw.Draw(image, "RGBA")
    if cloth.pattern == "stripe":
        period = unit * (0.045 + 0.035 * cloth.scale)
        _bands(draw, cloth, period, 0.3 + 0.15 * cloth.offset, 255, upright=cloth.kind > 0.65)
    elif cloth.pattern == "plaid":
        period = unit * (0.055 + 0.04 * cloth.scale)
        for upright in (False, True):
            _bands(draw, cloth, period, 0.4, 150, upright)
            _bands(draw, cloth, period, 0.1, 190, upright, shift=0.65)
    elif cloth.pattern == "patterned":
        _print(draw, cloth, unit * (0.045 + 0.03 * cloth.scale))
    return image


def _bands(
    draw: ImageDraw.ImageDraw, cloth: Cloth, period: float, share: float, alpha: int,
    upright: bool, shift: float = 0.0,
) -> None:  # fmt: skip
    """Draws bands as wide as a share of their period."""
    width, height = draw.im.size
    first = (shift - cloth.offset - 1) * period
    for start in np.arange(first, width if upright else height, period).tolist():
        end = start + share * period
        box = (start, 0, end, height) if upright else (0, start, width, end)
        draw.rectangle(box, (*cloth.second, alpha))


def _print(draw: ImageDraw.ImageDraw, cloth: Cloth, step: float) -> None:
    """Draws dots on a grid, or leaves and flowers of two tones anywhere."""
    width, height = draw.im.size
    rng = np.random.default_rng(int(cloth.kind * 2**31))
    spread = 0.1 if cloth.kind < 0.35 else 0.7
    for row, y in enumerate(np.arange(0, height, step).tolist()):
        for x in np.arange(-step / 2 * (row % 2), width, step).tolist():
            dx, dy, size, other = rng.random(4).tolist()
            radius = step * (0.25 + spread * 0.25 * size)
            x0, y0 = x + spread * dx * step, y + spread * dy * step
            color = cloth.second if spread < 0.5 or other < 0.7 else tone(cloth.second, 0.4)
            draw.ellipse((x0 - radius, y0 - 0.8 * radius, x0 + radius, y0 + 0.8 * radius), color)
