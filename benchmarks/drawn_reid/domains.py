"""Two places where people are seen: each with its own backdrop, light, clothes and captions."""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from drawn_reid import captions
from unipt_jax.data import synthetic
from unipt_jax.data.synthetic import scenery

Tint = tuple[float, float, float]
Backdrop = Callable[[np.random.Generator, int, int], Image.Image]

_FLOORS = ((188, 186, 178), (150, 146, 140), (120, 124, 128), (206, 196, 176))
_TILES = ((226, 228, 224), (198, 206, 196), (236, 224, 196), (160, 176, 190))


def hall(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Draws an underground hall: tiled wall, shining floor, lamps, posters, a platform's edge."""
    image = Image.new("RGB", (width, height), _TILES[rng.integers(len(_TILES))])
    draw = ImageDraw.Draw(image, "RGBA")
    horizon = height * rng.uniform(0.25, 0.6)
    tall, wide = rng.uniform(6, 12), rng.uniform(10, 20)
    for y in np.arange(horizon, 0, -tall).tolist():
        draw.line((0, y, width, y), (90, 96, 96, 90))
    for x in np.arange(rng.uniform(-wide, 0), width, wide).tolist():
        draw.line((x, 0, x, horizon), (90, 96, 96, 90))
    if rng.random() < 0.6:
        left, top = rng.uniform(-0.2, 0.8) * width, rng.uniform(0, 0.4) * horizon
        poster = (*rng.integers(30, 230, 3).tolist(), 255)
        box = (left, top, left + 0.5 * width, top + rng.uniform(0.3, 0.7) * horizon)
        draw.rectangle(box, poster, (240, 240, 240), 3)
    draw.rectangle((0, horizon, width, height), _FLOORS[rng.integers(len(_FLOORS))])
    for lamp in rng.uniform(0, width, rng.integers(1, 4)).tolist():
        size = rng.uniform(0.04, 0.12) * width
        draw.rectangle((lamp, 0, lamp + 2 * size, 0.03 * height), (255, 255, 240))
        draw.ellipse((lamp, horizon, lamp + 2 * size, height), (255, 255, 240, 50))  # Its shine.
    if rng.random() < 0.5:
        y = rng.uniform(horizon, height)
        draw.line((0, y, width, y + rng.uniform(-0.1, 0.1) * height), (236, 200, 40), 5)
    return image


@dataclasses.dataclass(frozen=True)
class Domain:
    """Where, in which light, who and in whose words.

    Attributes:
        backdrop: draws what is behind a person.
        tint: factors on red, green and blue.
        rare: garments that most people here leave at home: nine of ten draw again.
        style: of the captions.
    """

    backdrop: Backdrop
    tint: Tint
    rare: frozenset[str]
    style: captions.Style


DOMAINS = {
    # Summer, by day.
    "street": Domain(
        scenery.background,
        (1.0, 1.0, 1.0),
        frozenset({"down jacket", "wind coat"}),
        captions.STREET,
    ),
    # Winter, under yellow lamps.
    "station": Domain(
        hall,
        (1.0, 0.9, 0.72),
        frozenset({"t-shirt", "sleeveless tank top", "shorts", "short skirt"}),
        captions.STATION,
    ),
}


def identity(domain: Domain, rng: np.random.Generator) -> synthetic.Person:
    """Draws someone who is to be met there."""
    while True:
        person = synthetic.draw_person(rng)
        worn = {person.upper_garment, person.lower_garment}
        if not worn & domain.rare or rng.random() < 0.1:
            return person


def photograph(
    domain: Domain,
    person: synthetic.Person,
    view: synthetic.View,
    rng: np.random.Generator,
    height: int,
    width: int,
) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """Draws the person as the domain's cameras see it; RGB values 0..255."""
    pixels = synthetic.draw_image(person, rng, height, width, view, domain.backdrop)
    return (pixels * np.array(domain.tint, np.float32)).round().astype(np.uint8)


def facts(person: synthetic.Person, view: synthetic.View) -> dict[str, str]:
    """Returns what a caption may tell of this view; "" is absent."""
    seen, details = synthetic.visible(person, view), synthetic.details(person)
    known = {
        f"{part}_{name}": getattr(seen, f"{part}_{name}")
        for part in ("upper", "lower")
        for name in ("color", "garment", "pattern")
    }
    lightness = {f"{part}_lightness": details[part] for part in ("upper", "lower")}
    rest = {"hair_color": details["hair"], "shoes": details["shoes"], "age": seen.age}
    return known | synthetic.labels(seen) | lightness | rest
