"""What surrounds a drawn figure: the ground, things and people about, light and the camera."""

import dataclasses
import io
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFilter

Box = tuple[float, float, float, float]  # Left, top, right and bottom, in pixels.

_GRASS = (84, 98, 46)
_GROUNDS = (  # Colour and roughness: asphalt, pavement, grass, sand, floors.
    ((150, 152, 156), 5), ((172, 174, 178), 4), ((130, 132, 136), 5), ((96, 98, 102), 6),
    ((176, 172, 164), 5), (_GRASS, 13), ((120, 116, 62), 12), ((186, 166, 130), 7),
    ((204, 200, 194), 3), ((160, 140, 124), 5),
)  # fmt: skip
_WALLS = (
    _GRASS, _GRASS, _GRASS, (190, 186, 178), (150, 96, 74), (112, 116, 122), (216, 210, 196),
    (70, 74, 80), (120, 134, 96), (160, 180, 196), (196, 168, 120),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Scene:
    """A picture in the making; the ground begins at the row `horizon`."""

    draw: ImageDraw.ImageDraw
    rng: np.random.Generator
    width: int
    height: int
    horizon: float

    def on_ground(self) -> tuple[float, float]:
        """Returns a point of the ground."""
        return self.rng.uniform(0, self.width), self.rng.uniform(self.horizon, self.height)

    def color(self, low: int = 20, high: int = 235) -> tuple[int, ...]:
        """Returns a colour, mostly a dull one."""
        color, dull = self.rng.uniform(low, high, 3), self.rng.random()
        return tuple((color * (1 - dull) + color.mean() * dull).astype(int).tolist())


def background(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Draws ground, mostly with a wall or lawn behind it, and up to four things or traces."""
    horizon = height * (rng.uniform(-0.3, 0.6) if rng.random() < 0.7 else -1.0)
    # At half the size: the camera loses finer grain anyway.
    ground = Image.fromarray(_ground(rng, width // 2, height // 2, horizon / 2))
    image = ground.resize((width, height), Image.Resampling.BILINEAR)
    scene = _Scene(ImageDraw.Draw(image, "RGBA"), rng, width, height, max(0.0, horizon))
    for thing in rng.permutation(len(_THINGS))[: rng.integers(0, 5)].tolist():
        _THINGS[thing](scene)
    return image


def _ground(
    rng: np.random.Generator, width: int, height: int, horizon: float
) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """Returns two surfaces, each with its gradient and grain."""
    color, roughness = _GROUNDS[rng.integers(len(_GROUNDS))]
    tints = [
        (np.array(tint) * rng.uniform(0.75, 1.2) + rng.normal(0, 6, 3)).astype(np.float32)
        for tint in (color, _WALLS[rng.integers(len(_WALLS))])
    ]
    y, x = np.ogrid[:height, :width]
    edge = horizon + rng.uniform(-0.25, 0.25) * (x - width / 2)
    slope = (1 + rng.uniform(-0.25, 0.25) * (y / height - 0.5)).astype(np.float32)[..., None]
    pixels = np.where((y > edge)[..., None], *tints) * slope + _grain(rng, width, height, roughness)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _grain(
    rng: np.random.Generator, width: int, height: int, amount: int
) -> Float[np.ndarray, "{height} {width} 1"]:
    """Returns noise of three scales."""
    total = np.zeros((height, width, 1), np.float32)
    for cell in (24, 6, 1):
        shape = max(2, height // cell), max(2, width // cell)
        grain = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
        grain = grain.resize((width, height), Image.Resampling.BICUBIC)
        total += (np.asarray(grain, np.float32)[..., None] - 128) * (amount / 140)
    return total


# ------------------------------------------------------------------------------ things about


def _flagstones(scene: _Scene) -> None:
    """Joints, in perspective."""
    dark = (40, 40, 40, int(scene.rng.integers(40, 110)))
    y, step = scene.horizon, scene.height * 0.03
    while y < scene.height:
        scene.draw.line((0, y, scene.width, y), dark)
        y, step = y + step, step * 1.35
    far, near = scene.rng.uniform(4, 12), scene.rng.uniform(14, 40)
    for k in range(-6, 7):
        x = scene.width / 2 + far * k, scene.width / 2 + near * k
        scene.draw.line((x[0], scene.horizon, x[1], scene.height), dark)


def _marking(scene: _Scene) -> None:
    """One or two painted lines, or barrier tapes, across."""
    fill = ((240, 240, 236, 210), (226, 196, 60, 210), (220, 60, 60, 210))[scene.rng.integers(3)]
    _, y = scene.on_ground()
    fall, thick = scene.rng.uniform(-0.5, 0.5) * scene.width, int(scene.rng.integers(2, 6))
    for line in range(scene.rng.integers(1, 3)):
        start = y + 1.6 * thick * line
        scene.draw.line((0, start, scene.width, start + fall), fill, thick)


def _bricks(scene: _Scene) -> None:
    dark = (50, 40, 36, int(scene.rng.integers(40, 120)))
    tall, wide = scene.rng.uniform(5, 10), scene.rng.uniform(10, 22)
    for row, y in enumerate(np.arange(scene.horizon, 0, -tall).tolist()):
        scene.draw.line((0, y, scene.width, y), dark)
        for x in np.arange(-(row % 2) * wide / 2, scene.width, wide).tolist():
            scene.draw.line((x, y, x, y - tall), dark)


def _windows(scene: _Scene) -> None:
    glass, frame = scene.color(30, 120), scene.color(90, 240)
    wide, tall = scene.rng.uniform(16, 40), scene.rng.uniform(20, 50)
    for x in np.arange(scene.rng.uniform(-wide, 0), scene.width, 1.5 * wide).tolist():
        for y in np.arange(scene.horizon - 8 - tall, -tall, -1.4 * tall).tolist():
            scene.draw.rectangle((x, y, x + wide, y + tall), glass, frame, 2)


def _pole(scene: _Scene) -> None:
    x, y = scene.on_ground()
    scene.draw.rectangle((x, 0, x + scene.rng.uniform(2, 8), y), scene.color(30, 200))


def _cone(scene: _Scene) -> None:
    (x, y), size = scene.on_ground(), scene.rng.uniform(14, 34)
    color = ((236, 110, 30), (240, 190, 40), (220, 50, 40))[scene.rng.integers(3)]
    scene.draw.polygon([x, y - 2 * size, x - 0.6 * size, y, x + 0.6 * size, y], color)
    stripe = (x - 0.35 * size, y - size, x + 0.35 * size, y - 0.7 * size)
    scene.draw.rectangle(stripe, "white")


def _car(scene: _Scene) -> None:
    size = scene.rng.uniform(50, 120)
    x = scene.rng.uniform(-0.6 * size, scene.width)
    y = scene.horizon + scene.rng.uniform(0, 0.15) * scene.height
    cabin = np.array([(0.2, -0.3), (0.35, -0.52), (0.75, -0.52), (0.9, -0.3)])
    scene.draw.polygon((cabin * size + (x, y)).ravel().tolist(), scene.color(20, 90))
    body = (x, y - 0.32 * size, x + 1.1 * size, y)
    scene.draw.rounded_rectangle(body, 0.08 * size, scene.color())
    for wheel in (0.2, 0.85):
        left = x + (wheel - 0.1) * size
        tire = (left, y - 0.1 * size, left + 0.2 * size, y + 0.1 * size)
        scene.draw.ellipse(tire, (24, 24, 26))


def _passer_by(scene: _Scene) -> None:
    """Somebody else, at the left or right edge."""
    rng, tall = scene.rng, scene.rng.uniform(0.35, 0.9) * scene.height
    x = (rng.uniform(-0.05, 0.1) + rng.integers(2) * 0.95) * scene.width
    y = min(scene.height * 1.1, scene.horizon + tall * rng.uniform(0.7, 1.1))
    for side in (-1, 1):
        leg = (x, y - 0.5 * tall, x + side * rng.uniform(0.02, 0.1) * tall, y)
        scene.draw.line(leg, scene.color(15, 110), max(2, int(0.09 * tall)))
    trunk = (x - 0.13 * tall, y - 0.86 * tall, x + 0.13 * tall, y - 0.45 * tall)
    scene.draw.rounded_rectangle(trunk, 0.05 * tall, scene.color())
    head = (x - 0.06 * tall, y - tall, x + 0.06 * tall, y - 0.85 * tall)
    scene.draw.ellipse(head, ((60, 44, 36), (210, 170, 140))[rng.integers(2)])


def _bush(scene: _Scene) -> None:
    x, size = scene.rng.uniform(0, scene.width), scene.rng.uniform(12, 40)
    for dx, dy, shade in scene.rng.normal(0, 0.5, (14, 3)).tolist():
        left, top = x + (dx - 0.3) * size, scene.horizon + (dy - 0.3) * size
        green = tuple(max(0, int(value * (1 + 0.4 * shade))) for value in (55, 90, 40))
        scene.draw.ellipse((left, top, left + 0.6 * size, top + 0.6 * size), green)


def _box(scene: _Scene) -> None:
    (x, y), rng = scene.on_ground(), scene.rng
    wide, tall = rng.uniform(0.15, 0.6) * scene.width, rng.uniform(0.1, 0.35) * scene.height
    scene.draw.rectangle((x, y - tall, x + wide, y), scene.color(), scene.color())


def _shadow(scene: _Scene) -> None:
    """The shadow of something out of sight, or the sun between two."""
    (_, y), rng = scene.on_ground(), scene.rng
    tall, fall = rng.uniform(0.1, 0.5) * scene.height, rng.uniform(-0.4, 0.4) * scene.height
    fill = (0, 0, 20, 80) if rng.random() < 0.7 else (255, 255, 230, 60)
    right = scene.width
    scene.draw.polygon([0, y, right, y + fall, right, y + fall + tall, 0, y + tall], fill)


_THINGS: tuple[Callable[[_Scene], None], ...] = (
    _flagstones, _marking, _marking, _bricks, _windows, _pole, _cone, _car, _passer_by, _bush,
    _box, _shadow,
)  # fmt: skip


def cast_shadow(
    image: Image.Image, rng: np.random.Generator, x: float, y: float, size: float
) -> None:
    """Darkens the ground, in place, at the feet (x, y) of a figure and away from the sun."""
    draw = ImageDraw.Draw(image, "RGBA")
    dark = (0, 0, 10, int(rng.integers(40, 120)))
    draw.ellipse((x - 0.2 * size, y - 0.05 * size, x + 0.2 * size, y + 0.04 * size), dark)
    if rng.random() < 0.4:
        dx, dy, w = rng.uniform(-0.9, 0.9) * size, -rng.uniform(0.05, 0.3) * size, 0.1 * size
        draw.polygon([x - w, y, x + w, y, x + dx + 0.8 * w, y + dy, x + dx - 0.8 * w, y + dy], dark)


def occlude(image: Image.Image, rng: np.random.Generator, figure: Box) -> None:
    """Hides, in place, shins or a flank of some figures: never a whole thing that is carried."""
    left, top, right, bottom = figure
    width, height = image.size
    scene = _Scene(ImageDraw.Draw(image), rng, width, height, 0.0)
    kind, fill = rng.random(), scene.color()
    if kind < 0.12:
        start = bottom - rng.uniform(0.03, 0.16) * (bottom - top)
        end, tilt = start + rng.uniform(0.08, 0.35) * height, rng.uniform(-0.04, 0.04) * height
        scene.draw.polygon(
            [0, start - tilt, width, start + tilt, width, end + tilt, 0, end - tilt], fill
        )
    elif kind < 0.24:
        hidden = min(rng.uniform(0.02, 0.16) * (right - left), 0.1 * width)
        high = top + rng.uniform(-0.2, 0.6) * (bottom - top)
        if rng.random() < 0.5:
            scene.draw.rectangle((0, high, max(0.0, left + hidden), height), fill)
        else:
            scene.draw.rectangle((min(width, right - hidden), high, width, height), fill)


# ------------------------------------------------------------------------------ light and camera

# Motion along a row, a column and a diagonal.
_MOTIONS = ((0, 0, 0, 1, 1, 1, 0, 0, 0), (0, 1, 0, 0, 1, 0, 0, 1, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))


def photograph(
    image: Image.Image, rng: np.random.Generator, height: int, width: int
) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """Takes the picture: light, lens, sensor and compression of a surveillance camera."""
    image = image.resize((width, height), Image.Resampling.BOX)
    image = _blur(Image.fromarray(_expose(np.asarray(image, np.float32), rng)), rng)
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.UnsharpMask(1.5, int(rng.integers(40, 160)), 0))
    noise = rng.uniform(0, 7) * rng.standard_normal((height, width, 1), np.float32)
    pixels = np.clip(np.asarray(image, np.float32) + noise, 0, 255).astype(np.uint8)
    return _compress(pixels, int(rng.integers(35, 96))) if rng.random() < 0.6 else pixels


def _expose(
    pixels: Float[np.ndarray, "H W 3"], rng: np.random.Generator
) -> UInt8[np.ndarray, "H W 3"]:
    """Applies gain, a colour cast, a gradient across, contrast, haze and gamma."""
    gain = rng.uniform(0.78, 1.2) * np.exp(rng.normal(0, 0.035, 3))
    across = 1 + rng.uniform(-0.22, 0.22) * np.linspace(-1, 1, pixels.shape[1])
    contrast, haze = rng.uniform(0.8, 1.2), rng.normal(0, 0.02)
    factor = (across[:, None] * gain * contrast / 255).astype(np.float32)
    light = pixels * factor + np.float32(0.5 * (1 - contrast) + haze)
    # A table is cheaper than a power for each pixel.
    curve = 255 * np.linspace(0, 1, 256) ** rng.uniform(0.8, 1.2)
    return curve.astype(np.uint8)[(255 * np.clip(light, 0, 1)).astype(np.uint8)]


def _blur(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Loses detail: a smaller picture enlarged, a soft lens, motion, or none of them."""
    kind, size = rng.random(), image.size
    if kind < 0.3:
        smaller = [max(2, round(rng.uniform(0.38, 1.0) * size[0]))]
        smaller.append(max(2, round(smaller[0] * size[1] / size[0])))
        small = image.resize(tuple(smaller), Image.Resampling.BILINEAR)
        return small.resize(size, Image.Resampling.BICUBIC)
    if kind < 0.5:
        return image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.75) * size[0] / 64))
    if kind < 0.6:
        return image.filter(ImageFilter.Kernel((3, 3), _MOTIONS[rng.integers(len(_MOTIONS))]))
    return image


def _compress(pixels: UInt8[np.ndarray, "H W 3"], quality: int) -> UInt8[np.ndarray, "H W 3"]:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    with Image.open(file) as image:
        return np.array(image)
