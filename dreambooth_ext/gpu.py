"""A GPU's memory: how much of it is free, and giving it back."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from .errors import ConfigError
from .ram import give_back_ram


@dataclass(frozen=True)
class ImaginedGpu:
    """A card that is not here, for questions about it."""

    free_bytes: int
    has_bf16: bool = True


_imagined: ContextVar[ImaginedGpu | None] = ContextVar("imagined GPU", default=None)


@contextmanager
def imagined(gpu: ImaginedGpu) -> Iterator[None]:
    """Inside, "cuda" is this card, for all that decides what a run would do on it; nothing can be computed there."""
    token = _imagined.set(gpu)
    try:
        yield
    finally:
        _imagined.reset(token)


def imagined_gpu() -> ImaginedGpu | None:
    return _imagined.get()


def why_not(device: str) -> str:
    """What keeps "cpu", "cuda" or "cuda:1" from being computed on, as a fault of --device; empty if nothing does."""
    import torch

    found = re.fullmatch(r"cpu|cuda(?::(\d+))?", device)
    if found is None:
        return f"--device: {device!r} is not one of auto, cpu, cuda, cuda:0, ..."
    if device == "cuda" and imagined_gpu():
        return ""
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
    if (card := imagined_gpu()) is not None:
        return card.free_bytes, card.free_bytes
    import torch

    number = torch.device(gpu).index  # the WebUI's torch 2.1 takes no "cuda" without one here
    return torch.cuda.mem_get_info(torch.cuda.current_device() if number is None else number)


def release() -> None:
    """Give back what is no longer used, of the GPU and of RAM."""
    give_back_ram()
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        # Memory that GPUs copy from by themselves, which torch keeps for later: `offload` may have had a network's gradients in it.
        empty_host_cache = getattr(getattr(torch, "accelerator", None), "empty_host_cache", None)
        if empty_host_cache is not None:
            empty_host_cache()
