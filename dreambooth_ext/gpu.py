"""A GPU's memory: how much of it is free, and giving it back."""

from __future__ import annotations

import re

from .errors import ConfigError
from .ram import give_back_ram


def why_not(device: str) -> str:
    """What keeps "cpu", "cuda" or "cuda:1" from being computed on, as a fault of --device; empty if nothing does."""
    import torch

    found = re.fullmatch(r"cpu|cuda(?::(\d+))?", device)
    if found is None:
        return f"--device: {device!r} is not one of auto, cpu, cuda, cuda:0, ..."
    if device.startswith("cuda") and not torch.cuda.is_available():
        return f"--device: {device}, but torch sees no GPU here"
    if found[1] and int(found[1]) >= torch.cuda.device_count():
        there = ", ".join(f"cuda:{each}" for each in range(torch.cuda.device_count()))
        return f"--device: {device} is not here; torch sees {there}"
    return ""


def require_device(device: str) -> None:
    """Raise ConfigError for a device that is not here; "auto" always is."""
    why = why_not(device) if device != "auto" else ""
    if why:
        raise ConfigError([why])


def free_and_total(gpu: str) -> tuple[int, int]:
    """Bytes of "cuda", "cuda:1", ..."""
    import torch

    number = torch.device(gpu).index  # the WebUI's torch 2.1 takes no "cuda" without one here
    return torch.cuda.mem_get_info(torch.cuda.current_device() if number is None else number)


def release() -> None:
    """Give back what is no longer used, of the GPU and of RAM."""
    give_back_ram()
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
