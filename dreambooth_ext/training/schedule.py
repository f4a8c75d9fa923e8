"""How the learning rate moves: a factor of (step, steps), warm-up included."""

from __future__ import annotations

import math
from collections.abc import Callable

POLYNOMIAL_POWER = 1.0
POLYNOMIAL_END = 1e-7  # as a share of the learning rate


def lr_factor(name: str, step: int, steps: int, warmup_steps: int, cycles: int = 1) -> float:
    """The factor for optimizer step `step` (from 0) of `steps`."""
    if name != "constant" and step < warmup_steps:
        return step / max(1, warmup_steps)
    progress = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    return _SHAPES[name](progress, cycles)


def _cosine_with_restarts(progress: float, cycles: int) -> float:
    if progress >= 1:
        return 0.0
    return 0.5 * (1 + math.cos(math.pi * (progress * cycles % 1.0)))


_SHAPES: dict[str, Callable[[float, int], float]] = {
    "constant": lambda progress, cycles: 1.0,
    "constant_with_warmup": lambda progress, cycles: 1.0,
    "linear": lambda progress, cycles: 1 - progress,
    "cosine": lambda progress, cycles: 0.5 * (1 + math.cos(math.pi * progress)),
    "cosine_with_restarts": _cosine_with_restarts,
    "polynomial": lambda progress, cycles: (1 - POLYNOMIAL_END) * (1 - progress) ** POLYNOMIAL_POWER + POLYNOMIAL_END,
}
