"""What a base sees in a picture: activations inside its UNet (DIFT: Tang et al. 2023, "Emergent Correspondence")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..progress import SILENT, Progress
from .sampling import nothing_masked, widened
from .stable_diffusion import StableDiffusion, inference
from .text_encoder import encode_prompts
from .unet import predict
from .vae import encode_pictures

TIMESTEP = 261  # as the paper chose for meaning; finer marks show at lower ones
UP_BLOCK = 1  # likewise: after the second block of the way up
PLACES = 8  # per axis, at most: finer maps are averaged down


def features(
    model: StableDiffusion, images: Sequence[Image.Image], side: int, progress: Progress = SILENT, batch_size: int = 4
) -> np.ndarray:
    """(N, C, h, w) float32, h and w at most PLACES, of RGB pictures, each brought to `side` x `side` px.

    Every picture gets the same noise, and the prompt is empty: what differs comes from the pictures alone. What gives NaN in half
    precision goes on in fp32, as in `render`.
    Raises Cancelled between batches.
    """
    found = []
    with inference(*model.modules):
        prompt = encode_prompts(model, [""], 1, (side, side))
        noise = torch.randn((1, 4, side // 8, side // 8), generator=torch.Generator().manual_seed(0))
        for start in range(0, len(images), batch_size):
            progress.check()
            pixels = torch.stack([_pixels(image, side) for image in images[start : start + batch_size]])
            latents = encode_pictures(model.vae, pixels).mean
            maps = _seen(model, latents, noise, prompt)
            if widened(maps, progress, model.unet, *model.text_encoders):
                prompt = encode_prompts(model, [""], 1, (side, side))
                maps = _seen(model, latents, noise, prompt)
            found.append(maps)
    return torch.cat(found).numpy()


def _seen(model: StableDiffusion, latents: torch.Tensor, noise: torch.Tensor, prompt: Any) -> torch.Tensor:
    """What comes out of the chosen block for clean latents (B, 4, h, w)."""
    weight = next(model.unet.parameters())
    level = model.alphas_cumprod()[TIMESTEP].to(weight.device, torch.float32)
    noisy = level.sqrt() * latents.to(weight.device, torch.float32) + (1 - level).sqrt() * noise.to(weight.device)
    masked = nothing_masked(model, noisy)
    given = noisy if masked is None else torch.cat([noisy, masked], dim=1)
    caught: list[torch.Tensor] = []
    blocks = model.unet.up_blocks
    handle = blocks[min(UP_BLOCK, len(blocks) - 1)].register_forward_hook(lambda module, inputs, out: caught.append(out))
    try:
        timesteps = torch.full((len(latents),), TIMESTEP, device=weight.device, dtype=torch.int64)
        predict(model.unet, given.to(weight.dtype), timesteps, prompt.repeat(len(latents)).to(weight.device, weight.dtype))
    finally:
        handle.remove()
    maps = caught[0].float()
    size = (min(PLACES, maps.shape[2]), min(PLACES, maps.shape[3]))
    return torch.nn.functional.adaptive_avg_pool2d(maps, size).cpu()


def _pixels(image: Image.Image, side: int) -> torch.Tensor:
    """(3, side, side) in [-1, 1]."""
    square = image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 127.5 - 1
