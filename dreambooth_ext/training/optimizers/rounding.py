"""Stores of fp32 numbers in fewer bits that lose nothing on average."""

from __future__ import annotations

import torch

DROPPED_BITS = 16  # fp32 and bf16 differ by the last 16 bits of the fraction
KEPT = torch.tensor(-(1 << DROPPED_BITS), dtype=torch.int32)  # no number: torch 2.1 takes none where its calls are watched


def round_stochastically(values: torch.Tensor, draws: torch.Generator | None) -> torch.Tensor:
    """fp32 to bf16, up or down with the probability that makes the mean exact (Gupta et al. 2015).

    Rounding to nearest would lose an update of less than 1/256 of its weight, which at a learning rate of 5e-6 is
    nearly all of them.
    """
    bits = values.float().contiguous().view(torch.int32)
    noise = torch.randint(0, 1 << DROPPED_BITS, bits.shape, dtype=torch.int32, device=bits.device, generator=draws)
    kept = noise.add_(bits).bitwise_and_(KEPT)
    return kept.view(torch.float32).to(torch.bfloat16)  # exact: the dropped bits are zero


def store(target: torch.Tensor, values: torch.Tensor, draws: torch.Generator | None) -> None:
    """Write fp32 `values` into `target`, in place; stochastically if it is bf16."""
    if target.dtype == torch.bfloat16:
        target.copy_(round_stochastically(values, draws))
    elif target.data_ptr() != values.data_ptr():
        target.copy_(values)
