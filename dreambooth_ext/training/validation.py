"""The validation loss: fixed pictures at fixed noise and timesteps, so that its value compares from step to step.

A step's own loss jumps about, since each step draws another timestep and other noise; this one does not.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..config import TrainConfig
from ..dataset.manifest import TrainingImage
from .data import LatentCache, Pictures, fixed_pictures
from .objective import Objective

MEASUREMENTS = 20  # of a run, if nothing else is asked for: about a fiftieth of its time
LEAST_STEPS_BETWEEN = 10


class Validation:
    """Mean squared error on up to eight of the pictures, measured when due. It draws no random number of the run's."""

    def __init__(self, config: TrainConfig, images: Sequence[TrainingImage], cache: LatentCache, objective: Objective) -> None:
        self._steps = config.steps or 0
        self._every = config.validation_every or max(LEAST_STEPS_BETWEEN, self._steps // MEASUREMENTS)
        self._pictures, self._objective = fixed_pictures(images, cache), objective

    def due(self, step: int) -> bool:
        """After optimizer step `step` (from 1); always after the last one."""
        return step % self._every == 0 or step == self._steps

    def loss(self) -> float:
        """A few pictures at a time, so that it never sets the run's peak of memory."""
        return sum(self._objective.plain_error(each) * len(each) for each in _pairs(self._pictures)) / len(self._pictures)


def _pairs(pictures: Pictures) -> list[Pictures]:
    """Two or three at a time: group normalisation refuses a single picture where a small base has shrunk it to one pixel."""
    starts = range(0, max(1, len(pictures) - 1), 2)
    return [pictures.rows(slice(start, None if start == starts[-1] else start + 2)) for start in starts]
