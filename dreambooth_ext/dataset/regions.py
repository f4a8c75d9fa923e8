"""Connected regions of a mask, and the morphology that makes one: what SciPy's ndimage does, by numpy alone."""

from __future__ import annotations

import numpy as np


def labels_of_runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The horizontal runs of a boolean (H, W) mask, and the region that each belongs to, neighbours at corners included.

    Runs are int64 (n, 3): row, first column, column after the last. Regions are numbered from 0.
    """
    height, width = mask.shape
    padded = np.zeros((height, width + 2), np.int8)
    padded[:, 1:-1] = mask
    change = np.diff(padded, axis=1)
    rows, starts = np.nonzero(change == 1)
    ends = np.nonzero(change == -1)[1]
    runs = np.stack([rows, starts, ends], axis=1).astype(np.int64)
    above, below = _touching(runs, width + 4)
    return runs, _joined(len(runs), above, below)


def _touching(runs: np.ndarray, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of all pairs of runs in neighbouring rows that touch."""
    rows, starts, ends = runs.T
    # Runs are in order, so those of the next row that touch one are a range: from the first that ends late enough
    # to the last that starts early enough.
    first = np.searchsorted(rows * stride + ends, (rows + 1) * stride + starts, side="left")
    after = np.searchsorted(rows * stride + starts, (rows + 1) * stride + ends, side="right")
    counts = np.maximum(after - first, 0)
    above = np.repeat(np.arange(len(runs)), counts)
    offset = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return above, np.repeat(first, counts) + offset


def _joined(count: int, above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Region numbers of `count` things of which these pairs belong together."""
    parent = np.arange(count)
    while True:
        low = np.minimum(parent[above], parent[below])
        before = parent.copy()
        for end in (above, below):
            np.minimum.at(parent, parent[end], low)
            np.minimum.at(parent, end, low)
        while not np.array_equal(parent, parent[parent]):
            parent = parent[parent]
        if np.array_equal(parent, before):
            return np.unique(parent, return_inverse=True)[1].reshape(-1)


def opened(values: np.ndarray, size: int) -> np.ndarray:
    """Grey opening by a square of `size` (odd) px: whatever is brighter and thinner than that is gone."""
    return _extreme(_extreme(values, size, np.minimum), size, np.maximum)


def _extreme(values: np.ndarray, size: int, pick: np.ufunc) -> np.ndarray:
    for axis in (0, 1):
        reach = size // 2
        width = [(0, 0), (0, 0)]
        width[axis] = (reach, reach)
        padded = np.pad(values, width, mode="edge")
        length, span = values.shape[axis], 1
        window = padded
        while span < size:  # windows of 1, 2, 4, ... are joined: so many steps as the size has bits
            step = min(span, size - span)
            kept = window.shape[axis] - step
            first = window[:, :kept] if axis else window[:kept]
            second = window[:, step:] if axis else window[step:]
            window, span = pick(first, second), span + step
        values = window[:length] if axis == 0 else window[:, :length]
    return values
