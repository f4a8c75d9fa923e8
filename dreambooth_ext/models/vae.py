"""Pictures to latents and back."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch


class Posterior(NamedTuple):
    """The VAE's Gaussian about a picture's latents, both (B, 4, h, w) and already scaled as the UNet expects them."""

    mean: torch.Tensor
    std: torch.Tensor

    def sample(self, generator: torch.Generator | None = None) -> torch.Tensor:
        noise = torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype,
                            device=generator.device if generator is not None else self.mean.device)
        return self.mean + self.std * noise.to(self.mean.device)


def encode_pictures(vae: Any, pixels: torch.Tensor) -> Posterior:
    """Posterior of (B, 3, H, W) pictures in [-1, 1]; H and W are multiples of 8."""
    weight = next(vae.parameters())
    posterior = vae.encode(pixels.to(weight.device, weight.dtype)).latent_dist
    scale = vae.config.scaling_factor
    return Posterior(posterior.mean * scale, posterior.std * scale)


def decode_latents(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """(B, 4, h, w) scaled latents to (B, 3, H, W) pictures in [0, 1]."""
    weight = next(vae.parameters())
    pixels = vae.decode(latents.to(weight.device, weight.dtype) / vae.config.scaling_factor).sample
    return (pixels.float() / 2 + 0.5).clamp(0, 1)
