"""Adam's moments in 8 bits a number, rounded stochastically.

The second moment is kept as its root, by which Adam divides, in blocks of 256 with a scale each (Dettmers et al. 2022, "8-bit
Optimizers via Block-wise Quantization"). The first moment is kept as its share of that root, which is what Adam moves a weight
by: of the order of 1 whatever the gradient's size, it needs no scale. Codes are pieces of floats' own bits instead of a
table, so that few operations make and read them. And they are rounded stochastically: an average that moves by a thousandth
a step would never leave its code if it were rounded to the nearest.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .rounding import BF16_FRACTION_BITS, FRACTION_BITS, dithered

BLOCK = 256
# Of roots: 4 bits of exponent, 4 of fraction. Neighbours are 3 to 6 % apart, down to 1.6e-5 of the block's largest.
ROOT_FRACTION_BITS = 4
TOP = 31 / 32  # stands for the block's largest: the greatest number below 1 with 4 bits of fraction
LEAST = 2.0**-16  # and its code, 0: what is not 0 never becomes 0, since Adam divides by it
_EXPONENT = 111  # LEAST's, as its bits tell it
# Of shares: FP8 (e4m3) of 32 times the share. Neighbours are 6 to 12 % apart from 5e-4 to 14.
SHARE_EXPONENT, SHARE_FACTOR = 5, 32.0
SHARE_FRACTION_BITS = 3
GREATEST_SHARE = 448 / SHARE_FACTOR
# Tensors, since torch 2.1 takes no plain numbers for these where its calls are watched.
_SHIFT = torch.tensor(BF16_FRACTION_BITS - ROOT_FRACTION_BITS, dtype=torch.int16)
_KEPT = torch.tensor(-(1 << (BF16_FRACTION_BITS - SHARE_FRACTION_BITS)), dtype=torch.int16)


def padded(count: int) -> int:
    """Numbers stored for `count` of them: whole blocks."""
    return -(-count // BLOCK) * BLOCK


def write_roots(codes: torch.Tensor, scales: torch.Tensor, roots: torch.Tensor, draws: torch.Generator | None) -> None:
    """(N,) fp32, none negative -> codes (padded N,) uint8 and scales (blocks,), in place. `roots` may be used up."""
    missing = len(codes) - len(roots)
    blocks = (F.pad(roots, (0, missing)) if missing else roots).view(-1, BLOCK)
    torch.amax(blocks, dim=1, out=scales)
    blocks.mul_((TOP / scales.clamp(min=1e-30))[:, None])
    upper = dithered(blocks, FRACTION_BITS - ROOT_FRACTION_BITS, draws, exponent=-_EXPONENT)
    codes.view(-1, BLOCK).copy_(torch.bitwise_right_shift(upper, _SHIFT).clamp_(0, 255))


def read_roots(codes: torch.Tensor, scales: torch.Tensor, count: int, factor: float = 1.0) -> torch.Tensor:
    """(N,) fp32, times `factor`."""
    bits = codes.to(torch.int16).add_(_EXPONENT << ROOT_FRACTION_BITS)
    values = torch.bitwise_left_shift(bits, _SHIFT).view(torch.bfloat16).view(-1, BLOCK)
    return torch.mul(values, (scales * (factor / TOP))[:, None]).view(-1)[:count]


def write_shares(codes: torch.Tensor, shares: torch.Tensor, draws: torch.Generator | None) -> None:
    """(N,) fp32, at most `GREATEST_SHARE` -> codes (N,) uint8, in place."""
    upper = dithered(shares, FRACTION_BITS - SHARE_FRACTION_BITS, draws, exponent=SHARE_EXPONENT)
    codes.view(torch.float8_e4m3fn).copy_(torch.bitwise_and(upper, _KEPT).view(torch.bfloat16))


def read_shares(codes: torch.Tensor) -> torch.Tensor:
    """(N,) fp32, `SHARE_FACTOR` times as large."""
    return codes.view(torch.float8_e4m3fn).float()


def read_former_state(state: dict[str, torch.Tensor], count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """First moment and root, (N,) fp32, as 8-bit state was kept until November 2026: codes even in the logarithm."""
    def scaled(codes: torch.Tensor, top: int, per_octave: int, scales: torch.Tensor) -> torch.Tensor:
        numbers = codes.float()
        values = torch.exp2((numbers.abs() - top) / per_octave) * numbers.sign()
        return (values.view(-1, BLOCK) * scales[:, None]).view(-1)[:count]

    return (scaled(state["first_codes"], 127, 8, state["first_scales"]),
            scaled(state["root_codes"], 255, 16, state["root_scales"]))
