"""The noise schedule that Stable Diffusion was trained with ("scaled linear", Rombach et al. 2022)."""

from __future__ import annotations

import torch

TIMESTEPS = 1000
LINEAR_START, LINEAR_END = 0.00085, 0.012
# What the WebUI puts in place of 0 at the last timestep, so that eps can be had from v there.
LAST_OF_ZERO_TERMINAL_SNR = 4.8973451890853435e-08


def betas(linear_start: float = LINEAR_START, linear_end: float = LINEAR_END) -> torch.Tensor:
    """(1000,) float64: the variance of the noise that each timestep adds."""
    return torch.linspace(linear_start**0.5, linear_end**0.5, TIMESTEPS, dtype=torch.float64) ** 2


def alphas_cumprod(
    linear_start: float = LINEAR_START, linear_end: float = LINEAR_END, zero_terminal_snr: bool = False
) -> torch.Tensor:
    """(1000,) float64: the share of the signal's variance at each timestep.

    With `zero_terminal_snr` rescaled by Algorithm 1 of Lin et al. (2023), except that the last is not quite 0.
    """
    alphas = torch.cumprod(1 - betas(linear_start, linear_end), dim=0)
    if not zero_terminal_snr:
        return alphas
    root = alphas.sqrt()
    alphas = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
    alphas[-1] = LAST_OF_ZERO_TERMINAL_SNR
    return alphas
