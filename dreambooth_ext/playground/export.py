"""The trained networks as one fp16 .safetensors in SD 1.x's layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from ..models import noise
from ..models.config_layout import layout_of_config
from ..models.convert import to_ldm
from ..models.family import SD1
from ..models.networks import tensors_of
from . import train_decoder, train_unet

MOST_BYTES = 32_000_000
METADATA = {
    "modelspec.sai_model_spec": "1.0.0",
    "modelspec.architecture": "stable-diffusion-v1",
    "modelspec.title": "playground",
    "modelspec.description": "Dreambooth playground base: coloured shapes on plain backgrounds, 64 pixels",
    "modelspec.license": "MIT",
    "modelspec.resolution": "64x64",
    "modelspec.prediction_type": "epsilon",
    "format": "pt",
}


def schedule_buffers() -> dict[str, torch.Tensor]:
    """The schedule as SD 1.x files carry it, float32: in fp16 a host that reads it would sample differently."""
    alphas = noise.alphas_cumprod()
    before = torch.cat([torch.ones(1, dtype=torch.float64), alphas[:-1]])
    buffers = {
        "betas": noise.betas(),
        "alphas_cumprod": alphas,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": alphas.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - alphas).sqrt(),
    }
    return {name: value.float() for name, value in buffers.items()}


def ldm_state(out: Path) -> dict[str, torch.Tensor]:
    """All tensors under their ldm names."""
    unet, text = train_unet.load_average(out)
    vae = train_decoder.load_vae(out)
    state = schedule_buffers()
    for part, module in (("unet", unet), ("vae", vae), ("text_encoder", text)):
        ours, config = tensors_of(module), module.config
        layout = layout_of_config(part, config if isinstance(config, Mapping) else config.to_dict(), SD1)
        rules = [rule for rule in layout.rules if rule.ours[0] in ours]
        state |= {name: value.half() for name, value in to_ldm(ours, rules).items()}
    state[f"{SD1.text_encoders[0].prefix}embeddings.position_ids"] = torch.arange(77)[None]
    return {name: value.contiguous() for name, value in state.items()}


def export(out: Path) -> Path:
    """Write OUT/playground.safetensors. Raises ValueError if it is larger than the package may carry."""
    path = out / "playground.safetensors"
    save_file(ldm_state(out), path, METADATA)
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; at most {MOST_BYTES} are allowed")
    return path
