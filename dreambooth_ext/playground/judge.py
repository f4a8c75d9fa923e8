"""Says what a picture of the playground's world shows, from its pixels and from how the world is drawn; no network.

The judge is strict: what it cannot read clearly (blurred, noisy, empty, several colours) it does not name.
Scores are plain measures of the picture:
`flatness` share of border pixels close to the border's median, 0..1; `contrast` RGB distance of the shape from the
background, levels; `purity` share of pixels that are a mix of just those two colours, 0..1; `sharpness` steepest change
of coverage, per pixel; `overlap` IoU with the best shape's template, 0..1; `lead` how far ahead of the second best.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import numpy as np
from PIL import Image

from . import world

NEAR_LEVELS = 55.0  # a colour counts as the palette's if it is no farther than this, in RGB distance
LEAST_FLATNESS = 0.85
LEAST_CONTRAST = 55.0
LEAST_PURITY = 0.93
LEAST_SHARPNESS = 0.22
LEAST_OVERLAP = 0.78
LEAST_LEAD = 0.02
AREA_PIXELS = (60, 2600)  # coverage outside this range is no shape of ours
BORDER = 2  # pixels
GRID = 40  # points across the canonical frame
REACH = 1.25  # the frame's half width, in units of the square root of the shape's area
ANGLES = range(-28, 29, 4)  # degrees


@dataclass(frozen=True)
class Verdict:
    """What a picture shows; None where it cannot be told."""

    background: str | None = None
    colour: str | None = None
    shape: str | None = None
    scores: dict[str, float] = field(default_factory=dict)


def as_levels(image: Image.Image | np.ndarray) -> np.ndarray:
    """Any RGB picture as float32 (64, 64, 3) in 0..255; larger ones are averaged down."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(np.ascontiguousarray(image).astype(np.uint8))
    image = image.convert("RGB")
    if image.size != (world.SIDE, world.SIDE):
        image = image.resize((world.SIDE, world.SIDE), Image.Resampling.BOX)
    return np.asarray(image, np.float32)


def nearest(rgb: np.ndarray, names: tuple[str, ...]) -> str | None:
    """The palette's name for a colour, if it is near and among `names`."""
    distances = {name: float(np.linalg.norm(rgb - np.array(value))) for name, value in world.PALETTE.items()}
    best = min(distances, key=distances.__getitem__)
    return best if distances[best] <= NEAR_LEVELS and best in names else None


def border_colour(levels: np.ndarray) -> tuple[np.ndarray, float]:
    """(median RGB of the border, share of the border near it)."""
    inner = np.zeros(levels.shape[:2], bool)
    inner[BORDER:-BORDER, BORDER:-BORDER] = True
    border = levels[~inner]
    median = np.median(border, axis=0)
    return median, float((np.linalg.norm(border - median, axis=1) <= 40).mean())


def shape_coverage(levels: np.ndarray, background: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, float]:
    """(coverage 0..1 of each pixel, the shape's RGB, contrast, purity), for a picture of two colours."""
    distance = np.linalg.norm(levels - background, axis=2)
    # The far plateau, not the farthest pixel: diffusion leaves a few stray ones.
    top = float(np.sort(distance, axis=None)[-25:].mean())
    rgb = np.median(levels[distance >= 0.75 * top], axis=0)
    direction = rgb - background
    contrast = float(np.linalg.norm(direction))
    if contrast < 1:
        return np.zeros(distance.shape, np.float32), rgb, 0.0, 0.0
    alpha = ((levels - background) @ direction / contrast**2).clip(0, 1)
    residual = np.linalg.norm(levels - background - alpha[:, :, None] * direction, axis=2)
    return alpha.astype(np.float32), rgb, contrast, float((residual <= 45).mean())


def sharpness_of(alpha: np.ndarray) -> float:
    """The mean of the 60 steepest changes of coverage between pixels two apart, per pixel."""
    along = np.abs(alpha[:, 2:] - alpha[:, :-2])[1:-1]
    down = np.abs(alpha[2:] - alpha[:-2])[:, 1:-1]
    return float(np.sort(np.maximum(along, down), axis=None)[-60:].mean()) / 2


def canonical(mask: np.ndarray, centre: tuple[float, float], unit: float) -> np.ndarray:
    """Resample a mask (side, side) around `centre` in steps of REACH * unit, bilinearly: float32 (GRID, GRID)."""
    steps = ((np.arange(GRID) + 0.5) / GRID * 2 - 1) * REACH * unit
    padded = np.pad(mask, 1)
    top = padded.shape[0] - 1.001
    x = (centre[0] + steps + 0.5).clip(0, top)
    y = (centre[1] + steps + 0.5).clip(0, top)
    left, upper = x.astype(int), y.astype(int)
    fx, fy = (x - left)[None, :], (y - upper)[:, None]
    rows = padded[upper] * (1 - fy) + padded[upper + 1] * fy
    return (rows[:, left] * (1 - fx) + rows[:, left + 1] * fx).astype(np.float32)


def frame_of(mask: np.ndarray) -> tuple[tuple[float, float], float]:
    """(centroid x, y in pixels; square root of the area in pixels)."""
    ticks = np.arange(mask.shape[0]) + 0.5
    area = float(mask.sum())
    return (float((mask.sum(axis=0) * ticks).sum() / area), float((mask.sum(axis=1) * ticks).sum() / area)), area**0.5


@cache
def templates() -> tuple[tuple[str, ...], np.ndarray]:
    """(names, masks (n, GRID * GRID)): every shape at every angle, in the canonical frame."""
    names, masks = [], []
    for shape in world.SHAPE_NAMES:
        for angle in ANGLES if shape not in ("circle", "ring") else (0,):
            mask = world.coverage(shape, (world.SIDE / 2, world.SIDE / 2), 22.0, float(angle))
            names.append(shape)
            masks.append(canonical(mask, *frame_of(mask)).ravel())
    return tuple(names), np.stack(masks)


def overlaps(mask: np.ndarray) -> dict[str, float]:
    """The best IoU of a mask with each shape, over angle; place and size come from centroid and area."""
    names, masks = templates()
    seen = canonical(mask, *frame_of(mask)).ravel()[None]
    iou = np.minimum(masks, seen).sum(axis=1) / np.maximum(masks, seen).sum(axis=1)
    best = dict.fromkeys(world.SHAPE_NAMES, 0.0)
    for name, value in zip(names, iou, strict=True):
        best[name] = max(best[name], float(value))
    return best


def judge(image: Image.Image | np.ndarray) -> Verdict:
    """Name the background, the shape's colour and the shape, each only if it can be read clearly."""
    levels = as_levels(image)
    ground, flatness = border_colour(levels)
    scores = {"flatness": flatness}
    if flatness < LEAST_FLATNESS:
        return Verdict(scores=scores)
    background = nearest(ground, world.BACKGROUNDS)
    alpha, rgb, scores["contrast"], scores["purity"] = shape_coverage(levels, ground)
    if scores["contrast"] < LEAST_CONTRAST or scores["purity"] < LEAST_PURITY:
        return Verdict(background, scores=scores)
    # Coverage a little steeper than seen: the softness of a decoder is judged by `sharpness`, not by the overlap.
    mask = ((alpha - 0.5) * 2 + 0.5).clip(0, 1)
    scores["sharpness"] = sharpness_of(alpha)
    if scores["sharpness"] < LEAST_SHARPNESS or not AREA_PIXELS[0] <= mask.sum() <= AREA_PIXELS[1]:
        return Verdict(background, scores=scores)
    ranked = sorted(overlaps(mask).items(), key=lambda item: -item[1])
    scores["overlap"], scores["lead"] = ranked[0][1], ranked[0][1] - ranked[1][1]
    clear = scores["overlap"] >= LEAST_OVERLAP and scores["lead"] >= LEAST_LEAD
    return Verdict(background, nearest(rgb, world.COLOURS), ranked[0][0] if clear else None, scores)
