"""The WebUI's DDIM (Song et al. 2021, eta 0), which is not diffusers': other timesteps, and a last step to t = 1."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image

from ..errors import ConfigError
from ..host import Txt2Img
from ..progress import SILENT, Progress
from .noise import TIMESTEPS
from .stable_diffusion import StableDiffusion, inference
from .text_encoder import Conditioning, encode_prompts
from .unet import predict
from .vae import decode_latents, encode_pictures

Denoiser = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def ddim_timesteps(steps: int) -> list[int]:
    """Ascending, as the WebUI makes them. The first is where sampling ends; all others are evaluated.

    30 steps: 1, 34, ..., 991, which is 30 evaluations; 50 steps: 1, 21, ..., 981, which is 49.
    """
    return [min(timestep + 1, TIMESTEPS - 1) for timestep in range(0, TIMESTEPS, TIMESTEPS // steps)]


def ddim(
    eps: Denoiser, x: torch.Tensor, alphas_cumprod: torch.Tensor, steps: int, progress: Progress = SILENT
) -> torch.Tensor:
    """Denoise `x` (B, 4, h, w), float32. `eps(x, timesteps)` predicts the noise in it at (B,) timesteps.

    Equation 12 of Song et al. (2021) with sigma 0. Raises Cancelled between steps.
    """
    timesteps = ddim_timesteps(steps)
    alphas = alphas_cumprod.float()
    for t, t_next in zip(timesteps[:0:-1], timesteps[-2::-1], strict=True):
        progress.check()
        noise = eps(x, torch.full((x.shape[0],), t, device=x.device, dtype=torch.int64))
        a, a_next = alphas[t].to(x), alphas[t_next].to(x)
        denoised = (x - (1 - a).sqrt() * noise) / a.sqrt()
        x = a_next.sqrt() * denoised + (1 - a_next).sqrt() * noise
    return x


def ddim_sample(
    model: StableDiffusion, noise: torch.Tensor, prompt: Conditioning, negative: Conditioning, *, steps: int,
    guidance_scale: float, progress: Progress = SILENT,
) -> torch.Tensor:
    """Scaled latents (B, 4, h, w) from unit noise of that shape, in float32. Raises Cancelled between steps."""
    x = noise.to(model.device, torch.float32)
    eps = guided_eps(model, prompt, negative, guidance_scale, nothing_masked(model, x))
    return ddim(eps, x, model.alphas_cumprod(), steps, progress)


def guided_eps(
    model: StableDiffusion, positive: Conditioning, negative: Conditioning, guidance_scale: float,
    inpainting_input: torch.Tensor | None = None,
) -> Denoiser:
    """Classifier-free guidance (Ho and Salimans 2022) in one batch of two; velocity is turned into noise."""
    alphas = model.alphas_cumprod().float()
    both = Conditioning.cat([positive, negative])
    weight = next(model.unet.parameters())
    both = both.to(weight.device, weight.dtype)

    def eps(x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        given = x if inpainting_input is None else torch.cat([x, inpainting_input], dim=1)
        out = predict(model.unet, torch.cat([given] * 2).to(weight.dtype), torch.cat([timesteps] * 2), both).float()
        if model.prediction_type == "v_prediction":
            a = alphas.to(x.device)[timesteps].repeat(2)[:, None, None, None]
            out = a.sqrt() * out + (1 - a).sqrt() * torch.cat([x] * 2)
        with_prompt, without = out.chunk(2)
        return without + guidance_scale * (with_prompt - without)

    return eps


def initial_noise(seeds: Sequence[int], height: int, width: int) -> torch.Tensor:
    """(B, 4, height / 8, width / 8) float32: each picture's own, from the CPU generator, as hosts draw it."""
    return torch.stack([
        torch.randn((4, height // 8, width // 8), generator=torch.Generator().manual_seed(seed)) for seed in seeds
    ])


def to_images(pixels: torch.Tensor) -> list[Image.Image]:
    """(B, 3, H, W) in [0, 1] to pictures; truncates to 8 bits as the WebUI does."""
    array = (pixels * 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(picture) for picture in array]


def render(
    model: StableDiffusion, request: Txt2Img, progress: Progress = SILENT, batch_size: int = 8, clip_skip: int = 1
) -> Iterator[Image.Image]:
    """Whole pictures in the order of the seeds. Modules are left in the modes they were in.

    What gives NaN in half precision, as some VAEs do, goes on in fp32.
    Raises ConfigError for what this sampler cannot do, and Cancelled between steps.
    """
    _require_possible(request)
    for start in range(0, len(request.seeds), batch_size):
        progress.check()
        # Not around the yield: whoever takes the pictures has gradients and modes of their own.
        pictures = _render_batch(model, request, request.seeds[start : start + batch_size], progress, clip_skip)
        yield from pictures


def _render_batch(
    model: StableDiffusion, request: Txt2Img, seeds: tuple[int, ...], progress: Progress, clip_skip: int
) -> list[Image.Image]:
    """Decoded one at a time: in the VAE a picture takes more memory than in the UNet."""
    latents = sample_latents(model, request, seeds, progress, clip_skip)
    if widened(latents, progress, model.unet, *model.text_encoders):
        latents = sample_latents(model, request, seeds, progress, clip_skip)
    pictures = []
    with inference(model.vae):
        for latent in latents.split(1):
            pixels = decode_latents(model.vae, latent)
            if widened(pixels, progress, model.vae):
                pixels = decode_latents(model.vae, latent)
            pictures += to_images(pixels)
    return pictures


def widened(result: torch.Tensor, progress: Progress, *modules: Any) -> bool:
    """Whether it holds NaN, and the modules that made it were widened from half to full precision for that."""
    if all(next(module.parameters()).dtype == torch.float32 for module in modules) or not bool(result.isnan().any()):
        return False
    progress.log(f"{type(modules[0]).__name__} gives NaN in half precision: it goes on in fp32")
    for module in modules:
        module.float()
    return True


def encode_request(model: StableDiffusion, request: Txt2Img, clip_skip: int = 1) -> tuple[Conditioning, Conditioning]:
    """Prompt and negative prompt, a row each: all that the text encoders are needed for."""
    with inference(*model.text_encoders):
        size = (request.height, request.width)
        prompt = encode_prompts(model, [request.prompt], clip_skip, size)
        negative = encode_prompts(model, [request.negative_prompt], clip_skip, size)
        if model.family.has_time_ids and not request.negative_prompt:
            negative = negative.zeros_like()
        return prompt, negative


def sample_latents(
    model: StableDiffusion, request: Txt2Img, seeds: Sequence[int], progress: Progress = SILENT, clip_skip: int = 1,
    encoded: tuple[Conditioning, Conditioning] | None = None,
) -> torch.Tensor:
    """What `render` decodes: scaled latents (B, 4, h, w), float32. The VAE is not needed (but for inpainting models).

    `encoded` is what `encode_request` gave, if it was asked before.
    """
    prompt, negative = encoded or encode_request(model, request, clip_skip)
    with inference(model.unet, model.vae):
        return ddim_sample(model, initial_noise(seeds, request.height, request.width), prompt.repeat(len(seeds)),
                           negative.repeat(len(seeds)), steps=request.steps, guidance_scale=request.guidance_scale,
                           progress=progress)


def nothing_masked(model: StableDiffusion, x: torch.Tensor) -> torch.Tensor | None:
    """What an inpainting model reads beside the latents in txt2img: everything masked, a grey picture."""
    if not model.inpainting:
        return None
    grey = torch.zeros((1, 3, x.shape[2] * 8, x.shape[3] * 8))
    masked = encode_pictures(model.vae, grey).mean.to(x).expand(x.shape[0], -1, -1, -1)
    return torch.cat([torch.ones_like(x[:, :1]), masked], dim=1)


def _require_possible(request: Txt2Img) -> None:
    faults = []
    if request.sampler != "DDIM":
        faults.append(f"sampler: {request.sampler} is not there without a WebUI; DDIM is")
    if request.width % 8 or request.height % 8 or min(request.width, request.height) < 8:
        faults.append(f"size: {request.width} x {request.height} px; both must be multiples of 8")
    if not 1 <= request.steps <= TIMESTEPS:
        faults.append(f"steps: {request.steps} is not between 1 and {TIMESTEPS}")
    if faults:
        raise ConfigError(faults)
