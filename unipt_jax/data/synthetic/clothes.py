"""Garments: each a silhouette and marks that can be told apart at 128 x 64 pixels."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from unipt_jax.data.synthetic.body import SIDES, Build, Pose
from unipt_jax.data.synthetic.looks import Cloth, Color, distinct, pick, shade, tone
from unipt_jax.data.synthetic.people import COLORS, Person
from unipt_jax.data.synthetic.sketch import Fill, Mark, Sketch, Solid, patch, ring, strip

_LEGS_LAYER, _SKIRT_LAYER, TRUNK_LAYER, ARMS_LAYER = 0.0, 0.06, 0.07, 0.09
_PAPER, _INK, _METAL = (240, 240, 236), (36, 36, 40), (196, 198, 202)
_TIES = [(140, 20, 30), (24, 30, 70), (30, 30, 32), (30, 90, 70)]
_SHOES = {
    "black": (28, 26, 28), "brown": (60, 40, 28), "white": (238, 238, 236),
    "gray": (120, 120, 124), "red": (170, 36, 36), "blue": (40, 60, 120),
}  # fmt: skip
# Of patterns and contrasting sleeves, by name; white and black are taken more often.
_SECONDS = {name: shade(name, 0.5, 0.5, 0.6) for name in COLORS}
_FAINT = 0.4  # The share of stripes and checks that are a tone of the cloth itself.


@dataclasses.dataclass(frozen=True)
class Outfit:
    """What clothes are drawn from: the words, the numbers beyond them, and the body beneath."""

    person: Person
    traits: Mapping[str, float]
    build: Build
    pose: Pose
    skin: Color
    upper: Cloth
    lower: Cloth
    folds: int


def cloth(person: Person, traits: Mapping[str, float], part: str) -> Cloth:
    """Returns the stuff of the person's "upper" or "lower" clothes."""
    numbers = [traits[f"{part} {name}"] for name in ("hue", "saturation", "value")]
    color = shade(getattr(person, f"{part}_color"), *numbers)
    pattern, contrast = getattr(person, f"{part}_pattern"), traits[f"{part} contrast"]
    if pattern in ("stripe", "plaid") and contrast < _FAINT:
        second = tone(color, 0.22 + 0.5 * contrast)
    else:
        options = [_SECONDS[name] for name in (*COLORS, "white", "black")]
        second = distinct(options, traits[f"{part} cloth"], color)
    return Cloth(
        color,
        pattern,
        second=second,
        kind=traits[f"{part} kind"],
        scale=traits[f"{part} scale"],
        offset=traits[f"{part} offset"],
    )


def shoes(traits: Mapping[str, float]) -> str:
    """Returns the name of the shoes' colour."""
    return pick(list(_SHOES), traits["shoe"])


def stripes(person: Person, traits: Mapping[str, float]) -> str:
    """Returns the name of the colour of the upper garment's stripes.

    "" where it has none, where they are a tone of its own colour, and where the lower one has some
    too.
    """
    if person.upper_pattern != "stripe" or person.lower_pattern == "stripe":
        return ""
    names = {color: name for name, color in _SECONDS.items()}
    return names.get(cloth(person, traits, "upper").second, "")


# ------------------------------------------------------------------------------ upper clothes


@dataclasses.dataclass(frozen=True)
class Top:
    """Cut of an upper garment.

    `hem` is body heights below the hip, `sleeve` the covered share of the arm, `cuff` a fill as of
    marks, the others are factors on the body. Marks: `t` is 0 at the neck and 1 at the hem, `phi` 0
    in front.
    """

    hem: float
    volume: float
    flare: float
    sleeve: float
    sleeve_width: float
    cuff: str | float
    marks: tuple[Mark, ...]


_BACK = np.pi
_TOPS: Mapping[str, Top] = {
    "t-shirt": Top(0.015, 1.06, 1.02, 0.42, 1.5, 0.3, (
        patch("skin", (0, -0.9), (0, 0.9), (0.17, 0.35), (0.17, -0.35)),
    )),
    "shirt": Top(0.06, 1.06, 1.12, 1.0, 1.15, "collar", (
        strip(0.4, (0.1, 0), (1, 0), 0.22),
        *(strip("button", (t, 0), (t + 0.03, 0), 0.12) for t in (0.2, 0.34, 0.48, 0.62, 0.76, 0.9)),
        patch(0.35, (0.27, 0.4), (0.27, 0.95), (0.4, 0.9), (0.4, 0.4)),
        ring(0.45, 0.2, 0.22),
        strip(0.45, (0.2, _BACK), (1, _BACK), 0.12),
        patch("collar", (0, 0), (0, 1.4), (0.1, 1.1), (0.17, 0.3), mirrored=True),
        ring("collar", 0, 0.07),
        patch("skin", (0, -0.35), (0, 0.35), (0.1, 0)),
    )),
    "sweater": Top(0.01, 1.14, 0.98, 1.0, 1.35, 0.45, (
        *(strip(0.38, (t, phi), (t + 0.12, phi + 0.12), 0.15)
          for t in (0.2, 0.38, 0.56, 0.74) for phi in np.arange(-2.8, 3.1, 0.5).tolist()),
        ring(0.45, 0, 0.07),
        ring(0.45, 0.9, 1),
    )),
    "hoodie": Top(0.02, 1.2, 1.02, 1.0, 1.45, 0.3, (
        patch(0.45, (0.62, -0.5), (0.62, 0.5), (0.9, 0.95), (0.9, -0.95)),
        patch(0.0, (0.65, -0.42), (0.65, 0.42), (0.88, 0.8), (0.88, -0.8)),
        strip("button", (0.12, 0.16), (0.4, 0.2), 0.12, mirrored=True),
        ring(0.3, 0.93, 1),
        patch(0.45, (0, -1.5), (0, 1.5), (0.1, 0.9), (0.15, 0), (0.1, -0.9)),
        patch("skin", (0, -0.5), (0, 0.5), (0.08, 0)),
    )),
    "jacket": Top(0.0, 1.22, 0.92, 1.0, 1.45, 0.6, (
        ring("sleeves", 0.08, 0.26),
        ring(0.6, 0, 0.09),
        strip("zip", (0, 0), (1, 0), 0.16),
        strip(0.5, (0.6, 0.8), (0.82, 1.05), 0.16, mirrored=True),
        ring(0.6, 0.87, 1),
    )),
    "suit jacket": Top(0.08, 1.14, 1.1, 1.0, 1.25, "blouse", (
        patch("blouse", (0, -0.9), (0, 0.9), (0.54, 0)),
        strip("tie", (0.04, 0), (0.48, 0), 0.22),
        patch(0.4, (0, 0.85), (0, 1.35), (0.22, 1.1), (0.54, 0.02), mirrored=True),
        strip(0.5, (0.52, 0), (1, 0.1), 0.09),
        *(strip(0.7, (t, 0.08), (t + 0.035, 0.08), 0.14) for t in (0.58, 0.7)),
        strip(0.6, (0.62, _BACK), (1, _BACK), 0.16),
        patch("blouse", (0, 2.2), (0, 4.1), (0.06, 4.0), (0.06, 2.3)),
    )),
    "down jacket": Top(0.03, 1.42, 0.98, 1.0, 1.9, 0.3, (
        *(ring(0.5, t, t + 0.028) for t in (0.16, 0.32, 0.47, 0.63, 0.78, 0.94)),
        *(ring((255, 255, 255, 60), t, t + 0.045, 1.2) for t in (0.2, 0.36, 0.52, 0.67, 0.83)),
        ring(0.25, 0, 0.11),
        strip(0.6, (0, 0), (1, 0), 0.07),
    )),
    "wind coat": Top(0.25, 1.16, 1.3, 1.0, 1.35, 0.3, (
        patch(0.32, (0, 0.1), (0, 1.4), (0.13, 1.2), (0.24, 0.1), mirrored=True),
        *(strip(0.6, (t, 0.4), (t + 0.025, 0.4), 0.18, mirrored=True) for t in (0.3, 0.4, 0.56)),
        strip(0.5, (0.2, 0), (1, 0), 0.08),
        strip(0.5, (0.6, _BACK), (1, _BACK), 0.1),
        ring("belt", 0.46, 0.51),
        ring(0.32, 0.97, 1),
    )),
    "sleeveless tank top": Top(0.0, 0.96, 1.02, 0.0, 1.0, 0.3, tuple(
        mark
        for middle in (0, _BACK)
        for mark in (
            patch("skin", *((t, middle + phi) for t, phi in (
                (0, -0.85), (0, 0.85), (0.2, 0.5), (0.27, 0), (0.2, -0.5)))),
            *(patch("skin", *((t, middle + side * phi) for t, phi in (
                (0, 1.1), (0, 1.57), (0.42, 1.57), (0.3, 1.25)))) for side in SIDES),
        )
    )),
}  # fmt: skip


def _palette(outfit: Outfit) -> Mapping[str, Fill]:
    """Returns the fills by which the marks of garments go."""
    color, traits = outfit.upper.color, outfit.traits
    blouse = distinct([_PAPER, (176, 200, 232), (60, 60, 66)], 0.0, color)
    wears_tie = outfit.person.gender == "male"
    return {
        "skin": outfit.skin,
        "button": distinct([_PAPER, _INK], 0.0, color),
        "collar": distinct([_PAPER], 0.0, color) if traits["trim"] < 0.3 else tone(color, 0.45),
        "zip": distinct([_METAL, _INK], 0.0, color),
        "sleeves": _sleeves(outfit),
        "blouse": blouse,
        "tie": distinct(_TIES, traits["trim"], blouse) if wears_tie else blouse,
        "belt": tone(color, 0.5) if traits["trim"] < 0.65 else outfit.upper,
    }


def _sleeves(outfit: Outfit) -> Cloth:
    """Returns the sleeves' stuff: some jackets have shoulders and sleeves of another colour."""
    is_jacket = outfit.person.upper_garment == "jacket"
    other = is_jacket and outfit.traits["sleeve"] < 0.5
    return Cloth(outfit.upper.second) if other else outfit.upper


def draw_upper(sketch: Sketch, outfit: Outfit) -> Solid:
    """Draws trunk and arms; returns the trunk, t = 0 at the neck and 1 at the hem."""
    top = _TOPS[outfit.person.upper_garment]
    trunk = _draw_trunk(sketch, outfit, top)
    sketch.mark(trunk, top.marks, outfit.upper.color, _palette(outfit))
    if outfit.person.upper_garment == "hoodie":
        _draw_hood(sketch, outfit)
    if outfit.person.upper_garment == "sweater":
        _draw_roll_collar(sketch, outfit)
    _crumple(sketch, trunk, outfit)
    for arm in outfit.pose.arms.values():
        _draw_arm(sketch, outfit, top, arm)
    return trunk


def _draw_trunk(sketch: Sketch, outfit: Outfit, top: Top) -> Solid:
    build, shoulder, hip = outfit.build, outfit.build.shoulder, outfit.build.hip
    hem = hip - 0.05 - top.hem - 0.03 * outfit.traits["hem"]
    volume = top.volume * (0.96 + 0.1 * outfit.traits["fit"])
    broad, low = build.shoulder_width, build.hip_width
    # Loose cloth hides the waist, and a long coat spans the stride.
    waist = build.waist_width + max(0.0, volume - 1) * 0.5 * (broad - build.waist_width)
    belly = 0.055 + 0.3 * max(0.0, build.waist_width - 0.1)
    stride = max(abs(leg[1, 2]) for leg in outfit.pose.legs.values())
    skirts = min(max(stride, 0.068), 0.11) if top.hem > 0.1 else 0.068
    at, widths, depths = np.array([
        (hem, top.flare * low, skirts),
        (hip - 0.06, low, 0.068),
        (hip, low, 0.066),
        (hip + 0.38 * (shoulder - hip), waist, belly),
        (shoulder - 0.1, 0.93 * broad, 0.064 + build.chest),
        (shoulder - 0.02, broad, 0.055),
        (shoulder + 0.015, 0.8 * broad, 0.05),
        (shoulder + 0.04, 0.45 * broad, 0.042),
    ]).T  # fmt: skip
    y = np.linspace(shoulder + 0.04, hem, 10)
    widths = np.interp(y, at, widths) * np.interp(y, [shoulder - 0.1, shoulder], [volume, 1])
    depths = np.interp(y, at, depths) * volume * build.girth
    return sketch.solid(outfit.pose.spine(y), widths, depths, outfit.upper, TRUNK_LAYER)


def _draw_hood(sketch: Sketch, outfit: Outfit) -> None:
    y = outfit.build.shoulder + np.array([0.05, 0.02, -0.11])
    widths = outfit.build.shoulder_width * np.array([0.7, 0.85, 0.4])
    centers = outfit.pose.spine(y, [-0.025, -0.06, -0.08])
    color = tone(outfit.upper.color, 0.25)
    sketch.solid(centers, widths, [0.065, 0.06, 0.035], color, TRUNK_LAYER + 0.005)


def _draw_roll_collar(sketch: Sketch, outfit: Outfit) -> None:
    y = outfit.build.shoulder + np.array([0.072, 0.045, 0.025])
    widths = outfit.build.shoulder_width * np.array([0.36, 0.42, 0.46])
    color = tone(outfit.upper.color, 0.45)
    sketch.solid(outfit.pose.spine(y), widths, [0.038, 0.042, 0.045], color, TRUNK_LAYER + 0.005)


def _crumple(sketch: Sketch, trunk: Solid, outfit: Outfit) -> None:
    """Draws folds: faint dark and light strips that fall askew."""
    rng = np.random.default_rng(outfit.folds)
    for t, phi, drop, lean, strength in rng.random((7, 5)).tolist():
        start = 0.25 + 0.55 * t, 2 * np.pi * phi
        end = start[0] + 0.05 + 0.12 * drop, start[1] + 1.6 * (lean - 0.5)
        fill = (0, 0, 10, round(25 + 45 * strength)) if lean < 0.7 else (255, 255, 255, 30)
        sketch.mark(trunk, [strip(fill, start, end, 0.2)])


def _draw_arm(sketch: Sketch, outfit: Outfit, top: Top, arm: np.ndarray) -> None:
    shoulder, elbow, hand = arm
    radii = 0.9 * outfit.build.girth * np.array([0.032, 0.026, 0.019])
    sketch.limb(arm, radii, outfit.skin, ARMS_LAYER, arm)
    wide, sleeves = radii * top.sleeve_width, _sleeves(outfit)
    if 0 < top.sleeve <= 0.5:
        end = shoulder + 2 * top.sleeve * (elbow - shoulder)
        sketch.limb([shoulder, end], wide[:2], sleeves, ARMS_LAYER, arm, is_open=True)
    elif top.sleeve:
        # Some roll up the sleeves of a shirt or sweater.
        can_roll = outfit.person.upper_garment in ("shirt", "sweater")
        share = 0.4 if can_roll and outfit.traits["sleeve"] < 0.2 else 0.88
        end, cuff = (elbow + part * share * (hand - elbow) for part in (1, 0.86))
        sketch.limb([shoulder, elbow, end], wide, sleeves, ARMS_LAYER, arm, is_open=True)
        is_named = isinstance(top.cuff, str)
        fill = _palette(outfit)[top.cuff] if is_named else tone(sleeves.color, top.cuff)
        sketch.limb([cuff, end], 1.05 * wide[[2, 2]], fill, ARMS_LAYER, arm)


# ------------------------------------------------------------------------------ lower clothes

# Width of trousers; then length, as a share of the leg, and flare of skirts.
_TROUSERS = {"long pants": 1.28, "jeans": 1.08, "shorts": 1.4}
_SKIRTS = {"short skirt": (0.42, 1.45), "long skirt": (0.82, 1.5)}


def draw_lower(sketch: Sketch, outfit: Outfit) -> None:
    """Draws the legs, what covers them, and shoes."""
    garment = outfit.person.lower_garment
    for side, leg in outfit.pose.legs.items():
        anchor = outfit.pose.anchor(side)
        _draw_bare_leg(sketch, outfit, leg, anchor)
        if garment in _TROUSERS:
            _draw_trousers(sketch, outfit, leg, anchor)
    if garment in _SKIRTS:
        _draw_skirt(sketch, outfit)


def _draw_bare_leg(sketch: Sketch, outfit: Outfit, leg: np.ndarray, anchor: np.ndarray) -> None:
    traits = outfit.traits
    tights = outfit.person.lower_garment in _SKIRTS and traits["legs"] < 0.2
    radii = outfit.build.girth * np.array([0.05, 0.037, 0.022])
    sketch.limb(leg[:3], radii, _INK if tights else outfit.skin, _LEGS_LAYER, anchor)
    shoe = (0.021 + 0.006 * traits["shoe size"]) * np.array([1, 0.85])
    sketch.limb(leg[2:], shoe, _SHOES[shoes(traits)], _LEGS_LAYER, anchor)


def _draw_trousers(sketch: Sketch, outfit: Outfit, leg: np.ndarray, anchor: np.ndarray) -> None:
    color, garment = outfit.lower.color, outfit.person.lower_garment
    radii = outfit.build.girth * _TROUSERS[garment] * np.array([0.052, 0.039, 0.03])
    hip, knee, ankle, _ = leg
    if garment == "shorts":
        end = hip + (0.8 + 0.2 * outfit.traits["hem"]) * (knee - hip)
        wide = radii[0] * np.array([1, 0.92])
        sketch.limb([hip, end], wide, outfit.lower, _LEGS_LAYER, anchor, is_open=True)
        return
    sketch.limb([hip, knee, ankle], radii, outfit.lower, _LEGS_LAYER, anchor)
    if garment == "jeans":
        # Worn pale on thigh and knee, turned up at the ankle.
        thigh, turn_up = 0.75 * hip + 0.25 * knee, 0.91 * ankle + 0.09 * knee
        sketch.limb([thigh, knee], 0.5 * radii[:2], (255, 255, 255, 46), _LEGS_LAYER, anchor)
        sketch.limb([turn_up, ankle], radii[[2, 2]], tone(color, 0.35), _LEGS_LAYER, anchor)
    else:
        sketch.stroke([hip, knee, ankle], 0.012, (*tone(color, 0.35), 150), _LEGS_LAYER, anchor)


def _draw_skirt(sketch: Sketch, outfit: Outfit) -> None:
    length, flare = _SKIRTS[outfit.person.lower_garment]
    legs, down = list(outfit.pose.legs.values()), np.linspace(0, 1, 6)
    # Along the middle between the legs, so that it lies on the thighs of who sits or squats.
    hip, knee, ankle, _ = np.mean(legs, axis=0)
    hip[1] += 0.05
    share = length * (0.92 + 0.14 * outfit.traits["hem"]) * down
    path = zip(hip, knee, ankle, strict=True)
    centers = np.stack([np.interp(share, [0, 0.5, 1], axis) for axis in path], axis=-1)
    spread, _, stride = np.abs(legs[0][1] - knee)
    wide = 1.05 + (flare - 1) * down * (0.6 + 0.8 * outfit.traits["fit"])
    wide = np.maximum(outfit.build.hip_width * wide, down * (spread + 0.05))
    deep = 0.075 + down * max(0.04, stride)
    skirt = sketch.solid(centers, wide, deep, outfit.lower, _SKIRT_LAYER)
    pleat = (*tone(outfit.lower.color, 0.4), 120)
    pleats = [strip(pleat, (0.25, phi), (1, phi), 0.1) for phi in np.arange(-3, 3, 0.75).tolist()]
    sketch.mark(skirt, pleats)
