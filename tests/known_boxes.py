"""Pictures whose subject's place is known: drawn scenes, and the photographs with boxes drawn by hand; for the smart crop.

Of a photograph every window of a usual shape is taken that has the whole subject in it, at either end and in the middle of
its room: the subject is then near an edge as often as not, and a square that holds it exists.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from dreambooth_ext.dataset.crop import Box, crop_box
from dreambooth_ext.playground import world

SIDE = 512  # pixels, of a photograph
KEPT_FROM = 0.95  # of the subject's box: the boxes were drawn by eye
ASPECTS = (4 / 3, 3 / 2, 16 / 9, 3 / 4, 2 / 3, 9 / 16)
# Left, top, right and bottom of the subject, in parts of the picture's side.
SUBJECTS = {
    "backpack_dog": ((0.31, 0.2, 0.77, 0.79), (0.05, 0.14, 0.61, 0.85), (0.17, 0.15, 0.8, 0.885), (0.37, 0.205, 0.8, 0.74),
                     (0.165, 0.175, 0.715, 0.8)),
    "bear_plushie": ((0.38, 0.15, 0.74, 0.57), (0.275, 0.13, 0.76, 0.795), (0.24, 0.12, 0.76, 0.79), (0.17, 0.03, 0.735, 0.905),
                     (0.18, 0.135, 0.795, 0.88)),
}


def drawn(count: int, seed: int = 0) -> Iterator[tuple[Image.Image, Box]]:
    """Wide and tall pictures with one shape anywhere."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        width, height = (256, 144) if number % 2 else (144, 256)
        scene = world.random_scene(rng, world.combinations(holdout=False))
        radius = scene.radius * 144 / world.SIDE * 0.8
        x, y = (float(rng.uniform(radius + 2, length - radius - 2)) for length in (width, height))
        mask = world.coverage(scene.shape, (x, y), radius, scene.angle, 256)[:height, :width]
        rows, columns = np.nonzero(mask > 0.5)
        box = int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1
        yield Image.fromarray(world.paint(mask, scene.colour_rgb, scene.background_rgb)), box


def photographed(folder: Path) -> Iterator[tuple[Image.Image, Box]]:
    """Windows of the photographs, as they are and mirrored by turns."""
    number = 0
    for subject, boxes in SUBJECTS.items():
        for path, box in zip(sorted((folder / subject).glob("*.jpg")), boxes, strict=True):
            with Image.open(path) as image:
                image.draft("RGB", (SIDE, SIDE))
                whole = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            for window in _windows(box):
                left, top, right, bottom = (round(edge * SIDE) for edge in window)
                part = whole.crop((left, top, right, bottom))
                inside = tuple(round(edge * SIDE) - (left, top)[axis % 2] for axis, edge in enumerate(box))
                number += 1
                if number % 2:
                    yield part, inside  # type: ignore[misc]
                else:
                    yield (part.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
                           (part.width - inside[2], inside[1], part.width - inside[0], inside[3]))


def _windows(box: tuple[float, ...]) -> Iterator[tuple[float, float, float, float]]:
    left, top, right, bottom = box
    for aspect in ASPECTS:
        for scale in (1.0, 0.8):
            width, height = (scale, scale / aspect) if aspect > 1 else (scale * aspect, scale)
            if max(right - left, bottom - top) <= min(width, height):
                for x in _starts(left, right, width):
                    yield from ((x, y, x + width, y + height) for y in _starts(top, bottom, height))


def _starts(low: float, high: float, length: float) -> list[float]:
    first, last = max(0.0, high - length), min(low, 1 - length)
    return sorted({first, (first + last) / 2, last})


def share_kept(image: Image.Image, box: Box, mode: str) -> float:
    """How much of the subject's box a square crop keeps."""
    crop = crop_box(image, 64, 64, mode)
    sides = [max(0, min(crop[axis + 2], box[axis + 2]) - max(crop[axis], box[axis])) for axis in (0, 1)]
    return sides[0] * sides[1] / ((box[2] - box[0]) * (box[3] - box[1]))


def rates(pictures: list[tuple[Image.Image, Box]]) -> dict[str, float]:
    """The share of pictures whose subject is kept, by mode."""
    return {mode: sum(share_kept(image, box, mode) >= KEPT_FROM for image, box in pictures) / len(pictures)
            for mode in ("smart", "center")}
