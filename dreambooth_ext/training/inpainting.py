"""What an inpainting model is shown beside the latents: which part is to be painted, and the picture without it."""

from __future__ import annotations

from typing import Any

import torch

from ..models.vae import encode_pictures

VARIANTS = 4  # masks of each picture; the first covers all of it, as txt2img's does
SIDES = (0.25, 0.9)  # a mask's sides as shares of the picture's


def masks_of(height: int, width: int, draws: torch.Generator) -> torch.Tensor:
    """(VARIANTS, 1, height, width) float32, 1 where to paint: everything, then boxes and ellipses in turn."""
    rows = torch.arange(height)[:, None] + 0.5
    columns = torch.arange(width)[None, :] + 0.5
    masks = [torch.ones(height, width)]
    low, high = SIDES
    for number in range(1, VARIANTS):
        share, place = torch.rand(2, generator=draws), torch.rand(2, generator=draws)
        tall, wide = ((low + (high - low) * share) * torch.tensor([height, width])).tolist()
        top, left = (place * torch.tensor([height - tall, width - wide])).tolist()
        across = (rows - top - tall / 2).abs() / (tall / 2), (columns - left - wide / 2).abs() / (wide / 2)
        inside = torch.maximum(*across) <= 1 if number % 2 else across[0] ** 2 + across[1] ** 2 <= 1
        masks.append(inside.float())
    return torch.stack(masks)[:, None]


def masked_inputs(vae: Any, pixels: torch.Tensor, draws: torch.Generator) -> torch.Tensor:
    """(VARIANTS, 5, h, w) float32 for one (3, H, W) picture in -1..1: mask, then scaled latents of what is left of it.

    Made once for each picture, so that the VAE is not needed while training.
    """
    rows = []
    for mask in masks_of(pixels.shape[-2], pixels.shape[-1], draws):
        mean = encode_pictures(vae, (pixels * (mask < 0.5))[None]).mean.float().cpu()
        rows.append(torch.cat([mask[None, :, ::8, ::8], mean], dim=1))
    return torch.cat(rows)
