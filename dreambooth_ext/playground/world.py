"""The playground's world: one coloured shape on a plain background, with the caption that names it.

Small enough that a diffusion model learns it on a CPU, and exact enough that a program can say whether a picture obeys
its caption (`judge.py`). Everything is drawn from a `numpy.random.Generator`, so a seed names a picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

SIDE = 64  # pixels
SUPERSAMPLE = 4  # coverage is measured on a grid this many times finer, per axis

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (215, 30, 35),
    "orange": (250, 135, 15),
    "yellow": (245, 225, 40),
    "green": (30, 150, 50),
    "blue": (35, 70, 210),
    "purple": (115, 35, 155),
    "white": (250, 250, 250),
    "black": (15, 15, 15),
    "grey": (140, 140, 140),
    "pink": (250, 150, 180),
    "brown": (120, 70, 30),
    "sky": (145, 205, 245),
}
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
BACKGROUNDS = ("yellow", "green", "blue", "white", "grey", "pink", "brown", "sky")
RADII = {"small": (12.0, 14.0), "plain": (16.5, 19.5), "large": (22.5, 26.0)}  # pixels
SIZES = tuple(RADII)
MAX_ANGLE = 20.0  # degrees, either way
MARGIN = 3.0  # pixels of background kept between a shape and the picture's edge
COLOUR_JITTER = 5  # levels, either way, on each channel
SAID = 0.85  # chance of each part of a caption

Paint = np.ndarray | tuple[int, int, int]
Inside = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    y = y - 0.2
    return (y <= 0.55) & (np.sqrt(3) * np.abs(x) - y <= 1.1)


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    outer, inner, step = 1.05, 0.44, np.pi / 5
    angle = np.abs((np.arctan2(x, -y) + step) % (2 * step) - step)
    radius = np.hypot(x, y)
    along, across = radius * np.cos(angle), radius * np.sin(angle)
    tip = np.array([outer, 0.0])
    notch = inner * np.array([np.cos(step), np.sin(step)])
    edge = notch - tip
    return edge[0] * across - edge[1] * (along - tip[0]) <= 0 if edge[0] > 0 else (
        edge[1] * (along - tip[0]) - edge[0] * across <= 0
    )


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    u, v = x * 1.18, -y * 1.18 + 0.1
    return (u * u + v * v - 1) ** 3 - u * u * v**3 <= 0


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = np.abs(x), np.abs(y)
    return (np.minimum(x, y) <= 0.3) & (np.maximum(x, y) <= 0.97)


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    radius = np.hypot(x, y)
    return (radius >= 0.52) & (radius <= 0.97)


def _moon(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (np.hypot(x, y) <= 0.98) & (np.hypot(x - 0.5, y) >= 0.78)


# Each takes coordinates in units of the shape's radius, x to the right and y down, and says which points are inside.
SHAPES: dict[str, Inside] = {
    "circle": lambda x, y: np.hypot(x, y) <= 0.95,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) <= 0.8,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "cross": _cross,
    "ring": _ring,
    "moon": _moon,
}
SHAPE_NAMES = tuple(SHAPES)


@dataclass(frozen=True)
class Scene:
    """One picture's content. Lengths in pixels, the angle in degrees."""

    shape: str
    colour: str
    background: str
    size: str
    centre: tuple[float, float]
    radius: float
    angle: float
    colour_rgb: tuple[int, int, int]
    background_rgb: tuple[int, int, int]

    @property
    def words(self) -> tuple[str, str, str, str]:
        """What `caption_of` takes."""
        return self.shape, self.colour, self.background, self.size


def held_out(shape: str, colour: str, background: str) -> bool:
    """True for the one seventh of all combinations that training never draws and evaluation asks for."""
    s, c, b = SHAPE_NAMES.index(shape), COLOURS.index(colour), BACKGROUNDS.index(background)
    return (s + 2 * c + 3 * b) % 7 == 0


def combinations(*, holdout: bool) -> list[tuple[str, str, str]]:
    """All (shape, colour, background) that are held out, or all that are not; shape and ground differ in colour."""
    triples = [(s, c, b) for s in SHAPE_NAMES for c in COLOURS for b in BACKGROUNDS if c != b]
    return [triple for triple in triples if held_out(*triple) is holdout]


def local_grid(
    centre: tuple[float, float], radius: float, angle: float, side: int = SIDE
) -> tuple[np.ndarray, np.ndarray]:
    """The supersampled pixel grid in a shape's own coordinates: two float32 arrays of (side * SUPERSAMPLE,) * 2."""
    ticks = (np.arange(side * SUPERSAMPLE, dtype=np.float32) + 0.5) / SUPERSAMPLE
    x, y = (ticks[None, :] - centre[0]) / radius, (ticks[:, None] - centre[1]) / radius
    cos, sin = np.float32(np.cos(np.radians(angle))), np.float32(np.sin(np.radians(angle)))
    return x * cos + y * sin, y * cos - x * sin


def downsample(inside: np.ndarray) -> np.ndarray:
    """Boolean supersampled mask to coverage in 0..1, float32 (side, side)."""
    side = inside.shape[0] // SUPERSAMPLE
    return inside.reshape(side, SUPERSAMPLE, side, SUPERSAMPLE).mean(axis=(1, 3), dtype=np.float32)


def coverage(shape: str, centre: tuple[float, float], radius: float, angle: float, side: int = SIDE) -> np.ndarray:
    """How much of each pixel the shape covers, 0..1, float32 (side, side)."""
    return downsample(SHAPES[shape](*local_grid(centre, radius, angle, side)))


def paint(mask: np.ndarray, colour: Paint, background: Paint) -> np.ndarray:
    """Blend two colours (RGB, or RGB pictures) by coverage; uint8 (side, side, 3)."""
    alpha = mask[:, :, None]
    mixed = alpha * np.asarray(colour, np.float32) + (1 - alpha) * np.asarray(background, np.float32)
    return np.rint(mixed).clip(0, 255).astype(np.uint8)


def jittered(rng: np.random.Generator, name: str) -> tuple[int, int, int]:
    """The named colour, each channel moved by up to COLOUR_JITTER levels."""
    rgb = np.array(PALETTE[name]) + rng.integers(-COLOUR_JITTER, COLOUR_JITTER + 1, 3)
    red, green, blue = (int(v) for v in rgb.clip(0, 255))
    return red, green, blue


def place(rng: np.random.Generator, size: str) -> tuple[tuple[float, float], float, float]:
    """A centre, a radius and an angle for a shape of this size, wholly inside the picture."""
    radius = float(rng.uniform(*RADII[size]))
    room = max(SIDE / 2 - radius - MARGIN, 0.0)
    centre = (float(SIDE / 2 + rng.uniform(-room, room)), float(SIDE / 2 + rng.uniform(-room, room)))
    return centre, radius, float(rng.uniform(-MAX_ANGLE, MAX_ANGLE))


def scene_of(rng: np.random.Generator, shape: str, colour: str, background: str, size: str) -> Scene:
    """This content at a random place, with the random shades of its two colours."""
    centre, radius, angle = place(rng, size)
    shades = jittered(rng, colour), jittered(rng, background)
    return Scene(shape, colour, background, size, centre, radius, angle, *shades)


def random_scene(rng: np.random.Generator, triples: list[tuple[str, str, str]]) -> Scene:
    """A scene with one of the given combinations, all sizes equally often."""
    return scene_of(rng, *triples[rng.integers(len(triples))], SIZES[rng.integers(len(SIZES))])


def draw(scene: Scene) -> np.ndarray:
    """The scene as a uint8 picture (SIDE, SIDE, 3)."""
    mask = coverage(scene.shape, scene.centre, scene.radius, scene.angle)
    return paint(mask, scene.colour_rgb, scene.background_rgb)


def caption_of(shape: str, colour: str | None = None, background: str | None = None, size: str | None = None) -> str:
    """"a small red star on a blue background"; whatever is None (or the size "plain") is not said."""
    words = [word for word in (size if size != "plain" else None, colour, shape) if word]
    article = "an" if words[0][0] in "aeiou" else "a"
    place_words = f" on a {background} background" if background else ""
    return f"{article} {' '.join(words)}{place_words}"


def random_caption(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    """The caption of a scene's `words`, each part but the shape said with probability SAID."""
    shape, *parts = words
    return caption_of(shape, *(part if rng.random() < SAID else None for part in parts))
