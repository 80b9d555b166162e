"""What is known of a drawn pedestrian, by name, and what of it one view shows."""

import dataclasses
from collections.abc import Mapping

import numpy as np

AGES = ("kid", "young", "middle-aged", "old")
GENDERS = ("male", "female")
COLORS = (
    "black", "white", "gray", "red", "orange", "yellow",
    "green", "blue", "purple", "pink", "brown", "khaki",
)  # fmt: skip
PURE = "pure color"
PATTERNS = (PURE, "stripe", "plaid", "patterned")
UPPER_GARMENTS = (
    "t-shirt", "shirt", "sweater", "hoodie", "jacket",
    "suit jacket", "down jacket", "wind coat", "sleeveless tank top",
)  # fmt: skip
LOWER_GARMENTS = ("long pants", "jeans", "shorts", "short skirt", "long skirt")
ACTIONS = ("standing", "walking", "running", "squatting", "riding")
HAIRS = ("short hair", "long hair", "bald head")
BAGS = ("backpack", "single-shoulder bag", "handbag")
GLASSES = ("glasses", "sunglasses")
SMOKES = ("cigarette",)
HATS = ("ordinary hat", "helmet")
CELLPHONES = ("cellphone",)
UMBRELLAS = ("umbrella",)
GLOVES = ("gloves",)
VEHICLES = ("bicycle", "motorcycle")

Weights = Mapping[str, float | int]


@dataclasses.dataclass(frozen=True)
class Person:
    """An identity in words of the vocabularies above; "" stands for an absent optional one.

    `identity` (>= 0) seeds what makes a person beyond the words: see `looks.traits`.
    """

    age: str
    gender: str
    upper_color: str
    upper_pattern: str
    upper_garment: str
    lower_color: str
    lower_pattern: str
    lower_garment: str
    action: str
    hair: str
    bag: str = ""
    glasses: str = ""
    smoke: str = ""
    hat: str = ""
    cellphone: str = ""
    umbrella: str = ""
    gloves: str = ""
    vehicle: str = ""
    identity: int = 0


@dataclasses.dataclass(frozen=True)
class View:
    """How a person stands to the camera.

    Angles are in degrees; lengths are shares of the crop's height or, for `center`, width.
    """

    yaw: float  # [-180, 180): 0 faces the camera, 90 looks to the image's right, 180 away.
    pitch: float = 0.0  # How far the camera looks down.
    roll: float = 0.0
    perspective: float = 0.0  # By how much what is a body height higher up looks larger.
    aspect: float = 2.0  # Height over width of the crop before it is resized to the image.
    fill: float = 0.9  # The figure's height; above 1 the crop cuts it.
    above: float = 0.5  # Share above the figure of the room that it leaves, or is cut by.
    center: float = 0.5  # Of the figure.
    phase: float = 0.0  # Of the stride, in radians.
    swing: float = 1.0  # Factor on the stride.
    light: float = 0.0  # [-1, 1]: the side that lies in shade, and how much.
    handed: int = 1  # The hand to carry with where both are seen: 1 the left, -1 the right.
    at_ear: bool = True  # Where a cellphone is held, if not before the chest.
    folds: int = 0  # Seeds the folds of the clothes.

    @property
    def near(self) -> int:
        """The side on which things are carried: 1 the person's left, -1 the right."""
        left = -np.sin(np.radians(self.yaw))
        return self.handed if abs(left) < 0.3 else int(np.sign(left))


# ------------------------------------------------------------------------------ what is seen


def visible(person: Person, view: View) -> Person:
    """Returns the person without what this view hides.

    Glasses and a cigarette need the face. Everything else is drawn where it can be seen: bags and
    cellphones on the near side, a backpack's straps in front.
    """
    if abs(view.yaw) < 100:
        return person
    return dataclasses.replace(person, glasses="", smoke="")


def labels(person: Person) -> dict[str, str]:
    """Returns the 14 attributes by name; "" is absent, and a pure colour goes without saying.

    Clothes are "red stripe shirt" or "blue jeans".
    """
    clothes = {
        "upper_clothes": (person.upper_color, person.upper_pattern, person.upper_garment),
        "lower_clothes": (person.lower_color, person.lower_pattern, person.lower_garment),
    }
    phrases = {
        name: " ".join(word for word in words if word != PURE) for name, words in clothes.items()
    }
    rest = (
        "action", "hair", "bag", "glasses", "smoke", "hat",
        "cellphone", "umbrella", "gloves", "vehicle",
    )  # fmt: skip
    own = {name: getattr(person, name) for name in rest}
    return {"age": person.age, "gender": person.gender, **phrases, **own}


# ------------------------------------------------------------------------------ joint draws

_AGE = {"kid": 0.15, "young": 0.4, "middle-aged": 0.25, "old": 0.2}
_UPPER: Mapping[str, Weights] = {
    "male": dict(zip(UPPER_GARMENTS, (14, 13, 10, 11, 13, 12, 11, 9, 7), strict=True)),
    "female": dict(zip(UPPER_GARMENTS, (14, 12, 13, 10, 10, 7, 12, 12, 10), strict=True)),
}
_LOWER: Mapping[str, Weights] = {
    "male": dict(zip(LOWER_GARMENTS, (42, 34, 22, 1, 1), strict=True)),
    "female": dict(zip(LOWER_GARMENTS, (20, 20, 14, 26, 20), strict=True)),
}
_HAIR: Mapping[str, Weights] = {
    "male": {"short hair": 0.79, "long hair": 0.03, "bald head": 0.18},
    "female": {"short hair": 0.17, "long hair": 0.82, "bald head": 0.01},
}
_COLOR: Weights = dict(zip(COLORS, (14, 11, 11, 9, 6, 7, 8, 12, 6, 6, 6, 6), strict=True))
_PATTERNED = {PURE: 0.5, "stripe": 0.18, "plaid": 0.15, "patterned": 0.17}
_MOSTLY_PURE = {PURE: 0.85, "stripe": 0.05, "plaid": 0.05, "patterned": 0.05}
_SOMETIMES = {PURE: 0.7, "stripe": 0.1, "plaid": 0.1, "patterned": 0.1}
_PATTERN: Mapping[str, Weights] = {
    "jeans": {PURE: 1.0},
    **dict.fromkeys(("t-shirt", "shirt", "sweater", "sleeveless tank top"), _PATTERNED),
    **dict.fromkeys(("short skirt", "long skirt"), _SOMETIMES),
}
_JEANS = {"blue": 0.6, "black": 0.2, "gray": 0.2}
_ACTION = {"standing": 0.3, "walking": 0.42, "running": 0.14, "squatting": 0.14}
_BAG = {"": 0.46, "backpack": 0.18, "single-shoulder bag": 0.18, "handbag": 0.18}
_GLASSES = {"": 0.62, "glasses": 0.2, "sunglasses": 0.18}
_VEHICLE = {"": 0.64, "bicycle": 0.18, "motorcycle": 0.18}
_HAT: Mapping[str, Weights] = {
    "": {"": 0.72, "ordinary hat": 0.24, "helmet": 0.04},
    "bicycle": {"": 0.4, "ordinary hat": 0.1, "helmet": 0.5},
    "motorcycle": {"": 0.2, "helmet": 0.8},
}
# Neither a coat nor a skirt of that length lets the legs of a rider or runner be drawn truly.
_LONG = ("wind coat", "long skirt")
_HIDDEN = {"shorts": 0.0, "short skirt": 0.0}
_HAND_HELD = ("cellphone", "handbag", "umbrella")


def draw_person(rng: np.random.Generator) -> Person:
    """Draws attributes as they occur together, and an identity.

    Skirts are almost always women's and bald heads men's; jeans are blue, black or gray; riders
    are no kids, mostly wear a helmet and have no hand free; long clothes neither run, squat nor
    ride; a long coat is not worn over what it would hide; kids do not smoke; two hands carry two
    things.
    """
    age = _choice(rng, _AGE)
    gender = _choice(rng, {"male": 0.5, "female": 0.5})
    upper = _choice(rng, _UPPER[gender])
    lower = _choice(rng, {**_LOWER[gender], **(_HIDDEN if upper == "wind coat" else {})})
    hair = _choice(rng, {**_HAIR[gender], **({"bald head": 0.0} if age == "kid" else {})})
    is_long = upper in _LONG or lower in _LONG
    vehicle = "" if is_long or age == "kid" else _choice(rng, _VEHICLE)
    stays = {"running": 0.0, "squatting": 0.0} if is_long else {}
    action = "riding" if vehicle else _choice(rng, {**_ACTION, **stays})
    hat = "" if hair == "bald head" else _choice(rng, _HAT[vehicle])
    carried = {
        "bag": _choice(rng, _BAG),
        "cellphone": _maybe(rng, "cellphone", 0.3),
        "umbrella": _maybe(rng, "umbrella", 0.26),
    }
    return Person(
        age=age,
        gender=gender,
        upper_color=_choice(rng, _COLOR),
        upper_pattern=_choice(rng, _PATTERN.get(upper, _MOSTLY_PURE)),
        upper_garment=upper,
        lower_color=_choice(rng, _JEANS if lower == "jeans" else _COLOR),
        lower_pattern=_choice(rng, _PATTERN.get(lower, _MOSTLY_PURE)),
        lower_garment=lower,
        action=action,
        hair=hair,
        glasses=_choice(rng, _GLASSES),
        smoke=_maybe(rng, "cigarette", 0.0 if age == "kid" else 0.27),
        hat=hat,
        vehicle=vehicle,
        gloves=_maybe(rng, "gloves", 0.22),
        identity=int(rng.integers(2**31)),
        **_put_down(rng, carried, hands=0 if vehicle else 2),
    )


def draw_view(rng: np.random.Generator) -> View:
    """Draws a view: front, back and both sides, as surveillance crops frame people."""
    side = _choice(rng, {"0": 0.34, "180": 0.28, "90": 0.19, "-90": 0.19})
    # What is cut is mostly the feet; of a head, no more than the crown.
    cut = rng.random() < 0.2
    return View(
        yaw=(float(side) + rng.normal(0, 24) + 180) % 360 - 180,
        pitch=rng.uniform(0, 26),
        roll=rng.normal(0, 2.5),
        perspective=rng.uniform(-0.03, 0.16),
        aspect=rng.uniform(1.7, 2.7),
        fill=rng.uniform(1.0, 1.15) if cut else rng.uniform(0.74, 1.0),
        above=rng.uniform(0, 0.25) if cut else rng.uniform(0.15, 0.85),
        center=0.5 + rng.normal(0, 0.06),
        phase=rng.uniform(0, 2 * np.pi),
        swing=rng.uniform(0.6, 1.2),
        light=rng.uniform(-1, 1),
        handed=1 if rng.random() < 0.5 else -1,
        at_ear=bool(rng.random() < 0.6),
        folds=int(rng.integers(2**31)),
    )


def _choice(rng: np.random.Generator, weights: Weights) -> str:
    rest = rng.random() * sum(weights.values())
    for word, weight in weights.items():
        rest -= weight
        if rest < 0:
            return word
    return word


def _maybe(rng: np.random.Generator, word: str, probability: float) -> str:
    return word if rng.random() < probability else ""


def _put_down(rng: np.random.Generator, carried: Mapping[str, str], hands: int) -> dict[str, str]:
    """Returns `carried` without what is more than `hands` hands can hold."""
    held = [name for name, word in carried.items() if word in _HAND_HELD]
    dropped = rng.permutation(held)[hands:]
    return {name: "" if name in dropped else word for name, word in carried.items()}
