"""Training for a given wall time: schedules that end when the time does, and a state file to go on from."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import torch

SAVE_EVERY_S = 120.0
WARM_UP = 0.02  # of the whole


class Clock:
    """Wall time spent training, across interruptions. Seconds."""

    def __init__(self, minutes: float, spent_s: float = 0.0) -> None:
        self.total_s = minutes * 60
        self._before_s = spent_s
        self._since = time.monotonic()
        self._saved_s = spent_s

    @property
    def spent_s(self) -> float:
        return self._before_s + time.monotonic() - self._since

    @property
    def progress(self) -> float:
        """0 at the start, 1 when the time is up."""
        return min(self.spent_s / self.total_s, 1.0)

    def save_is_due(self) -> bool:
        """True once every SAVE_EVERY_S."""
        if self.spent_s - self._saved_s < SAVE_EVERY_S:
            return False
        self._saved_s = self.spent_s
        return True


def cosine(progress: float) -> float:
    """Factor on the learning rate: a short linear warm-up, then half a cosine down to 0."""
    if progress < WARM_UP:
        return max(progress / WARM_UP, 0.01)
    return 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value


def save_state(path: Path, **state: Any) -> None:
    """Write and rename, so that an interrupted save leaves the former state."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def load_state(path: Path) -> dict[str, Any] | None:
    """What `save_state` wrote, or None if there is nothing yet."""
    return torch.load(path, weights_only=True) if path.exists() else None
