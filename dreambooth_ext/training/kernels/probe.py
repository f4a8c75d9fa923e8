"""Whether our kernels run here. Triton comes with torch's builds for Linux, wants a C compiler, and is missing elsewhere."""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache

import torch


@cache
def why_none(device: str) -> str:
    """What keeps our kernels from running on "cuda", "cuda:1", ..., found by running one; empty if nothing does."""
    return tried(device) if device.startswith("cuda") else "they are for GPUs"


def tried(device: str) -> str:
    """The same without a look at what device it is: on a CPU Triton's interpreter computes, for tests."""
    try:
        from .doubling import doubled

        numbers = torch.arange(8.0, device=device)
        with torch.cuda.device(device) if numbers.is_cuda else nullcontext():
            found = doubled(numbers)
        return "" if torch.equal(found, 2 * numbers) else "what they compute is wrong"
    except Exception as error:  # noqa: BLE001  Triton is missing, or a compiler, or support for this card
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
