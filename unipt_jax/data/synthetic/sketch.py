"""Solids in body units, turned to the camera and painted from back to front.

A body is one unit tall and stands on the origin: x to the person's left, y up, z forward. Angles
on a solid (`phi`, radians) run from its front (0) to the person's left (pi / 2).
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from unipt_jax.data.synthetic.looks import Cloth, Color, texture, tone
from unipt_jax.data.synthetic.people import PURE, View

Fill = tuple[int, ...] | Cloth
Points = np.ndarray | Sequence[Any]  # Numbers, or points of numbers, as NumPy takes them.
_Paint = float | str | tuple[int, ...]
_Place = tuple[float | int, float | int]
_NO_PALETTE: Mapping[str, Fill] = {}

_TURN = np.linspace(0, 2 * np.pi, 12, endpoint=False)
_CIRCLE = np.stack([np.cos(_TURN), np.sin(_TURN)], axis=-1)
_FRONT = np.linspace(-np.pi / 2, np.pi / 2, 9)
_BACK = np.linspace(np.pi / 2, 3 * np.pi / 2, 7)


@functools.cache
def _subdivision(corners: int) -> np.ndarray:
    """Returns the weights `[4 N, N]` of corners in points along the edges of a polygon."""
    share = np.tile(np.linspace(0, 1, 4, endpoint=False), corners)[:, None]
    start = np.repeat(np.eye(corners), 4, axis=0)
    return (1 - share) * start + share * np.roll(start, 1, axis=1)


@dataclasses.dataclass(frozen=True)
class Shape:
    """Outlines `[N, 2]` (y up) of one fill; `width` > 0 strokes them instead of filling them."""

    outlines: list[np.ndarray]
    fill: Fill
    width: float = 0.0


@dataclasses.dataclass(frozen=True)
class Solid:
    """A stack of elliptic sections; `t` in [0, 1] runs from its first section to its last."""

    first: int  # Of all sections of the sketch.
    count: int
    depth: float
    front: float  # By how much the middle section's front is turned from the camera.


@dataclasses.dataclass(frozen=True)
class Mark:
    """A polygon of (`t`, `phi`) on a solid, spanning less than half of it.

    A fill by number is the solid's base colour, so much darker (see `tone`); one by name is from a
    palette. A mirrored mark is there on both sides; a ring's angles are seen from the camera.
    """

    fill: _Paint
    corners: tuple[_Place, ...]
    mirrored: bool = False
    is_ring: bool = False


def patch(fill: _Paint, *corners: _Place, mirrored: bool = False) -> Mark:
    """Returns a polygon."""
    return Mark(fill, corners, mirrored)


def strip(
    fill: _Paint, start: _Place, end: _Place, width: float, *, mirrored: bool = False
) -> Mark:
    """Returns a strip between two places, `width` radians wide."""
    (t0, phi0), (t1, phi1), half = start, end, width / 2
    corners = (t0, phi0 - half), (t0, phi0 + half), (t1, phi1 + half), (t1, phi1 - half)
    return Mark(fill, corners, mirrored)


def ring(fill: _Paint, start: float | int, end: float | int, half: float = np.pi / 2) -> Mark:
    """Returns a band between two `t`, as far around as `half` to either side."""
    return Mark(
        fill,
        ((start, -half), (start, 0), (start, half), (end, half), (end, 0), (end, -half)),
        is_ring=True,
    )


@dataclasses.dataclass(frozen=True)
class _Item:
    """A shape whose points are yet to be projected."""

    depth: float
    fill: Fill
    kind: str
    start: int
    stop: int
    width: float = 0.0


class Sketch:
    """Collects shapes. What has the larger depth lies in front; `layer` is added to it.

    Points are collected first and projected together: NumPy's cost is by the call.
    """

    def __init__(self, view: View):
        self._view = view
        yaw = np.radians(view.yaw)
        self._sin, self._cos = float(np.sin(yaw)), float(np.cos(yaw))
        self._shaded_side = 1 if view.light > 0 else -1
        self._shadow = (0, 0, 20, round(30 + 60 * abs(view.light)))
        self._items: list[_Item] = []
        self._joints: list[np.ndarray] = []
        self._radii: list[float] = []
        self._sections: list[np.ndarray] = []
        self._rows = 0
        self._places: list[np.ndarray] = []  # Of surface points among all sections.
        self._angles: list[np.ndarray] = []
        self._is_turned: list[bool] = []  # Whether a polygon's angles turn with the body.

    # -------------------------------------------------------------------- lines and limbs

    def limb(
        self, joints: Points, radii: Points, fill: Fill, layer: float,
        anchor: np.ndarray | None = None, is_open: bool = False,
    ) -> None:  # fmt: skip
        """Adds a tapering tube with round joints, darker on the side away from the light.

        It is as deep as its joints `[N, 3]`, or as `anchor` where parts must keep together. An
        open one, such as a sleeve, ends flat.
        """
        self._add_joints("open limb" if is_open else "limb", joints, radii, fill, layer, anchor)

    def stroke(
        self, points: Points, width: float, fill: Fill, layer: float,
        anchor: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        """Adds a line through points `[N, 3]`."""
        self._add_joints("stroke", points, [0.0] * len(points), fill, layer, anchor, width)

    def sheet(self, points: Points, fill: Fill, layer: float) -> None:
        """Adds a polygon of points `[N, 3]`."""
        self._add_joints("stroke", points, [0.0] * len(points), fill, layer)

    def ball(self, center: Points, radius: float, fill: Fill, layer: float) -> None:
        """Adds a disc that faces the camera."""
        self._add_joints("ball", [center], [radius], fill, layer)

    def _add_joints(self, kind, joints, radii, fill, layer, anchor=None, width=0.0) -> None:
        joints = np.asarray(joints, float)
        start = len(self._radii)
        self._joints.append(joints)
        self._radii.extend(radii)
        depth = layer + self._depth(joints if anchor is None else anchor)
        self._items.append(_Item(depth, fill, kind, start, len(self._radii), width))

    def _depth(self, points: np.ndarray) -> float:
        x, _, z = (points.sum(axis=0) / len(points)).tolist()
        return z * self._cos - x * self._sin

    # -------------------------------------------------------------------- solids

    def form(self, centers: np.ndarray, widths: Points, depths: Points, layer: float) -> Solid:
        """Returns a solid through sections at `centers` `[S, 3]` with half extents `[S]`."""
        x, y, z = centers.T
        w, d = np.asarray(widths, float), np.asarray(depths, float)
        cos, sin = self._cos, self._sin
        front = np.arctan2(d * sin, w * cos)
        across, towards = np.hypot(w * cos, d * sin), np.hypot(w * sin, d * cos)
        sections = np.stack([x * cos + z * sin, y, z * cos - x * sin, across, towards, front])
        solid = Solid(self._rows, len(w), layer + self._depth(centers), float(front[len(w) // 2]))
        self._sections.append(sections)
        self._rows += len(w)
        return solid

    def solid(
        self, centers: np.ndarray, widths: Points, depths: Points, fill: Fill, layer: float
    ) -> Solid:
        """Adds such a solid, see `cover`."""
        solid = self.form(centers, widths, depths, layer)
        self.cover(solid, fill)
        return solid

    def cover(self, solid: Solid, fill: Fill) -> None:
        """Adds the whole of a solid, darker on the side away from the light."""
        down = np.linspace(0, 1, solid.count)
        t = np.concatenate([down, np.ones(9), down[::-1], np.zeros(7)])
        edge = np.full(solid.count, np.pi / 2)
        self._add_surface(solid, t, np.concatenate([-edge, _FRONT, edge, _BACK]), fill)
        near, far = 0.35 * self._shaded_side, np.pi / 2 * self._shaded_side
        self._add_surface(
            solid, np.concatenate([down, down[::-1]]), np.repeat([near, far], solid.count),
            self._shadow,
        )  # fmt: skip

    def mark(
        self, solid: Solid, marks: Iterable[Mark], base: Color = (0, 0, 0),
        palette: Mapping[str, Fill] = _NO_PALETTE,
    ) -> None:  # fmt: skip
        """Adds marks, as far as they face the camera; see `Mark` for `base` and `palette`."""
        for mark in marks:
            fill: Fill = mark.fill
            if isinstance(fill, str):
                fill = palette[fill]
            elif isinstance(fill, float):
                fill = tone(base, fill)
            weights = _subdivision(len(mark.corners))
            t, angles = (weights @ mark.corners).T
            self._add_surface(solid, t, angles, fill, is_turned=not mark.is_ring)
            if mark.mirrored:
                self._add_surface(solid, t, -angles, fill, is_turned=True)

    def cap(self, solid: Solid, phi: Points, edge: Sequence[float], fill: Fill) -> None:
        """Adds what lies above `t = edge` at `|phi|`, linear in between."""
        around = np.abs((_FRONT - solid.front + np.pi) % (2 * np.pi) - np.pi)
        t = np.interp(around, phi, edge)
        t = np.concatenate([t, np.linspace(t[-1], 0, 5), np.linspace(0, t[0], 5)])
        side = np.full(5, np.pi / 2)
        self._add_surface(solid, t, np.concatenate([_FRONT, side, -side]), fill)

    def _add_surface(self, solid, t, angles, fill, is_turned=False) -> None:
        number = len(self._places)
        self._places.append(solid.first + t * (solid.count - 1.000001))
        self._angles.append(angles)
        self._is_turned.append(is_turned)
        self._items.append(_Item(solid.depth, fill, "surface", number, number + 1))

    # -------------------------------------------------------------------- projection

    def shapes(self) -> list[Shape]:
        """Returns what was added as seen in the picture, from back to front."""
        flat, discs, tubes, shades = self._project_joints()
        surfaces = self._project_surfaces()
        shapes = []
        for item in sorted(self._items, key=lambda item: item.depth):
            span = slice(item.start, item.stop)
            if item.kind == "surface":
                outline = surfaces[item.start]
                shapes += [] if outline is None else [Shape([outline], item.fill)]
            elif item.kind in ("limb", "open limb"):
                between = slice(item.start, item.stop - 1)
                round_ones = discs[between if item.kind == "open limb" else span]
                shapes.append(Shape([*round_ones, *tubes[between]], item.fill))
                shapes.append(Shape([*shades[between]], self._shadow))
            else:
                outline = discs[item.start] if item.kind == "ball" else flat[span]
                shapes.append(Shape([outline], item.fill, item.width))
        return shapes

    def _project(self, across: np.ndarray, up: np.ndarray, towards: np.ndarray) -> np.ndarray:
        pitch, roll = np.radians(self._view.pitch), np.radians(self._view.roll)
        up = up * np.cos(pitch) - towards * np.sin(pitch)
        nearer = 1 + self._view.perspective * (up - 0.5)
        x, y = across * nearer, up * nearer
        return np.stack(
            [x * np.cos(roll) + y * np.sin(roll), y * np.cos(roll) - x * np.sin(roll)], axis=-1
        )

    def _project_joints(self) -> tuple[np.ndarray, ...]:
        """Returns joints `[J, 2]`, discs `[J, 12, 2]`, and tubes and shades `[J - 1, 4, 2]`."""
        x, y, z = np.concatenate(self._joints).T
        flat = self._project(x * self._cos + z * self._sin, y, z * self._cos - x * self._sin)
        radii = np.array(self._radii)[:, None]
        along = flat[1:] - flat[:-1]
        aside = np.stack([along[:, 1], -along[:, 0]], axis=-1)
        sign = np.where(aside[:, :1] * self._shaded_side > 0, 1, -1)
        aside *= sign / (np.hypot(*along.T)[:, None] + 1e-9)
        a, b, start, end = aside * radii[:-1], aside * radii[1:], flat[:-1], flat[1:]
        tubes = np.stack([start + a, start - a, end - b, end + b], axis=1)
        shades = np.stack([start + a, start + 0.2 * a, end + 0.2 * b, end + b], axis=1)
        return flat, flat[:, None] + radii[:, None] * _CIRCLE, tubes, shades

    def _project_surfaces(self) -> list[np.ndarray | None]:
        """Returns each polygon `[N, 2]`, clipped to the side of the camera, or None: hidden."""
        counts = np.array([len(angles) for angles in self._angles])
        starts = np.cumsum(counts) - counts
        places, angles = np.concatenate(self._places), np.concatenate(self._angles)
        below = places.astype(int)
        share = places - below
        sections = np.concatenate(self._sections, axis=1)
        rows = sections[:, below] * (1 - share) + sections[:, below + 1] * share
        is_turned = np.repeat(self._is_turned, counts)
        angles = angles + is_turned * rows[5]
        # Every polygon near its middle, so that none is torn apart behind the solid.
        middles = np.add.reduceat(angles, starts) / counts
        angles -= np.repeat(2 * np.pi * np.rint(middles / (2 * np.pi)), counts)
        hidden = np.minimum.reduceat(angles, starts) >= np.pi / 2
        hidden |= np.maximum.reduceat(angles, starts) <= -np.pi / 2
        angles = np.where(is_turned, np.clip(angles, -np.pi / 2, np.pi / 2), angles)
        flat = self._project(
            rows[0] + rows[3] * np.sin(angles), rows[1], rows[2] + rows[4] * np.cos(angles)
        )
        outlines = np.split(flat, starts[1:])
        return [None if h else o for h, o in zip(hidden.tolist(), outlines, strict=True)]


def bounds(shapes: Sequence[Shape]) -> np.ndarray:
    """Returns left, bottom, right and top of all opaque outlines, in body units."""
    points = np.concatenate([o for s in shapes if _is_opaque(s.fill) for o in s.outlines])
    return np.concatenate([points.min(0), points.max(0)])


def paint(
    image: Image.Image, shapes: Sequence[Shape], scale: np.ndarray, origin: np.ndarray
) -> None:
    """Paints onto an RGB image, in place: pixel = origin + scale * point (`scale[1]` < 0)."""
    draw = ImageDraw.Draw(image, "RGBA")
    for shape in shapes:
        outlines = [(origin + scale * outline).ravel().tolist() for outline in shape.outlines]
        fill = shape.fill
        if isinstance(fill, Cloth) and fill.pattern != PURE:
            _paint_cloth(image, outlines, fill, -scale[1])
            continue
        fill = fill.color if isinstance(fill, Cloth) else fill
        if shape.width:
            width = max(1, round(shape.width * -scale[1]))
            for outline in outlines:
                draw.line(outline, fill, width, joint="curve")
        else:
            for outline in outlines:
                draw.polygon(outline, fill)


def _is_opaque(fill: Fill) -> bool:
    return isinstance(fill, Cloth) or len(fill) == 3


def _paint_cloth(
    image: Image.Image, outlines: Sequence[list[float]], cloth: Cloth, unit: float
) -> None:
    points = [value for outline in outlines for value in outline]
    left, top = max(0, int(min(points[::2]))), max(0, int(min(points[1::2])))
    right = min(image.width, int(max(points[::2])) + 2)
    bottom = min(image.height, int(max(points[1::2])) + 2)
    if right <= left or bottom <= top:
        return
    mask = Image.new("L", (right - left, bottom - top))
    draw = ImageDraw.Draw(mask)
    for outline in outlines:
        draw.polygon([v - (left, top)[k % 2] for k, v in enumerate(outline)], 255)
    image.paste(texture(cloth, right - left, bottom - top, unit), (left, top), mask)
