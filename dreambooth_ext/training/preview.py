"""Pictures of fixed prompts at fixed seeds, as txt2img would render them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from ..config import TrainConfig
from ..files import write_atomically
from ..host import Txt2Img
from ..models.sampling import encode_request, sample_latents, to_images
from ..models.stable_diffusion import StableDiffusion, inference
from ..models.vae import decode_latents
from .memory import on_device


def render_previews(model: StableDiffusion, config: TrainConfig, *, unet_yields: bool = False) -> list[Image.Image]:
    """One picture a prompt.

    The UNet stands on its device; text encoders and VAE visit it, one after the other. With `unet_yields` it leaves
    meanwhile, so that a preview never sets the run's peak of memory.
    """
    device, side = model.device, config.resolution or model.resolution
    instead_of = model.unet if unet_yields else None
    requests = [Txt2Img(prompt, (config.preview_seed,), steps=config.preview_steps,
                        guidance_scale=config.preview_guidance_scale, width=side, height=side)
                for prompt in config.shown_prompts]
    with on_device(torch.nn.ModuleList(model.text_encoders), device, instead_of):
        encoded = [encode_request(model, request, config.clip_skip) for request in requests]
    latents = [sample_latents(model, request, request.seeds, encoded=texts)
               for request, texts in zip(requests, encoded, strict=True)]
    with on_device(model.vae, device, instead_of), inference(model.vae):
        return [image for latent in latents for image in to_images(decode_latents(model.vae, latent))]


def write_previews(images: Sequence[Image.Image], folder: Path, step: int) -> list[Path]:
    """As step-000100-0.png and so on. Raises StorageError."""
    paths = [folder / f"step-{step:06d}-{number}.png" for number in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        with write_atomically(path) as stream:
            image.save(stream, "PNG")
    return paths
