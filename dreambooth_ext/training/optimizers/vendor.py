"""bitsandbytes' 8-bit AdamW, where its step works: on many machines it is missing, or cannot do what it was built for."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch

NUMBERS = 16_384  # of the trial's weight: enough that it is quantized
TRIAL_STEPS = 3
LEARNING_RATE = 1e-2
NEAR = 0.2  # of the way that torch's own AdamW goes


def version_that_works(device: str) -> str:
    """bitsandbytes' version if a few of its steps on `device` end where torch's AdamW ends, else ""."""
    try:
        return _found(device)
    except torch.cuda.OutOfMemoryError:  # says nothing about it: it is tried again once there is memory
        return ""


@cache
def _found(device: str) -> str:
    try:
        import bitsandbytes

        ours, theirs = _trial(bitsandbytes.optim.AdamW8bit, device), _trial(torch.optim.AdamW, device)
        start = _start(device)
        works = bool((ours - theirs).norm() < NEAR * (theirs - start).norm())
        return str(bitsandbytes.__version__) if works else ""
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception:  # noqa: BLE001  whatever ails it, it is not used
        return ""


def adamw_8bit(groups: list[dict[str, Any]], **arguments: Any) -> torch.optim.Optimizer:
    """For fp32 weights: it rounds to nearest what it stores in bf16."""
    import bitsandbytes

    return bitsandbytes.optim.AdamW8bit(groups, **arguments)  # type: ignore[no-any-return]


def _start(device: str) -> torch.Tensor:
    return torch.linspace(-1, 1, NUMBERS, device=device)


def _trial(optimizer_class: Any, device: str) -> torch.Tensor:
    weight = torch.nn.Parameter(_start(device).clone())
    optimizer = optimizer_class([weight], lr=LEARNING_RATE, weight_decay=0.0)
    for step in range(TRIAL_STEPS):
        weight.grad = torch.sin(torch.arange(NUMBERS, device=device) * math.pi / (step + 7.5))
        optimizer.step()
    return weight.detach()
