"""Drawn pedestrians with known attributes, from a seed and without files.

    image, person = synthetic.example(seed=0, index=7, height=128, width=64)
    synthetic.labels(person)["upper_clothes"]  # "red stripe shirt"

A `Person` is an identity in words, a `View` how it stands to the camera. What a view hides is not
in the labels of its picture: `visible(person, view)` is what is drawn. Several views of one person
make the images of an identity:

    person = synthetic.draw_person(rng)
    view = synthetic.draw_view(rng)
    image = synthetic.draw_image(person, rng, 128, 64, view)
    words = synthetic.labels(synthetic.visible(person, view))

The parts: `people` (words and how they occur together), `looks` (exact colours and cloth), `body`
(build and pose), `sketch` (solids to pixels), `clothes` and `things` (what is worn, carried and
ridden), `scenery` (background, light and camera).
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from unipt_jax.core.random import host_generator
from unipt_jax.data.synthetic import body, clothes, looks, scenery, sketch, things
from unipt_jax.data.synthetic.people import (
    Person,
    View,
    draw_person,
    draw_view,
    labels,
    visible,
)

__all__ = [
    "Person",
    "View",
    "details",
    "draw_image",
    "draw_person",
    "draw_view",
    "example",
    "figure",
    "labels",
    "visible",
]

_SUPERSAMPLING = 2
# Vehicles and umbrellas may be cut at the sides, but not much: their width over the crop's.
_WIDEST = 1.25


def example(
    seed: int, index: int, height: int, width: int
) -> tuple[UInt8[np.ndarray, "{height} {width} 3"], Person]:
    """Draws example `index` of a seed: one view of one person.

    Both are >= 0. The person depends on neither size nor other calls.

    Returns:
        RGB values 0..255, and the person as far as the picture shows it.
    """
    rng = host_generator(seed, "synthetic", index)
    person, view = draw_person(rng), draw_view(rng)
    return draw_image(person, rng, height, width, view), visible(person, view)


def draw_image(
    person: Person,
    rng: np.random.Generator,
    height: int,
    width: int,
    view: View | None = None,
    background: Callable[[np.random.Generator, int, int], Image.Image] = scenery.background,
) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """Draws a person as a surveillance camera would see it.

    Args:
        person: who; what the view hides of it is left out.
        rng: draws background, light, occlusion and the camera's faults.
        height: of the image, in pixels, >= 8.
        width: of the image, in pixels, >= 4.
        view: pose and framing; drawn from `rng` first, by `draw_view`, if not given.
        background: draws what is behind the person, from `rng`, width and height in pixels.

    Returns:
        RGB values 0..255.

    Raises:
        ValueError: the image is smaller than that.
    """
    if height < 8 or width < 4:
        raise ValueError(f"{height} x {width} pixels are too few to draw a person; take 8 x 4")
    view = view or draw_view(rng)
    shapes = figure(person, view)
    bounds = sketch.bounds(shapes)
    size = _SUPERSAMPLING * np.array([width, height])
    scale, origin = _frame(bounds, view, size)
    image = background(rng, *size.tolist())
    scenery.cast_shadow(image, rng, *origin.tolist(), size=float(-scale[1]))
    sketch.paint(image, shapes, scale, origin)
    left, bottom, right, top = (bounds.reshape(2, 2) * scale + origin).ravel().tolist()
    scenery.occlude(image, rng, (left, top, right, bottom))
    return scenery.photograph(image, rng, height, width)


def details(person: Person) -> dict[str, str]:
    """Returns what can be said of a person beyond the 14 attributes, by name.

    "upper", "lower": "dark" or "light" clothes of their colour; "hair": its colour, or "balding";
    "shoes" and "stripes": their colour. "" where there is nothing to say.
    """
    traits = looks.traits(person)
    return {
        "upper": looks.lightness(traits["upper value"]),
        "lower": looks.lightness(traits["lower value"]),
        "hair": things.hair_name(person, traits),
        "shoes": clothes.shoes(traits),
        "stripes": clothes.stripes(person, traits),
    }


def figure(person: Person, view: View) -> list[sketch.Shape]:
    """Returns the person alone, as shapes from back to front in body units (see `sketch`)."""
    person = visible(person, view)
    numbers = looks.traits(person)
    build = body.build(person, numbers)
    outfit = clothes.Outfit(
        person=person,
        traits=numbers,
        build=build,
        pose=body.pose(person, view, build),
        skin=things.skin(numbers),
        upper=clothes.cloth(person, numbers, "upper"),
        lower=clothes.cloth(person, numbers, "lower"),
        folds=view.folds,
    )
    page = sketch.Sketch(view)
    things.draw_vehicle(page, outfit)
    clothes.draw_lower(page, outfit)
    trunk = clothes.draw_upper(page, outfit)
    things.draw_bag(page, trunk, outfit, view)
    things.draw_hands(page, outfit, view)
    things.draw_head(page, outfit)
    return page.shapes()


def _frame(
    bounds: Float[np.ndarray, "4"], view: View, size: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns scale (y downwards) and origin, in pixels, of a figure within its crop."""
    left, bottom, right, top = bounds
    width, height = size
    # The crop, height over width `aspect`, is resized to the image, like real ones.
    stretch = view.aspect * width / height
    middle = (left + right) / 2
    widest = _WIDEST * width / (stretch * (right - left))
    tall = min(view.fill * height / (top - bottom), widest)
    scale = np.array([tall * stretch, -tall])
    room = height - tall * (top - bottom)
    return scale, np.array(
        [width * view.center - scale[0] * middle, view.above * room + tall * top]
    )
