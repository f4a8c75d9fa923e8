"""Stores of fp32 numbers in fewer bits that lose nothing on average (Gupta et al. 2015).

The bits of a float, read as an integer, grow evenly between any two neighbours of a shorter format. A random number of as many
bits as will be dropped is added to them: they then carry into the bits that stay with just the probability that makes the mean
exact. A few operations on integers do that, on any device.
"""

from __future__ import annotations

import sys

import torch

FRACTION_BITS, BF16_FRACTION_BITS = 23, 7
DROPPED_BITS = FRACTION_BITS - BF16_FRACTION_BITS
_UPPER = 1 if sys.byteorder == "little" else 0


def dithered(values: torch.Tensor, dropped_bits: int, draws: torch.Generator | None, exponent: int = 0) -> torch.Tensor:
    """(...) fp32 -> (...) int16: the upper half of the bits of values x 2^exponent, rounded stochastically for formats that drop
    the last `dropped_bits`; what they keep of them means nothing. Not contiguous.

    What is too small for the exponent, 0 as well, becomes a negative integer, or a positive one of hardly any value.
    """
    bits, start = values.contiguous().view(torch.int32), exponent << FRACTION_BITS
    noise = torch.randint(start, start + (1 << dropped_bits), bits.shape, dtype=torch.int32, device=bits.device, generator=draws)
    return noise.add_(bits).view(torch.int16)[..., _UPPER::2]


def round_stochastically(values: torch.Tensor, draws: torch.Generator | None) -> torch.Tensor:
    """fp32 to bf16, up or down.

    Rounding to nearest would lose an update of less than 1/256 of its weight, which at a learning rate of 5e-6 is
    nearly all of them.
    """
    return dithered(values, DROPPED_BITS, draws).view(torch.bfloat16)


def store(target: torch.Tensor, values: torch.Tensor, draws: torch.Generator | None) -> None:
    """Write fp32 `values` into `target`, in place; stochastically if it is bf16."""
    if target.dtype == torch.bfloat16:
        target.copy_(round_stochastically(values, draws))
    elif target.data_ptr() != values.data_ptr():
        target.copy_(values)
