"""Head and face, and what people wear on them, hold, carry and ride."""

from collections.abc import Mapping

import numpy as np

from unipt_jax.data.synthetic.body import SIDES, hands
from unipt_jax.data.synthetic.clothes import ARMS_LAYER, TRUNK_LAYER, Outfit
from unipt_jax.data.synthetic.looks import Color, distinct, pick, tone
from unipt_jax.data.synthetic.people import Person, View
from unipt_jax.data.synthetic.sketch import Sketch, Solid, patch, ring, strip

_HAIR_LAYER, _HEAD_LAYER, _FACE_LAYER, _HAT_LAYER = 0.075, 0.08, 0.09, 0.1
_PACK_LAYER, _BAG_LAYER, _PHONE_LAYER, _CANOPY_LAYER, _POLE_LAYER = 0.08, 0.13, 0.2, 0.12, 0.05
_SKINS = [
    (246, 212, 186), (234, 190, 160), (220, 170, 136), (190, 138, 102), (140, 94, 64), (92, 62, 46),
]  # fmt: skip
_HAIRS = {
    (22, 20, 20): "black", (34, 26, 22): "black", (58, 38, 26): "brown", (92, 60, 36): "brown",
    (140, 92, 50): "brown", (206, 168, 106): "blond", (130, 54, 28): "red",
}  # fmt: skip
_GRAYS = dict.fromkeys([(150, 150, 152), (190, 190, 190), (222, 222, 220)], "gray")
_BRIGHT = [
    (236, 236, 232), (30, 30, 34), (190, 30, 36), (30, 60, 150), (240, 190, 30), (30, 110, 60),
    (230, 110, 30), (120, 120, 126), (220, 120, 160), (110, 60, 140), (110, 74, 44), (40, 160, 190),
]  # fmt: skip
_BALDING = 0.4  # The share of bald heads with hair at the temples.
_DARK, _STEEL = (34, 34, 38), (150, 152, 156)


def skin(traits: Mapping[str, float]) -> Color:
    """Returns the tone of a person's skin."""
    return pick(_SKINS, traits["skin"])


def hair_color(person: Person, traits: Mapping[str, float]) -> Color:
    """Returns the tone of the hair: grey for most of the old, and for some of middle age."""
    where = traits["hair tone"]
    gray = {"old": 0.85, "middle-aged": 0.25}.get(person.age, 0.0)
    tones, low, high = (_GRAYS, 0.0, gray) if where < gray else (_HAIRS, gray, 1.0)
    return distinct(list(tones), (where - low) / (high - low), skin(traits), by=60)


def hair_name(person: Person, traits: Mapping[str, float]) -> str:
    """Returns the name of the hair's colour; of a bald head, "balding" if some is left."""
    if person.hair == "bald head":
        return "balding" if traits["hair cut"] < _BALDING else ""
    return (_HAIRS | _GRAYS)[hair_color(person, traits)]


# ------------------------------------------------------------------------------ head

# Fills by number are darker skin.
_FACE = (
    strip(0.65, (0.46, 0.4), (0.53, 0.4), 0.28, mirrored=True),
    strip(0.4, (0.4, 0.45), (0.42, 0.4), 0.5, mirrored=True),
    strip(0.18, (0.46, 1.55), (0.6, 1.55), 0.3, mirrored=True),
    strip(0.15, (0.5, 0), (0.63, 0), 0.12),
)
_BEARD = patch(
    "hair", (0.55, -1.4), (0.68, -0.45), (0.68, 0.45), (0.55, 1.4), (0.95, 0.9), (0.95, -0.9)
)
_MOUTH = patch("mouth", (0.71, -0.32), (0.71, 0.32), (0.76, 0.25), (0.76, -0.25))
_TEMPLES = patch("hair", (0.5, 1.7), (0.5, 3.1), (0.74, 3.0), (0.74, 1.8), mirrored=True)
_GLASSES = (
    patch((12, 12, 16), (0.41, 0.1), (0.41, 0.85), (0.57, 0.78), (0.57, 0.14), mirrored=True),
    patch("lens", (0.445, 0.2), (0.445, 0.72), (0.54, 0.68), (0.54, 0.22), mirrored=True),
    patch((12, 12, 16), (0.44, 0.8), (0.44, 1.5), (0.48, 1.5), (0.48, 0.8), mirrored=True),
    strip((12, 12, 16), (0.44, 0), (0.48, 0), 0.3),
)
_LENSES = {"glasses": (226, 236, 244, 150), "sunglasses": (12, 12, 16)}


def draw_head(sketch: Sketch, outfit: Outfit) -> None:
    """Draws neck, head, face, hair, glasses, cigarette and hat."""
    person, size = outfit.person, outfit.build.head
    neck = outfit.pose.spine(np.array([1 - 0.8 * size, outfit.build.shoulder]))
    sketch.limb(neck, [0.24 * size, 0.28 * size], outfit.skin, TRUNK_LAYER)
    head = _shell(sketch, outfit, 1.0)
    sketch.cover(head, outfit.skin)
    _draw_face(sketch, head, outfit)
    if person.hair != "bald head":
        _draw_hair(sketch, outfit)
    if person.glasses:
        sketch.mark(head, _GLASSES, palette={"lens": _LENSES[person.glasses]})
    if person.hat:
        (_draw_helmet if person.hat == "helmet" else _draw_hat)(sketch, outfit)
    if person.smoke:
        _draw_cigarette(sketch, outfit)


def _shell(sketch: Sketch, outfit: Outfit, factor: float, layer: float = _HEAD_LAYER) -> Solid:
    """Returns an ellipsoid `factor` times the head, narrower towards the chin."""
    size = outfit.build.head
    y = 1 - size / 2 * (1 - factor * np.cos(np.linspace(0, np.pi, 9)))
    radius = size * factor * np.sin(np.linspace(0.12, np.pi - 0.25, 9)) * np.linspace(1.03, 0.9, 9)
    return sketch.form(outfit.pose.spine(y, 0.008), 0.385 * radius, 0.44 * radius, layer)


def _draw_face(sketch: Sketch, head: Solid, outfit: Outfit) -> None:
    person, traits = outfit.person, outfit.traits
    female, kid = person.gender == "female", person.age == "kid"
    marks = [*_FACE, _MOUTH]
    if not female and not kid and traits["beard"] < 0.35:
        marks = [*_FACE, _BEARD, _MOUTH]
    if person.hair == "bald head" and traits["hair cut"] < _BALDING:
        marks.append(_TEMPLES)
    mouth = (190, 50, 70) if female else tone(outfit.skin, 0.4)
    sketch.mark(head, marks, outfit.skin, {"mouth": mouth, "hair": hair_color(person, traits)})


def _draw_hair(sketch: Sketch, outfit: Outfit) -> None:
    cut, length, size = outfit.traits["hair cut"], outfit.traits["hair length"], outfit.build.head
    color = hair_color(outfit.person, outfit.traits)
    is_long = outfit.person.hair == "long hair"
    sides, nape = (0.62, 0.9) if is_long else (0.4 + 0.12 * length, 0.72)
    fringe = 0.2 + 0.14 * cut
    shell = _shell(sketch, outfit, 1.06 + 0.1 * cut + 0.04 * is_long)
    hairline = [fringe, fringe, sides - 0.06, sides, nape]
    sketch.cap(shell, [0, 0.7, 1.1, 1.6, 2.3], hairline, color)
    if not is_long:
        return
    ends = outfit.build.shoulder - 0.02 - 0.14 * length
    centers = outfit.pose.spine(np.linspace(1 - 0.35 * size, ends, 6), -0.3 * size)
    wide = size * np.array([0.42, 0.46, 0.5, 0.53, 0.5, 0.36]) * (0.92 + 0.2 * cut)
    sketch.solid(centers, wide, 0.5 * wide, color, _HAIR_LAYER)
    if length > 0.35:
        for side in SIDES:
            lock = (0.4 * size * side, 1 - 0.4 * size, 0.01), (0.5 * size * side, ends, 0.045)
            sketch.limb(outfit.pose.bend(lock), [0.1 * size, 0.13 * size], color, _HEAD_LAYER)


def _draw_cigarette(sketch: Sketch, outfit: Outfit) -> None:
    """Draws a cigarette between the lips, askew, and its smoke."""
    size, side = outfit.build.head, 1 if outfit.traits["hair cut"] < 0.5 else -1
    lips = np.array([0.03 * side * size, 1 - 0.74 * size, 0.38 * size])
    tip = lips + max(size, 0.13) * np.array([0.28 * side, -0.08, 0.5])
    lips, tip = outfit.pose.bend([lips, tip])
    sketch.stroke([lips, tip], 0.02, (250, 250, 248), _FACE_LAYER)
    sketch.ball(tip, 0.011, (240, 90, 20), _FACE_LAYER)
    for k in range(4):
        puff = tip + np.array([0.012 * side * k, 0.035 * k + 0.015, 0.01])
        sketch.ball(puff, 0.016 + 0.009 * k, (226, 228, 232, 170 - 25 * k), _FACE_LAYER)


def _draw_hat(sketch: Sketch, outfit: Outfit) -> None:
    """Draws a peaked cap, a woollen hat, some with a bobble, or a hat with a brim."""
    kind, color = outfit.traits["hat kind"], pick(_BRIGHT, outfit.traits["hat"])
    size, bend = outfit.build.head, outfit.pose.bend
    edge = 0.36 if kind < 0.7 else 0.3
    shell = _shell(sketch, outfit, 1.2, _HAT_LAYER)
    sketch.cap(shell, [0], [edge], color)
    sketch.mark(shell, [ring(0.3, edge - 0.08, edge)], color)
    if kind < 0.4:
        phi = np.linspace(-1.1, 1.1, 7)
        forward = 0.5 * np.cos(phi) + 0.3 * np.cos(1.4 * phi)
        peak = np.stack([0.42 * size * np.sin(phi), 0 * phi + 1 - 0.3 * size, size * forward], -1)
        sketch.sheet(bend(peak), tone(color, 0.3), _HAT_LAYER)
        sketch.stroke(bend(peak), 0.012, tone(color, 0.3), _HAT_LAYER)
    elif kind > 0.7:
        phi = np.linspace(0, 2 * np.pi, 16)
        brim = np.stack([0.68 * np.sin(phi), 0 * phi - 0.3, 0.72 * np.cos(phi)], -1)
        sketch.sheet(bend(size * brim + (0, 1, 0)), color, _HEAD_LAYER)
    elif kind > 0.55:
        bobble = bend([(0, 1 + 0.12 * size, 0)])[0]
        sketch.ball(bobble, 0.16 * size, tone(color, 0.3), _HAT_LAYER)


def _draw_helmet(sketch: Sketch, outfit: Outfit) -> None:
    """Draws a smooth shell down to the ears, or to the chin with a slit for the eyes."""
    kind, color = outfit.traits["hat kind"], pick(_BRIGHT, outfit.traits["hat"])
    shell = _shell(sketch, outfit, 1.42, _HAT_LAYER)
    is_full = kind < 0.4
    sketch.cap(shell, [0.6, 1.1], [0.4, 0.82 if is_full else 0.56], color)
    marks = [strip("stripe", (0.05, middle), (0.36, middle), 0.5) for middle in (0, np.pi)]
    if is_full:
        marks.append(patch(0.0, (0.72, -1.1), (0.72, 1.1), (0.86, 0.9), (0.86, -0.9)))
    marks.append(ring((255, 255, 255, 110), 0.12, 0.25, 0.5))
    sketch.mark(shell, marks, color, {"stripe": distinct(_BRIGHT, kind, color)})


# ------------------------------------------------------------------------------ hands


def draw_hands(sketch: Sketch, outfit: Outfit, view: View) -> None:
    """Draws hands or gloves and what they hold."""
    for arm in outfit.pose.arms.values():
        _draw_hand(sketch, outfit, arm)
    for word, side in hands(outfit.person, view).items():
        _HELD[word](sketch, outfit, outfit.pose.arms[side][2])


def _draw_hand(sketch: Sketch, outfit: Outfit, arm: np.ndarray) -> None:
    wrist = arm[2]
    along = (wrist - arm[1]) / (np.linalg.norm(wrist - arm[1]) + 1e-9)
    if not outfit.person.gloves:
        ends = [wrist, wrist + 0.024 * along]
        sketch.limb(ends, [0.02, 0.018], outfit.skin, ARMS_LAYER, arm)
        return
    color = distinct(_BRIGHT, outfit.traits["gloves"], outfit.upper.color, outfit.skin)
    cuff, fingers = wrist - 0.045 * along, wrist + 0.022 * along
    sketch.limb([cuff, fingers], [0.031, 0.03], color, ARMS_LAYER, arm)
    sketch.stroke([cuff, cuff + 0.012 * along], 0.055, tone(color, 0.35), ARMS_LAYER, arm)


def _draw_cellphone(sketch: Sketch, outfit: Outfit, hand: np.ndarray) -> None:
    case = pick([(24, 24, 28), (236, 236, 238)], outfit.traits["cellphone"])
    ends = hand + np.array([(0, -0.035, 0.02), (0, 0.05, 0)])
    sketch.stroke(ends, 0.042, case, _PHONE_LAYER)
    sketch.stroke(0.8 * ends + 0.2 * ends.mean(axis=0), 0.024, (120, 190, 240), _PHONE_LAYER)


def _draw_umbrella(sketch: Sketch, outfit: Outfit, hand: np.ndarray) -> None:
    color, crown = pick(_BRIGHT, outfit.traits["umbrella"]), outfit.pose.spine(np.ones(1))[0]
    peak = np.array([0.4 * hand[0], crown[1] + 0.22, 0.6 * hand[2]])
    pole = [hand - np.array([0, 0.04, 0]), peak + np.array([0, 0.03, 0])]
    sketch.stroke(pole, 0.014, (60, 60, 64), _POLE_LAYER)
    around = np.linspace(0, np.pi / 2, 7)
    radius = (0.25 + 0.08 * outfit.traits["umbrella"]) * np.sin(around)
    centers = peak - np.outer(1 - np.cos(around), (0, 0.15, 0))
    canopy = sketch.solid(centers, radius, radius, color, _CANOPY_LAYER)
    wide = 0.4 if outfit.traits["hat"] < 0.4 else 0.06
    ribs = np.arange(-np.pi, np.pi, np.pi / 4).tolist()
    sketch.mark(canopy, [strip(0.3, (0, phi), (1, phi), wide) for phi in ribs], color)


def _draw_handbag(sketch: Sketch, outfit: Outfit, hand: np.ndarray) -> None:
    color, size = _bag_color(outfit), 0.85 + 0.35 * outfit.traits["bag size"]
    centers = hand - np.outer(size * np.array([0.05, 0.09, 0.16]), (0, 1, 0))
    for z in (-0.04, 0.04):
        handle = [hand, centers[0] + np.array([0, 0, z])]
        sketch.stroke(handle, 0.012, tone(color, 0.2), _BAG_LAYER, hand[None])
    wide, deep = np.outer([0.045, 0.08], size * np.array([0.85, 1.05, 1.15]))
    bag = sketch.solid(centers, wide, deep, color, _BAG_LAYER)
    sketch.mark(bag, [ring(0.35, 0.25, 0.35)], color)


_HELD = {"cellphone": _draw_cellphone, "umbrella": _draw_umbrella, "handbag": _draw_handbag}

# ------------------------------------------------------------------------------ bags


def draw_bag(sketch: Sketch, trunk: Solid, outfit: Outfit, view: View) -> None:
    """Draws a backpack or a single-shoulder bag."""
    if outfit.person.bag == "backpack":
        _draw_backpack(sketch, trunk, outfit)
    elif outfit.person.bag == "single-shoulder bag":
        _draw_shoulder_bag(sketch, trunk, outfit, view.near)


def _bag_color(outfit: Outfit) -> Color:
    return distinct(_BRIGHT, outfit.traits["bag"], outfit.upper.color)


def _draw_backpack(sketch: Sketch, trunk: Solid, outfit: Outfit) -> None:
    color, build = _bag_color(outfit), outfit.build
    straps = [
        strip(color, (0, 0.85), (0.3, 0.75), 0.3, mirrored=True),
        strip(color, (0.3, 0.75), (0.58, 1.15), 0.3, mirrored=True),
    ]
    sketch.mark(trunk, straps)
    bottom = build.hip + 0.2 * (1 - outfit.traits["bag size"]) * (build.shoulder - build.hip)
    centers = outfit.pose.spine(np.linspace(build.shoulder + 0.01, bottom, 6), -0.115)
    wide = build.shoulder_width * np.array([0.5, 0.78, 0.82, 0.84, 0.84, 0.72])
    pack = sketch.solid(centers, wide, [0.03, 0.05, 0.06, 0.07, 0.07, 0.05], color, _PACK_LAYER)
    left, right = np.pi - 0.9, np.pi + 0.9
    pocket = patch(0.35, (0.55, left), (0.55, right), (0.92, right), (0.92, left))
    sketch.mark(pack, [pocket, ring(0.5, 0.26, 0.3)], color)


def _draw_shoulder_bag(sketch: Sketch, trunk: Solid, outfit: Outfit, side: int) -> None:
    """Draws a bag at the hip, its strap on that shoulder or, across the chest, on the other."""
    color, build = _bag_color(outfit), outfit.build
    start = -0.75 if outfit.traits["bag size"] < 0.6 else 0.8
    straps = [
        strip(color, (0.02, middle + start * turn), (0.85, middle + 1.25 * turn), 0.28)
        for middle, turn in ((0, side), (np.pi, -side))
    ]
    sketch.mark(trunk, straps)
    size = 0.85 + 0.4 * outfit.traits["bag size"]
    y = build.hip + 0.04 - size * np.array([0, 0.03, 0.12, 0.14])
    centers = outfit.pose.spine(y, -0.02) + np.array([side * (build.hip_width + 0.05), 0, 0])
    wide, deep = np.outer([0.045, 0.09], size * np.array([0.8, 1.05, 1.05, 0.8]))
    bag = sketch.solid(centers, wide, deep, color, _BAG_LAYER)
    sketch.mark(bag, [ring(0.25, 0.1, 0.5)], color)


# ------------------------------------------------------------------------------ vehicles

# Frames as lines (points, width) and bodies as limbs (joints, radii); fills by name are the colour
# of the vehicle. x is to the left, y up, z forward of the saddle.
_BAR = [(-0.15, 0.64, 0.28), (0, 0.62, 0.26), (0.15, 0.64, 0.28)]
_BICYCLE_LINES = (
    (
        [(0, 0.18, -0.3), (0, 0.17, 0), (0, 0.56, 0.24), (0, 0.52, -0.05), (0, 0.17, 0)],
        0.022,
        "own",
    ),
    ([(0, 0.18, -0.3), (0, 0.52, -0.05)], 0.022, "own"),
    ([(0, 0.64, 0.25), (0, 0.56, 0.24), (0, 0.18, 0.34)], 0.022, "own"),
    ([(0, 0.54, -0.12), (0, 0.54, 0.02)], 0.035, _DARK),
    (_BAR, 0.024, _DARK),
)
_MOTORCYCLE_LIMBS = (
    ([(0, 0.4, -0.34), (0, 0.4, 0.02)], [0.05, 0.06], _DARK),
    ([(0, 0.2, -0.08), (0, 0.22, 0.12)], [0.09, 0.09], (92, 94, 98)),
    ([(0, 0.42, 0.05), (0, 0.5, 0.2)], [0.08, 0.09], "own"),
    ([(0, 0.5, 0.28), (0, 0.3, 0.34)], [0.1, 0.06], "own"),
    ([(0, 0.3, -0.32), (0, 0.36, -0.4)], [0.06, 0.04], "own"),
)


def draw_vehicle(sketch: Sketch, outfit: Outfit) -> None:
    """Draws the bicycle or motorcycle of a rider."""
    color = pick(_BRIGHT, outfit.traits["vehicle"])
    if outfit.person.vehicle == "bicycle":
        for z in (-0.3, 0.34):
            _draw_wheel(sketch, z, 0.18, 0.024)
        for points, width, fill in _BICYCLE_LINES:
            sketch.stroke(points, width, color if fill == "own" else fill, 0.0)
    elif outfit.person.vehicle == "motorcycle":
        for z in (-0.3, 0.38):
            _draw_wheel(sketch, z, 0.14, 0.07)
        for joints, radii, fill in _MOTORCYCLE_LIMBS:
            sketch.limb(joints, radii, color if fill == "own" else fill, 0.0)
        sketch.stroke(_BAR, 0.03, _DARK, 0.0)
        sketch.ball((0, 0.5, 0.38), 0.05, (250, 246, 214), 0.0)
        sketch.ball((0, 0.37, -0.44), 0.03, (214, 30, 30), 0.0)


def _draw_wheel(sketch: Sketch, z: float, radius: float, tire: float) -> None:
    phi = np.linspace(0, 2 * np.pi, 20)
    rim = np.stack([0 * phi, radius * (1 + np.sin(phi)), z + radius * np.cos(phi)], axis=-1)
    sketch.stroke(rim, tire, (26, 26, 28), 0.0)
    for end in rim[:18:3]:
        sketch.stroke([end, (0, radius, z)], 0.006, _STEEL, 0.0)
