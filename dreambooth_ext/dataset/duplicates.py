"""Pictures that are there twice: byte for byte, or again as shifted, mirrored, compressed anew or resized.

Near duplicates are found by normalised cross-correlation (Lewis 1995) of small colour thumbnails: the middle of one is laid
over the other at every shift, which for many pictures at once is a product of matrices. A thumbnail of 7 KB is all that is
kept of a picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from ..progress import SILENT, Progress

ALIKE_FROM = 0.93  # correlation at the finer size
_CERTAIN_FROM = 0.97  # nothing is to be gained by looking on
FINE = 48  # side of a thumbnail
_COARSE = 24
_COARSEST = 12  # where there are too many pictures for shifts
_MARGIN = 3  # of _COARSE: shifts of up to an eighth of the side
_ENLARGED = 9 / 8  # of the other picture, beside its own size: one of the two may be a part of the other
_CANDIDATE_FROM = 0.75  # correlation at the coarse size, at which a shift may fall between two places
_IN_PLACE_FROM = 0.9  # the same, where no shifts are tried
SHIFTED_UP_TO = 1000  # pictures; of more, pairs are compared in place and mirrored only
_LOOKED_AT_MOST = 2_000_000  # pairs, closely: some minutes
_ROWS_AT_ONCE = 256
_PLAIN_BELOW = 2.0  # levels; a picture of one colour is like every other one


@dataclass(frozen=True)
class Pair:
    """Two pictures by their index, the first one smaller, and how alike they are, 0 to 1."""

    first: int
    second: int
    likeness: float
    mirrored: bool


def thumbnail(image: Image.Image) -> np.ndarray:
    """uint8 (FINE, FINE, 3) of an RGB picture of any size and shape."""
    return np.asarray(image.convert("RGB").resize((FINE, FINE), Image.Resampling.BOX, reducing_gap=3.0))


def near_duplicates(thumbnails: Sequence[np.ndarray], progress: Progress = SILENT) -> tuple[list[Pair], str]:
    """All pairs that are alike, and in a sentence what was compared.

    Of more than SHIFTED_UP_TO pictures, shifts are not tried: the work grows with the square of their number.
    """
    count = len(thumbnails)
    if count < 2:
        return [], "There is nothing to compare."
    margin = _MARGIN if count <= SHIFTED_UP_TO else 0
    pairs: dict[tuple[int, int], Pair] = {}
    joined = _Joined(count)
    looked_at = 0
    for mirrored in (False, True):
        for candidates in _candidates(thumbnails, margin, mirrored, progress):
            if not margin:  # whom a third picture has joined already need not be looked at: video has a million such pairs
                candidates = candidates[joined.root[candidates[:, 0]] != joined.root[candidates[:, 1]]]
            for first, second in candidates.tolist():
                if not margin and (joined.root[first] == joined.root[second] or looked_at >= _LOOKED_AT_MOST):
                    continue
                looked_at += 1
                other = thumbnails[second][:, ::-1] if mirrored else thumbnails[second]
                likeness = _aligned(thumbnails[first], other, 2 * margin)
                former = pairs.get((first, second))
                if likeness >= ALIKE_FROM and (former is None or likeness > former.likeness):
                    pairs[first, second] = Pair(first, second, likeness, mirrored)
                    joined.join(first, second)
    how = "as it is, mirrored, and shifted by up to an eighth" if margin else \
        f"as it is and mirrored; shifts are not tried among more than {SHIFTED_UP_TO}"
    rest = f"; so many are alike that only {_LOOKED_AT_MOST} pairs were looked at closely" if looked_at >= _LOOKED_AT_MOST else ""
    return [pairs[key] for key in sorted(pairs)], f"Each of {count} pictures was compared with each other one, {how}{rest}."


class _Joined:
    """Which pictures are the same by way of any pairs: `root` (n,) is the first of them for each."""

    def __init__(self, count: int) -> None:
        self.root = np.arange(count)

    def join(self, first: int, second: int) -> None:
        one, other = self.root[first], self.root[second]
        if one != other:
            self.root[self.root == max(one, other)] = min(one, other)


def groups(pairs: Sequence[Pair], count: int) -> list[list[int]]:
    """Pictures that are the same by way of any pairs, each group and the list of them in order."""
    joined = _Joined(count)
    for pair in pairs:
        joined.join(pair.first, pair.second)
    found: dict[int, list[int]] = {}
    for index, root in enumerate(joined.root.tolist()):
        found.setdefault(root, []).append(index)
    return [group for group in found.values() if len(group) > 1]


def _candidates(thumbnails: Sequence[np.ndarray], margin: int, mirrored: bool, progress: Progress) -> Iterator[np.ndarray]:
    """Pairs (first < second) whose coarse thumbnails are alike at some shift, the second one perhaps mirrored, int (n, 2).

    So many rows at a time, each pair once or twice.
    """
    coarse = _COARSE if margin else _COARSEST
    inner = coarse - 2 * margin
    middle = _normalised(np.stack([_resized(values, coarse)[margin : margin + inner, margin : margin + inner]
                                   for values in thumbnails]))
    for start in range(0, len(thumbnails), _ROWS_AT_ONCE):
        progress.check()
        part = [values[:, ::-1] if mirrored else values for values in thumbnails[start : start + _ROWS_AT_ONCE]]
        best = np.full((len(middle), len(part)), -1.0, np.float32)
        for side in _sides(coarse, margin):
            rows = np.stack([_resized(values, side) for values in part])
            for down in range(side - inner + 1):
                for right in range(side - inner + 1):
                    window = _normalised(rows[:, down : down + inner, right : right + inner])
                    np.maximum(best, middle @ window.T, out=best)
        pairs = np.argwhere(best >= (_CANDIDATE_FROM if margin else _IN_PLACE_FROM)) + (0, start)
        yield np.unique(np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1), axis=0)


def _sides(side: int, margin: int) -> tuple[int, ...]:
    return (side, round(side * _ENLARGED)) if margin else (side,)


def _resized(values: np.ndarray, side: int) -> np.ndarray:
    """float32 (side, side, 3)."""
    return np.asarray(Image.fromarray(values).resize((side, side), Image.Resampling.BICUBIC), np.float32)


def _normalised(windows: np.ndarray) -> np.ndarray:
    """Rows of mean 0 and length 1, (n, h * w * 3); zeros for windows of one colour. Channels keep their differences."""
    flat = windows.reshape(len(windows), -1).astype(np.float32)
    flat = flat - flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.where(length > _PLAIN_BELOW * np.sqrt(flat.shape[1]), flat / np.maximum(length, 1e-6), 0)


def _aligned(one: np.ndarray, other: np.ndarray, margin: int) -> float:
    """The best correlation of the middle of either thumbnail with any place of the other."""
    inner = FINE - 2 * margin
    best = 0.0
    for fixed, moving in ((one, other), (other, one)):
        middle = _normalised(_resized(fixed, FINE)[None, margin : margin + inner, margin : margin + inner])[0]
        for side in _sides(FINE, margin):
            windows = sliding_window_view(_resized(moving, side), (inner, inner), (0, 1))  # type: ignore[call-overload]
            rows = windows.transpose(0, 1, 3, 4, 2).reshape(-1, inner, inner, 3)
            best = max(best, float((_normalised(rows) @ middle).max()))
            if best >= _CERTAIN_FROM:
                return best
    return best
