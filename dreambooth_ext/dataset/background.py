"""What a picture's ground is, how large the subject stands before it, and whether the frame cuts it; as far as pixels tell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from .crop import Box, saliency

ANALYSIS_PX = 128  # the longer side
BACKGROUNDS = ("plain black", "plain white", "plain colour", "scene")
FRAMINGS = ("close", "half", "far")
SIDES = ("left", "top", "right", "bottom")
CUT_FROM = 0.08  # of a side's length that the subject touches
_PLAIN_FROM = 0.6  # of the border has the ground's colour: the rest may be the subject, cut by the frame
_UNLIKE = 36.0  # levels of RGB distance
_CLOSE, _HALF = 0.5, 0.16  # of the picture that the subject's box takes


@dataclass(frozen=True)
class Layout:
    """`box` is the subject's, in the picture's pixels; `touched` what share of each side it touches, known on plain ground."""

    background: str
    framing: str
    box: Box
    touched: dict[str, float]
    subject: np.ndarray  # bool (h, w) on the grid of analysis: what is not plain ground


def layout(image: Image.Image) -> Layout:
    """Of an RGB picture."""
    scale = ANALYSIS_PX / max(image.size)
    size = max(8, round(image.width * scale)), max(8, round(image.height * scale))
    pixels = np.asarray(image.resize(size, Image.Resampling.BOX, reducing_gap=3.0), np.float32)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    ground = np.median(border, axis=0)
    plain = float((np.linalg.norm(border - ground, axis=1) < _UNLIKE).mean()) >= _PLAIN_FROM
    subject = np.linalg.norm(pixels - ground, axis=2) >= _UNLIKE if plain else np.ones(pixels.shape[:2], bool)
    touched = dict.fromkeys(SIDES, 0.0)
    if plain:
        edges = (subject[:, 0], subject[0], subject[:, -1], subject[-1])
        touched = {side: float(edge.mean()) for side, edge in zip(SIDES, edges, strict=True)}
        left, top, right, bottom = _extent(subject.astype(np.float64), 0.01)
    else:
        left, top, right, bottom = _extent(saliency(image), 0.12)
    share = (right - left) * (bottom - top)
    framing = "close" if share >= _CLOSE else "half" if share >= _HALF else "far"
    box = round(left * image.width), round(top * image.height), round(right * image.width), round(bottom * image.height)
    return Layout(_kind(ground) if plain else "scene", framing, box, touched, subject)


def _kind(ground: np.ndarray) -> str:
    if ground.max() < 45:
        return "plain black"
    return "plain white" if ground.min() > 215 else "plain colour"


def _extent(weights: np.ndarray, tail: float) -> tuple[float, float, float, float]:
    """Left, top, right and bottom, 0 to 1, of what holds all weight but a tail at each end."""
    edges = []
    for axis in (0, 1):
        sums = np.concatenate([[0.0], np.cumsum(weights.sum(axis=axis))])
        if sums[-1] == 0:
            edges.append((0.0, 1.0))
            continue
        ticks = np.linspace(0, 1, len(sums))
        inside = ticks[1:][(sums[1:] > tail * sums[-1])][0] - ticks[1], ticks[:-1][sums[:-1] < (1 - tail) * sums[-1]][-1] + ticks[1]
        edges.append((float(max(0.0, inside[0])), float(min(1.0, inside[1]))))
    (left, right), (top, bottom) = edges
    return left, top, right, bottom
