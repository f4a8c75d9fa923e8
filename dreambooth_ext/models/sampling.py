"""The WebUI's DDIM: its timesteps are not diffusers', so that our pictures are those that txt2img will show.

Denoising diffusion implicit models (Song et al., 2021), eta = 0, equation 12.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from ..host import Txt2Img
from ..progress import SILENT, Progress
from .load import TRAIN_TIMESTEPS, StableDiffusion
from .text_encoder import Conditioning, encode_prompts
from .vae import decode_latents

if TYPE_CHECKING:
    from PIL.Image import Image


def ddim_timesteps(steps: int) -> list[int]:
    """The WebUI's timesteps, ascending: every (1000 // steps)th plus one. All but the first are evaluated.

    30 steps: 34 ... 991, with 1 as the end; 50 steps evaluate only 49.
    """
    return [min(t + 1, TRAIN_TIMESTEPS - 1) for t in range(0, TRAIN_TIMESTEPS, TRAIN_TIMESTEPS // steps)]


def predict(unet: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
    """The UNet's output (B, 4, h, w): noise or v, as the model predicts."""
    extra = None
    if conditioning.pooled is not None:
        extra = {"text_embeds": conditioning.pooled, "time_ids": conditioning.time_ids}
    return unet(noisy_latents, timesteps, conditioning.hidden_states, added_cond_kwargs=extra, return_dict=False)[0]


def ddim_sample(model: StableDiffusion, noise: torch.Tensor, prompt: Conditioning, negative: Conditioning, *,
                steps: int, guidance_scale: float, progress: Progress = SILENT) -> torch.Tensor:
    """Latents (B, 4, h, w) from unit noise of that shape. Stops between two steps with Cancelled."""
    alphas = model.alphas_cumprod().to(noise.device)
    timesteps = ddim_timesteps(steps)
    latents = noise
    for index in range(len(timesteps) - 1, 0, -1):
        progress.check()
        alpha, alpha_before = alphas[timesteps[index]], alphas[timesteps[index - 1]]
        eps = _guided_eps(model, latents, timesteps[index], alpha, prompt, negative, guidance_scale)
        denoised = (latents - (1 - alpha).sqrt() * eps) / alpha.sqrt()
        latents = alpha_before.sqrt() * denoised + (1 - alpha_before).sqrt() * eps
    return latents


def initial_noise(seeds: Sequence[int], height: int, width: int, channels: int = 4) -> torch.Tensor:
    """(len(seeds), channels, height / 8, width / 8): each picture's noise comes from its own seed, drawn on the CPU."""
    shape = (channels, height // 8, width // 8)
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def render(model: StableDiffusion, request: Txt2Img, progress: Progress = SILENT, *, batch_size: int = 8,
           clip_skip: int = 1) -> Iterator[Image]:
    """Whole pictures in the order of the seeds. Modules are put back into the mode they were in."""
    from PIL import Image

    device, dtype = model.unet.device, model.unet.dtype
    with inference(*model.modules):
        negative = encode_prompts(model, [request.negative_prompt], clip_skip).to(dtype)
        prompt = encode_prompts(model, [request.prompt], clip_skip).to(dtype)
    for start in range(0, len(request.seeds), batch_size):
        progress.check()
        seeds = request.seeds[start : start + batch_size]
        with inference(*model.modules):
            noise = initial_noise(seeds, request.height, request.width, model.vae.config.latent_channels)
            latents = ddim_sample(model, noise.to(device, dtype), prompt[[0] * len(seeds)], negative[[0] * len(seeds)],
                                  steps=request.steps, guidance_scale=request.guidance_scale, progress=progress)
            pixels = decode_latents(model.vae, latents.to(model.vae.dtype)).permute(0, 2, 3, 1).float().cpu()
        # Truncated, not rounded, as the WebUI does.
        yield from (Image.fromarray(picture) for picture in (pixels * 255).to(torch.uint8).numpy())


@contextmanager
def inference(*modules: Any) -> Iterator[None]:
    """eval mode and no gradients inside; the modes are restored whatever happens."""
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.eval()
        with torch.no_grad():
            yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.train(mode)


def _guided_eps(model: StableDiffusion, latents: torch.Tensor, timestep: int, alpha: torch.Tensor, prompt: Conditioning,
                negative: Conditioning, guidance_scale: float) -> torch.Tensor:
    """Classifier-free guidance (Ho and Salimans, 2022), both halves in one forward pass."""
    steps = torch.full((2 * len(latents),), timestep, device=latents.device, dtype=torch.long)
    output = predict(model.unet, torch.cat([latents, latents]), steps, Conditioning.cat([prompt, negative]))
    if model.prediction_type == "v_prediction":
        output = alpha.sqrt() * output + (1 - alpha).sqrt() * torch.cat([latents, latents])
    with_prompt, without = output.chunk(2)
    return without + guidance_scale * (with_prompt - without)
