"""A GPU's memory: how much of it is free, and giving it back."""

from __future__ import annotations

from .ram import give_back_ram


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
