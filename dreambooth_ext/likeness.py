"""How near a snapshot's pictures have come to the subject, and how far its class has drifted, in features of a network.

Likeness is the mean cosine between features of pictures, as in CLIP-I and DINO of Ruiz et al. (2023, section 4.1); ours are
the base's own (models/features.py), since no other network is at hand offline. Both figures have units that need no table:
the base's pictures on one side, the subject's own, or other seeds, on the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SUBJECT = "subject"


@dataclass(frozen=True)
class Measured:
    """One column. `error` is the standard error of how far its value (nearness less drift) is behind the largest."""

    nearness: float | None = None
    drift: float | None = None
    error: float | None = None


def measure(own: np.ndarray, seen: np.ndarray, kinds: Sequence[str]) -> list[Measured]:
    """Nearness and drift of each column, of which the first is the base.

    own: (S, C, h, w) features of the subject's pictures. seen: (K, P, N, C, h, w) of what K columns made of P prompts with N
    seeds. kinds: for each prompt whether it shows the subject or the class.

    Nearness is 0 where a column's pictures of the subject are as like the subject's as the base's are, 1 where they are as
    like them all as any picture could be. Drift is 0 where its pictures of the class are the base's, 1 where they are as
    different from the base's of the same seeds as the base's of other seeds are. None where there are no such prompts, or
    where the base's pictures tell nothing: they are as near as can be, or all alike.
    """
    subject = [index for index, kind in enumerate(kinds) if kind == SUBJECT]
    others = [index for index, kind in enumerate(kinds) if kind != SUBJECT]
    if not subject or not len(own) or not (np.isfinite(own).all() and np.isfinite(seen).all()):
        return [Measured() for _ in seen]
    pooled_own, pooled = own.mean(axis=(2, 3)).astype(np.float64), seen.mean(axis=(4, 5)).astype(np.float64)
    # What all pictures share would make every two of them alike.
    centre = np.concatenate([pooled_own, pooled[0].reshape(-1, pooled.shape[-1])]).mean(axis=0)
    pictures, columns = _unit(pooled_own - centre), _unit(pooled - centre)
    likeness = (columns[:, subject] @ pictures.T).mean(axis=-1).reshape(len(columns), -1)  # one for each picture
    # No picture is liker to all of them than one in the direction of their mean; its mean cosine is that mean's length.
    whole = np.linalg.norm(pictures.mean(axis=0)) - likeness[0].mean()
    if whole <= 1e-6:
        return [Measured() for _ in seen]
    near = (likeness - likeness[0].mean()) / whole
    drift = _drifts(columns[:, others])
    return [Measured(_rounded(near[number].mean()), None if drift is None else _rounded(drift[number].mean()),
                     _rounded(error)) for number, error in enumerate(_errors(near, drift))]


def _drifts(columns: np.ndarray) -> np.ndarray | None:
    """(K, P * N): how different each picture of (K, P, N, C) is from the base's of its seed."""
    count, prompts, seeds, _ = columns.shape
    if not prompts:
        return None
    different = 1 - (columns * columns[0]).sum(axis=-1)  # (K, P, N)
    if seeds < 2:
        return different.reshape(count, -1)
    whole = np.array([1 - _among(columns[0, prompt]) for prompt in range(prompts)])
    return None if (whole <= 1e-6).any() else (different / whole[:, None]).reshape(count, -1)


def _errors(near: np.ndarray, drift: np.ndarray | None) -> list[float]:
    """Standard error of each column's distance from the one of most value; pictures of the same seed are compared."""
    values = near.mean(axis=1) - (drift.mean(axis=1) if drift is not None else 0.0)
    most = int(np.argmax(values[1:])) + 1 if len(values) > 1 else 0
    found = []
    for number in range(len(near)):
        squares = [_squared_error(part[number] - part[most]) for part in (near, drift) if part is not None]
        found.append(float(np.sqrt(sum(squares))))
    return found


def _squared_error(values: np.ndarray) -> float:
    return float(values.var(ddof=1) / len(values)) if len(values) > 1 else 0.0


def _unit(values: np.ndarray) -> np.ndarray:
    return values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-12)


def _among(units: np.ndarray) -> float:
    """Mean cosine of (n, C) among each other, without each with itself."""
    count = len(units)
    return float(((units @ units.T).sum() - count) / (count * (count - 1)))


def _rounded(value: float) -> float:
    return round(float(value), 4) + 0.0
