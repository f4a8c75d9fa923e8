"""Numbers that say how good a picture is to learn from. All take float32 luma (H, W) in 0..255."""

from __future__ import annotations

import numpy as np
from PIL import Image

# Set on one half of the labelled pictures of tests/labelled.py, and judged on the other by tests/dataset/test_audit.py.
BLUR_AT_MOST = 0.385
NOISE_AT_MOST = 5.6
BLOCKINESS_AT_MOST = 1.13
_REACH = 4  # pixels to either side that the further blur takes in
_NOISE_BLOCK = 16


def luma(image: Image.Image, shorter_side: int) -> np.ndarray:
    """Luma of an RGB picture as training will see it: its shorter side reduced to `shorter_side` px, never enlarged."""
    scale = shorter_side / min(image.size)
    if scale < 1:
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
    return np.asarray(image.convert("L"), np.float32)


def blur(values: np.ndarray) -> float:
    """0 sharp to 1 blurred: how little of the differences a further blur takes away (Crete et al. 2007).

    Along rows, columns and both diagonals: a moved camera leaves one direction sharp, so the largest number counts.
    """
    if min(values.shape) < 4 * _REACH:
        return 0.0
    return max(_blur_along(values, *step) for step in ((0, 1), (1, 0), (1, 1), (-1, 1)))


def _blur_along(values: np.ndarray, down: int, right: int) -> float:
    values = values[::-1] if down < 0 else values
    down = abs(down)

    def moved(plane: np.ndarray, by: int, inner: int) -> np.ndarray:
        """`plane` moved by `by` steps, without an edge of `inner` steps on both ends."""
        (height, width), (y, x) = plane.shape, (inner * down, inner * right)
        return plane[y + by * down : height - y + by * down, x + by * right : width - x + by * right]

    blurred = np.sum([moved(values, by, _REACH) for by in range(-_REACH, _REACH + 1)], axis=0) / (2 * _REACH + 1)
    inner = moved(values, 0, _REACH)
    height, width = inner.shape[0] - down, inner.shape[1] - right
    before, after = (np.abs(plane[down:, right:] - plane[:height, :width]) for plane in (inner, blurred))
    total = float(before.sum())
    # A picture of one value is not blurred: there is nothing in it to be sharp.
    return 1.0 - float(np.maximum(0, before - after).sum()) / total if total > 0 else 0.0


def noise(values: np.ndarray) -> float:
    """Standard deviation of the noise, in levels (Immerkaer 1996), in the flattest tenth of the picture's blocks.

    Grain is everywhere, texture is not; blocks of pure black or white, which show none, are left out.
    """
    size = _NOISE_BLOCK
    if min(values.shape) < 2 * size:
        return 0.0
    rows = values[:-2] - 2 * values[1:-1] + values[2:]
    masked = np.abs(rows[:, :-2] - 2 * rows[:, 1:-1] + rows[:, 2:])
    height, width = (length // size * size for length in masked.shape)

    def blocks(plane: np.ndarray) -> np.ndarray:
        return plane[:height, :width].reshape(height // size, size, width // size, size).mean(axis=(1, 3))

    level = blocks(values[1:-1, 1:-1])
    shown = np.sort(blocks(masked)[(level > 12) & (level < 243)])
    if len(shown) < 8:
        return 0.0
    return float(shown[: max(4, len(shown) // 10)].mean()) * float(np.sqrt(np.pi / 2)) / 6


def blockiness(values: np.ndarray) -> float:
    """How much larger differences are on the grid of 8 x 8 JPEG blocks than beside it; 1 is none.

    To be measured at the picture's own size: any resizing blurs the grid.
    """
    found = []
    for plane in (values, values.T):
        steps = np.abs(np.diff(plane, axis=1)).mean(axis=0)
        if len(steps) < 16 * 8:
            return 1.0  # too few blocks to tell their edges from the picture's
        # One long edge of what the picture shows is no edge of blocks: the highest few count as the next lower ones.
        steps = np.minimum(steps, np.percentile(steps, 95))
        by_place = np.array([steps[place::8].mean() for place in range(8)])
        top = int(by_place.argmax())
        found.append(by_place[top] / max(float(np.delete(by_place, top).mean()), 0.5))
    return float(min(found))


def exposure(values: np.ndarray, counted: np.ndarray) -> tuple[float, float]:
    """The levels that a tenth of the pixels `counted` are below and above: all dark, or all bright, is a bad exposure.

    `counted` (H, W) leaves out a plain background, which may be black or white on purpose.
    """
    shown = values[counted] if counted.mean() >= 0.01 else values  # nothing on the ground: the whole is the picture
    low, high = np.percentile(shown, (10, 90))
    return float(low), float(high)
