"""Build and pose: where the joints of a body are, in body units (see `sketch`)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unipt_jax.data.synthetic.people import Person, View

SIDES = (1, -1)  # The person's left and right.


@dataclasses.dataclass(frozen=True)
class Build:
    """Measures in body heights; widths are half widths, `girth` a factor on limbs and belly."""

    head: float
    hip: float
    shoulder_width: float
    waist_width: float
    hip_width: float
    girth: float
    stoop: float  # Degrees.
    chest: float  # By how much the chest stands out.

    @property
    def shoulder(self) -> float:
        """Height of the shoulders."""
        return 1 - self.head - 0.035


@dataclasses.dataclass(frozen=True)
class Posture:
    """Angles in degrees, forwards positive; `*_swing` is added in step with the stride."""

    thigh: int
    thigh_swing: int
    knee: int
    knee_swing: int
    arm: int
    arm_swing: int
    elbow: int
    lean: int
    spread: float  # Of the feet, in body heights.


_POSTURES: Mapping[str, Posture] = {
    "standing": Posture(0, 3, 1, 0, 0, 5, 12, 0, 0.02),
    "walking": Posture(3, 27, 8, 34, 2, 24, 18, 2, 0.0),
    "running": Posture(14, 40, 28, 80, 0, 46, 88, 13, 0.0),
    "squatting": Posture(98, 7, 122, 0, 38, 10, 45, 20, 0.06),
    "riding": Posture(58, 20, 72, 22, 52, 0, 20, 14, 0.03),
}
# By age: head, hip, shoulder, waist and hip width, girth, stoop.
_AGE = {
    "kid": (0.205, 0.43, 0.108, 0.092, 0.088, 1.0, 0),
    "young": (0.135, 0.51, 0.104, 0.082, 0.088, 0.92, 0),
    "middle-aged": (0.138, 0.49, 0.11, 0.104, 0.099, 1.14, 2),
    "old": (0.142, 0.475, 0.1, 0.094, 0.094, 0.98, 13),
}
# Factors on shoulder, waist and hip width, and the chest.
_GENDER = {"male": (1.1, 1.03, 0.94, 0.0), "female": (0.88, 0.84, 1.08, 0.018)}


def build(person: Person, traits: Mapping[str, float]) -> Build:
    """Returns the measures of an age, a gender and one's own build."""
    head, hip, shoulder_width, waist_width, hip_width, girth, stoop = _AGE[person.age]
    shoulder_factor, waist_factor, hip_factor, chest = _GENDER[person.gender]
    stout = 0.88 + 0.26 * traits["build"]
    return Build(
        head=head * (0.95 + 0.12 * traits["height"]),
        hip=hip * (0.97 + 0.05 * traits["legs"]),
        shoulder_width=shoulder_width * shoulder_factor * (0.95 + 0.1 * traits["build"]),
        waist_width=waist_width * waist_factor * stout,
        hip_width=hip_width * hip_factor * (0.5 + 0.5 * stout),
        girth=girth * stout * (1.06 if person.gender == "male" else 0.94),
        stoop=stoop * (0.6 + 0.6 * traits["height"]),
        chest=0.0 if person.age == "kid" else chest,
    )


@dataclasses.dataclass(frozen=True)
class Pose:
    """Joints `[3]` by side (1 left, -1 right): each arm and leg from the trunk outwards.

    `bend` moves a point of the upright trunk to where the lean takes it.
    """

    arms: Mapping[int, np.ndarray]  # Shoulder, elbow, hand: [3, 3].
    legs: Mapping[int, np.ndarray]  # Hip, knee, ankle, toe: [4, 3].
    hip: float
    shift: float  # Upwards, from where the hip of a standing body is.
    lean: float  # Radians.

    def anchor(self, side: int) -> np.ndarray:
        """Returns the point whose depth a leg is drawn at: under the trunk unless it is raised."""
        leg = self.legs[side]
        raised = 1.0 if leg[1, 1] > leg[0, 1] - 0.16 else 0.1
        return leg[:1] + raised * (leg[1:2] - leg[:1])

    def spine(self, y: np.ndarray, z: float | Sequence[float] = 0.0) -> np.ndarray:
        """Returns points `[N, 3]` of the trunk's middle at heights `y` of the upright body."""
        return self.bend(np.stack([0 * y, y, 0 * y + z], axis=-1))

    def bend(self, points: np.ndarray | Sequence[Any]) -> np.ndarray:
        """Returns points `[N, 3]` of the upright body, leant and moved with the hip."""
        points = np.array(points, float)
        above = np.maximum(points[:, 1] - self.hip, 0)
        points[:, 1] += above * (np.cos(self.lean) - 1) + self.shift
        points[:, 2] += above * np.sin(self.lean)
        return points


def pose(person: Person, view: View, frame: Build) -> Pose:
    """Returns the joints of the action at the view's moment, hands where they hold something."""
    posture = _POSTURES[person.action]
    step = np.sin(view.phase) * view.swing
    legs = {side: _leg(posture, frame, side, side * step) for side in SIDES}
    ground = min(leg[2, 1] for leg in legs.values())
    shift = 0.035 - ground
    for leg in legs.values():
        leg[:, 1] += shift
    lean = np.radians(posture.lean + frame.stoop)
    trunk = Pose({}, legs, frame.hip, shift, lean)
    arms = {side: _arm(posture, frame, trunk, side, -side * step) for side in SIDES}
    for side, hand in _held(person, view, frame, trunk).items():
        arms[side] = _reach(arms[side][0], hand, side)
    return dataclasses.replace(trunk, arms=arms)


def hands(person: Person, view: View) -> dict[str, int]:
    """Returns which hand holds what, the near one first."""
    held = [person.cellphone, person.bag if person.bag == "handbag" else "", person.umbrella]
    sides = (view.near, -view.near, -view.near)
    return dict(zip([word for word in held if word], sides, strict=False))


def _leg(posture: Posture, frame: Build, side: int, step: float) -> np.ndarray:
    thigh = np.radians(posture.thigh + posture.thigh_swing * step)
    bend = posture.knee + posture.knee_swing * max(0.0, -step)
    shin = thigh - np.radians(bend)
    length = frame.hip / 2
    out = posture.spread / 2 * side
    hip = np.array([0.5 * frame.hip_width * side, frame.hip, 0.0])
    knee = hip + np.array([out, -length * np.cos(thigh), length * np.sin(thigh)])
    ankle = knee + np.array([out, -0.93 * length * np.cos(shin), 0.93 * length * np.sin(shin)])
    foot = 0.7 * min(0.0, shin)
    toe = ankle + np.array([0.018 * side, -0.02 + 0.075 * np.sin(foot), 0.075 * np.cos(foot)])
    return np.stack([hip, knee, ankle, toe])


def _arm(posture: Posture, frame: Build, trunk: Pose, side: int, step: float) -> np.ndarray:
    shoulder = trunk.bend([(frame.shoulder_width * side, frame.shoulder - 0.02, 0.0)])[0]
    upper = np.radians(posture.arm + posture.arm_swing * step)
    lower = upper + np.radians(posture.elbow)
    length = 0.205 * (frame.shoulder - 0.1) / 0.72
    elbow = shoulder + length * np.array([0.11 * side, -np.cos(upper), np.sin(upper)])
    hand = elbow + length * np.array([0.05 * side, -np.cos(lower), np.sin(lower)])
    return np.stack([shoulder, elbow, hand])


def _held(person: Person, view: View, frame: Build, trunk: Pose) -> dict[int, np.ndarray]:
    """Returns the places of hands that do not just swing."""
    places = {}
    if person.vehicle:
        bar = (0.12, 0.66, 0.3) if person.vehicle == "bicycle" else (0.14, 0.6, 0.3)
        places = {side: np.array(bar) * (side, 1, 1) for side in SIDES}
    for word, side in hands(person, view).items():
        if word == "umbrella":
            spot = (0.08 * side, frame.shoulder - 0.08, 0.13)
        elif word == "cellphone" and (view.at_ear or abs(view.yaw) > 80):
            spot = (0.55 * frame.head * side, 1 - 0.6 * frame.head, 0.03)
        elif word == "cellphone":
            spot = (0.03 * side, frame.shoulder - 0.12, 0.18)
        else:
            spot = (1.2 * frame.shoulder_width * side, frame.hip - 0.03, 0.02)
        places[side] = trunk.bend([spot])[0]
    return places


def _reach(shoulder: np.ndarray, hand: np.ndarray, side: int) -> np.ndarray:
    slack = max(0.02, 0.36 - np.linalg.norm(hand - shoulder))
    elbow = (shoulder + hand) / 2 + (0.3 * slack * side, -0.6 * slack, -0.1 * slack)
    return np.stack([shoulder, elbow, hand])
