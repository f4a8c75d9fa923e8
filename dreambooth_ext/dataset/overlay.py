"""Writing that was put over a picture: the line of letters in one picture, the same mark at one place in several.

Letters are thin regions of one contrast that stand on one line (after Epshtein et al. 2010, which groups strokes likewise);
a mark that several pictures share is where their gradients agree (after Dekel et al. 2017). Writing on a slant is found by
the second only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .crop import Box
from .regions import labels_of_runs, opened

ANALYSIS_PX = 384  # the shorter side at which letters are looked for
SUSPECT_FROM = 2.28
_CONTRASTS = (14, 24, 40, 65, 100)  # levels that a letter stands out by, tried one by one
_STROKE_PX = 11  # whatever is thicker is no stroke; at half the size this is twice as much
_LEAST_LETTERS = 4

MARK_PX = 128  # side of the square at which pictures are laid over each other
_DIRECTIONS = 8
_GRADIENT_FROM = 10.0  # levels a pixel; less is shading, or noise
_LEAST_SHARED = 3  # pictures
_LEAST_SURPRISE = 6.0  # standard deviations above chance
_LEAST_PLACES = 40  # of MARK_PX x MARK_PX, joined


@dataclass(frozen=True)
class Writing:
    """A line that may be writing. `score` grows with the number of letters and with how alike they stand."""

    score: float
    box: Box


@dataclass(frozen=True)
class Mark:
    """The same thing at the same place in several pictures: their indices, and the place in 0..1 of width and height."""

    pictures: tuple[int, ...]
    place: tuple[float, float, float, float]


def writing(image: Image.Image) -> Writing:
    """The most letter-like line of an RGB picture, its box in the picture's pixels; score 0 if there is none."""
    scale = min(1.0, ANALYSIS_PX / min(image.size))
    size = round(image.width * scale), round(image.height * scale)
    values = np.asarray(image.resize(size, Image.Resampling.BOX) if scale < 1 else image, np.float32)
    best, found = 0.0, (0.0, 0.0, 0.0, 0.0)
    # White letters are bright in every channel, black ones dark in every channel, whatever is below them.
    for plane in (values.min(axis=2), 255 - values.max(axis=2)):
        for shrink in (1, 2):
            if min(plane.shape) // shrink < 4 * _STROKE_PX:
                continue
            part = plane if shrink == 1 else _halved(plane)
            thin = part - opened(part, _STROKE_PX)
            for contrast in _CONTRASTS:
                score, box = _best_line(_letters(thin, contrast))
                if score > best:
                    best, found = score, tuple(edge * shrink / scale for edge in box)
    left, top, right, bottom = found
    return Writing(best, (int(left), int(top), min(image.width, int(right) + 1), min(image.height, int(bottom) + 1)))


def _halved(plane: np.ndarray) -> np.ndarray:
    height, width = (length // 2 * 2 for length in plane.shape)
    return plane[:height, :width].reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3))


def _letters(thin: np.ndarray, contrast: float) -> np.ndarray:
    """What may be letters, from left to right, float (n, 7): left, top, right, bottom, filled share, mean and std of contrast."""
    runs, label = labels_of_runs(thin > contrast)
    if not len(runs):
        return np.zeros((0, 7))
    count = int(label.max()) + 1
    row, start, end = runs.T
    sums, squares = (np.pad(np.cumsum(plane, axis=1, dtype=np.float64), ((0, 0), (1, 0))) for plane in (thin, thin * thin))
    area = np.bincount(label, end - start, count)
    mean = np.bincount(label, sums[row, end] - sums[row, start], count) / area
    spread = np.sqrt(np.maximum(np.bincount(label, squares[row, end] - squares[row, start], count) / area - mean**2, 0))
    edges = np.stack([np.full(count, thin.shape[1]), np.full(count, thin.shape[0]), np.zeros(count), np.zeros(count)])
    for edge, values, pick in ((0, start, np.minimum), (1, row, np.minimum), (2, end, np.maximum), (3, row + 1, np.maximum)):
        pick.at(edges[edge], label, values)
    left, top, right, bottom = edges
    height, width = bottom - top, right - left
    fill = area / (height * width)
    # What touches the picture's edge is cut there, and so seems to stand on a line.
    inside = (left > 0) & (top > 0) & (right < thin.shape[1]) & (bottom < thin.shape[0])
    sized = (height >= 6) & (height <= 0.12 * min(thin.shape)) & (width >= 1.5) & (width <= 5 * height)
    kept = inside & sized & (fill > 0.15) & (fill < 0.95) & (spread < 0.6 * mean)
    letters = np.stack([left, top, right, bottom, fill, mean, spread], axis=1)[kept]
    return letters[np.argsort(letters[:, 0], kind="stable")]


def _best_line(letters: np.ndarray) -> tuple[float, Box | tuple[float, ...]]:
    """The line of the highest score, beginning at any letter and going right as long as the next one is near."""
    left, top, right, bottom, _, mean, _ = letters.T
    height = bottom - top
    best, box = 0.0, (0.0, 0.0, 0.0, 0.0)
    for first in range(len(letters)):
        alike = (np.abs(bottom - bottom[first]) <= max(1.0, 0.12 * height[first])) & (height >= 0.6 * height[first])
        alike &= (height <= 1.5 * height[first]) & (mean > 0.6 * mean[first]) & (mean < mean[first] / 0.6)
        line, end = [first], right[first]
        for following in np.nonzero(alike)[0]:
            if following <= first or left[following] - end < -0.3 * height[first]:
                continue
            if left[following] - end > 2.2 * height[first]:
                break
            line.append(int(following))
            end = max(end, right[following])
        if len(line) >= _LEAST_LETTERS:
            score = _score(letters[line])
            if score > best:
                best = score
                box = left[line].min(), top[line].min(), right[line].max(), bottom[line].max()
    return best, box


def _score(line: np.ndarray) -> float:
    left, top, right, bottom, fill, mean, spread = line.T
    height, width = bottom - top, right - left
    if fill.std() < 0.04 and (width / height).std() < 0.1:
        return 0.0  # all of one shape: windows, bars or bricks, and no writing
    letters = np.clip(width / height, 1, 3).sum()  # those that touch are one region
    uneven = 2 * mean.std() / mean.mean() + (spread / mean).mean() + 6 * bottom.std() / height.mean()
    return float((letters - 2) * np.exp(-uneven))


def directions(image: Image.Image) -> np.ndarray:
    """Where a picture's edges point, uint8 (MARK_PX, MARK_PX): 0 no edge, else 1 to 8 by the gradient's direction."""
    small = np.asarray(image.convert("L").resize((MARK_PX, MARK_PX), Image.Resampling.BOX), np.float32)
    down, right = np.gradient(small)
    turned = np.floor((np.arctan2(down, right) / (2 * np.pi) + 1) * _DIRECTIONS + 0.5).astype(np.int64) % _DIRECTIONS
    return np.where(np.hypot(down, right) >= _GRADIENT_FROM, turned + 1, 0).astype(np.uint8)


def shared_mark(fields: Sequence[np.ndarray]) -> Mark | None:
    """What several of these pictures (their `directions`) have at the same place, or None.

    Near duplicates are to be left out: they agree everywhere.
    """
    if len(fields) < _LEAST_SHARED:
        return None
    stack = np.stack(fields)
    surprise = np.zeros((MARK_PX, MARK_PX), np.float32)
    for direction in range(1, _DIRECTIONS + 1):
        near = [(direction + turn - 1) % _DIRECTIONS + 1 for turn in (-1, 0, 1)]
        agreeing = np.isin(stack, near).sum(axis=0)
        chance = max(float(agreeing.mean()) / len(fields), 0.01)
        spread = np.sqrt(len(fields) * chance * (1 - chance))
        surprise = np.maximum(surprise, np.where(agreeing >= _LEAST_SHARED, (agreeing - len(fields) * chance) / spread, 0))
    surprise[[0, -1]] = surprise[:, [0, -1]] = 0
    place = _largest(surprise > min(_LEAST_SURPRISE, _most_possible(stack)))
    if place is None:
        return None
    rows, columns = place
    seen = stack[:, rows, columns]
    usual = np.array([np.bincount(column, minlength=_DIRECTIONS + 1)[1:].argmax() + 1 for column in seen.T])
    turn = (seen.astype(int) - usual) % _DIRECTIONS
    sharing = ((seen > 0) & ((turn <= 1) | (turn == _DIRECTIONS - 1))).mean(axis=1) > 0.5
    if sharing.sum() < _LEAST_SHARED:
        return None
    box = (columns.min() / MARK_PX, rows.min() / MARK_PX, (columns.max() + 1) / MARK_PX, (rows.max() + 1) / MARK_PX)
    return Mark(tuple(int(index) for index in np.nonzero(sharing)[0]), box)


def _most_possible(stack: np.ndarray) -> float:
    """Few pictures can never be very surprising: then nearly all of them must agree."""
    chance = max(3 / _DIRECTIONS * float((stack > 0).mean()), 0.01)
    return 0.9 * (len(stack) - len(stack) * chance) / float(np.sqrt(len(stack) * chance * (1 - chance)))


def _largest(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Rows and columns of the largest group of places, those a little apart joined; None if it is small."""
    wide = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize((MARK_PX // 4,) * 2, Image.Resampling.BOX)) > 20
    runs, label = labels_of_runs(wide)
    best = None
    for number in range(int(label.max()) + 1 if len(label) else 0):
        region = np.zeros_like(wide)
        for row, start, end in runs[label == number]:
            region[row, start:end] = True
        rows, columns = np.nonzero(mask & np.kron(region, np.ones((4, 4), bool)))
        if len(rows) >= _LEAST_PLACES and (best is None or len(rows) > len(best[0])):
            best = rows, columns
    return best
