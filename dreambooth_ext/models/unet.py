"""One call of the UNet."""

from __future__ import annotations

from typing import Any

import torch

from .text_encoder import Conditioning


def predict(
    unet: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning
) -> torch.Tensor:
    """What the UNet predicts (noise or velocity) for (B, 4, h, w) latents at (B,) timesteps: (B, 4, h, w).

    Inpainting models take (B, 9, h, w): latents, mask, latents of the masked picture.
    """
    added = None
    if conditioning.pooled is not None:
        added = {"text_embeds": conditioning.pooled, "time_ids": conditioning.time_ids}
    return unet(noisy_latents, timesteps, conditioning.hidden_states, added_cond_kwargs=added).sample
