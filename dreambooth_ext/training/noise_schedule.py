"""The forward process: how noise is added, and what the network is to predict (Ho et al. 2020; Salimans and Ho 2022)."""

from __future__ import annotations

import torch


class NoiseSchedule:
    """alphas_cumprod (T,), read as signal and noise at each timestep. All methods take timesteps (B,) int64."""

    def __init__(self, alphas_cumprod: torch.Tensor) -> None:
        self.alphas_cumprod = alphas_cumprod

    def to(self, device: torch.device | str) -> NoiseSchedule:
        return NoiseSchedule(self.alphas_cumprod.to(device))

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """sqrt(a) x + sqrt(1 - a) eps, equation 4 of DDPM."""
        signal, sigma = self._at(timesteps, latents)
        return signal * latents + sigma * noise

    def velocity(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """sqrt(a) eps - sqrt(1 - a) x, progressive distillation, appendix D."""
        signal, sigma = self._at(timesteps, latents)
        return signal * noise - sigma * latents

    def snr(self, timesteps: torch.Tensor) -> torch.Tensor:
        """(B,) a / (1 - a): signal-to-noise ratio, in power."""
        alphas = self.alphas_cumprod[timesteps]
        return alphas / (1 - alphas)

    def _at(self, timesteps: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        alphas = self.alphas_cumprod.to(like.dtype)[timesteps]
        shape = (-1,) + (1,) * (like.dim() - 1)
        return (alphas**0.5).view(shape), ((1 - alphas) ** 0.5).view(shape)
