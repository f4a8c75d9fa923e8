"""What is on the device when, and what cannot be combined."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..config import TrainConfig
from . import precision


def faults(config: TrainConfig) -> list[str]:
    """Combinations of settings that cannot work, one plain sentence each."""
    return precision.faults(config)


@contextmanager
def on_device(module: Any, device: torch.device | str) -> Iterator[None]:
    """The module is on `device` inside the block, and on the CPU afterwards."""
    module.to(device)
    try:
        yield
    finally:
        module.to("cpu")
        release()


def release() -> None:
    """Give back what is no longer used."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def device_memory_gib(device: torch.device) -> float | None:
    """The most that torch has held on this GPU since the run began; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
