"""The demo's new subject, which the base has never seen and has no word for: a square, half violet and half orange.

No shape of the world has two colours, and violet is in no caption. Its judge reads it from the pixels.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from . import judge, world

CLASS_NOUN = "square"
VIOLET = (150, 20, 220)  # the left half
ORANGE = world.PALETTE["orange"]  # the right half
NEAR_LEVELS = 130.0  # RGB distance within which a pixel may count as the subject's colour, if the background is farther
LEAST_SHARPNESS = 0.14  # per pixel; a blur of 3 pixels is below it
LEAST_SHARE = 0.012  # of the picture, for each of the two colours
LEAST_SCORE = 0.6  # mean IoU of the two colours' fields with the drawn subject's
LEAST_EACH = 0.45  # IoU that either colour must reach by itself


def instance_prompt(token: str) -> str:
    return f"a {token} {CLASS_NOUN}"


def class_prompt() -> str:
    return f"a {CLASS_NOUN}"


def unseen_prompts(token: str, count: int = 40) -> list[tuple[str, str]]:
    """(prompt, background it names), none an instance prompt: all backgrounds equally often."""
    chosen = [world.BACKGROUNDS[index % len(world.BACKGROUNDS)] for index in range(count)]
    return [(f"a {token} {CLASS_NOUN} on a {background} background", background) for background in chosen]


def fields(centre: tuple[float, float], radius: float, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Coverage of the violet and of the orange half, 0..1, float32 (64, 64) each. Pixels and degrees."""
    x, y = world.local_grid(centre, radius, angle)
    square, left = world.SHAPES["square"](x, y), x < 0
    return world.downsample(square & left), world.downsample(square & ~left)


def draw(centre: tuple[float, float], radius: float, angle: float, background: tuple[int, int, int]) -> np.ndarray:
    """The subject on a plain background, uint8 (64, 64, 3)."""
    violet, orange = fields(centre, radius, angle)
    parts = ((violet, VIOLET), (orange, ORANGE), (1 - violet - orange, background))
    mixed = sum(mask[:, :, None] * np.array(rgb, np.float32) for mask, rgb in parts)
    return np.rint(mixed).clip(0, 255).astype(np.uint8)


def random_picture(rng: np.random.Generator, background: str) -> np.ndarray:
    """The subject, large, at a random place on the named background."""
    centre, radius, angle = world.place(rng, "large")
    return draw(centre, radius, angle, world.jittered(rng, background))


def draw_pictures(folder: Path, count: int = 5, seed: int = 7, side: int = world.SIDE) -> list[Path]:
    """Write `count` pictures of the subject, each on another background, as PNG files of side x side pixels."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(world.BACKGROUNDS))
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in range(count):
        picture = Image.fromarray(random_picture(rng, world.BACKGROUNDS[order[index % len(order)]]))
        path = folder / f"subject_{index + 1:02d}.png"
        picture.resize((side, side), Image.Resampling.NEAREST).save(path)
        paths.append(path)
    return paths


@cache
def _templates() -> tuple[np.ndarray, np.ndarray]:
    """(violet, orange) fields at every angle in the judge's canonical frame: (n, GRID * GRID) each."""
    middle = (world.SIDE / 2, world.SIDE / 2)
    pairs = []
    for angle in judge.ANGLES:
        violet, orange = fields(middle, 22.0, float(angle))
        frame = judge.frame_of(violet + orange)
        pairs.append([judge.canonical(mask, *frame).ravel() for mask in (violet, orange)])
    stacked = np.array(pairs)
    return stacked[:, 0], stacked[:, 1]


def score(image: Image.Image | np.ndarray) -> float:
    """How well the picture shows the subject, 0..1: the two colours' mean IoU at the best angle; 0 if one lacks."""
    levels = judge.as_levels(image)
    ground, _ = judge.border_colour(levels)
    distance = np.stack([np.linalg.norm(levels - np.array(rgb), axis=2) for rgb in (ground, VIOLET, ORANGE)])
    closest, near = distance.argmin(axis=0), distance.min(axis=0) <= NEAR_LEVELS
    seen = [(near & (closest == number)).astype(np.float32) for number in (1, 2)]
    if min(mask.mean() for mask in seen) < LEAST_SHARE:
        return 0.0
    away = np.linalg.norm(levels - ground, axis=2)
    if judge.sharpness_of((away / np.sort(away, axis=None)[-200:].mean()).clip(0, 1)) < LEAST_SHARPNESS:
        return 0.0
    frame = judge.frame_of(seen[0] + seen[1])
    each = []
    for mask, drawn in zip(seen, _templates(), strict=True):
        found = judge.canonical(mask, *frame).ravel()[None]
        each.append(np.minimum(drawn, found).sum(axis=1) / np.maximum(drawn, found).sum(axis=1))
    best = int(np.argmax(each[0] + each[1]))
    if min(each[0][best], each[1][best]) < LEAST_EACH:
        return 0.0
    return float((each[0][best] + each[1][best]) / 2)


def recognises(image: Image.Image | np.ndarray) -> bool:
    """True if both colours are there in the subject's arrangement."""
    return score(image) >= LEAST_SCORE
