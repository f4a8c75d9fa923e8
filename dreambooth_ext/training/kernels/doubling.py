"""The least that a kernel can do, to see whether any runs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 16


@triton.jit
def _double(numbers: tl.tensor, twice: tl.tensor, count: tl.tensor, block: tl.constexpr) -> None:
    places = tl.arange(0, block)
    inside = places < count
    tl.store(twice + places, 2 * tl.load(numbers + places, mask=inside), mask=inside)


def doubled(numbers: torch.Tensor) -> torch.Tensor:
    """Of at most `BLOCK` numbers."""
    twice = torch.empty_like(numbers)
    _double[(1,)](numbers, twice, len(numbers), block=BLOCK)
    return twice
