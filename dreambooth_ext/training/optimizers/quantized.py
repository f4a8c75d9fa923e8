"""Optimizer state in 8 bits a number: blocks of 256 with a scale each, codes spaced evenly in the logarithm.

After Dettmers et al. (2022), "8-bit Optimizers via Block-wise Quantization", with two differences. Codes are a closed
formula instead of a table, so that any device works them out without a search. And they are rounded stochastically:
an average that moves by a thousandth a step would never leave its code if it were rounded to the nearest.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

BLOCK = 256
SIGNED_TOP, SIGNED_PER_OCTAVE = 127, 8  # neighbours 9 % apart, down to 1.8e-5 of the block's largest
POSITIVE_TOP, POSITIVE_PER_OCTAVE = 255, 16  # 4.4 % apart, down to 1.7e-5
_TINY = 1e-38


def padded(count: int) -> int:
    """Numbers stored for `count` of them: whole blocks."""
    return -(-count // BLOCK) * BLOCK


def quantize_signed(values: torch.Tensor, draws: torch.Generator | None) -> tuple[torch.Tensor, torch.Tensor]:
    """(N,) fp32 -> codes (padded N,) int8 and scales (blocks,). The mean over draws is exact."""
    shares, scales = _shares(values)
    codes = _codes(shares.abs(), SIGNED_TOP, SIGNED_PER_OCTAVE, draws)
    return (codes * shares.sign()).to(torch.int8).view(-1), scales


def dequantize_signed(codes: torch.Tensor, scales: torch.Tensor, count: int) -> torch.Tensor:
    numbers = codes.float()
    values = _magnitudes(numbers.abs(), SIGNED_TOP, SIGNED_PER_OCTAVE).mul_(numbers.sign_())
    return _scaled(values, scales, count)


def quantize_positive(values: torch.Tensor, draws: torch.Generator | None) -> tuple[torch.Tensor, torch.Tensor]:
    """(N,) fp32 of no sign -> codes (padded N,) uint8 and scales (blocks,).

    What is not 0 never becomes 0, however small: Adam divides by these numbers.
    """
    shares, scales = _shares(values)
    codes = _codes(shares, POSITIVE_TOP, POSITIVE_PER_OCTAVE, draws)
    codes = torch.where(shares > 0, codes.clamp(min=1), codes)
    return codes.to(torch.uint8).view(-1), scales


def dequantize_positive(codes: torch.Tensor, scales: torch.Tensor, count: int) -> torch.Tensor:
    return _scaled(_magnitudes(codes.float(), POSITIVE_TOP, POSITIVE_PER_OCTAVE), scales, count)


def _shares(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers as shares of the largest magnitude of their block, (blocks, 256), and those magnitudes."""
    blocks = F.pad(values, (0, padded(values.numel()) - values.numel())).view(-1, BLOCK)
    scales = blocks.abs().amax(dim=1)
    return blocks / scales.clamp(min=_TINY)[:, None], scales


def _codes(shares: torch.Tensor, top: int, per_octave: int, draws: torch.Generator | None) -> torch.Tensor:
    below = (top + per_octave * shares.clamp(min=_TINY).log2()).floor_().clamp_(0, top - 1)
    low, high = _magnitudes(below, top, per_octave), _magnitudes(below + 1, top, per_octave)
    up = torch.rand(shares.shape, device=shares.device, generator=draws) < (shares - low) / (high - low)
    return below + up


def _magnitudes(codes: torch.Tensor, top: int, per_octave: int) -> torch.Tensor:
    """Code 0 is 0; the topmost is 1; each octave below has the same number of codes."""
    return torch.exp2((codes - top) / per_octave).mul_(codes > 0)


def _scaled(values: torch.Tensor, scales: torch.Tensor, count: int) -> torch.Tensor:
    return values.view(-1, BLOCK).mul_(scales[:, None]).view(-1)[:count]
