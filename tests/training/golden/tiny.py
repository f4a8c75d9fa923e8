"""A tiny Stable Diffusion and ten pictures, the same everywhere, for comparing losses with diffusers' own script."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

SIDE = 64
PICTURES = 5
SEED = 11
STEPS = 7
BATCH = 2
LEARNING_RATE = 1e-4
PRIOR_LOSS_WEIGHT = 0.7
INSTANCE_PROMPT, CLASS_PROMPT = "a photo of rxz dog", "a photo of dog"


def modules():
    """(unet, vae, text encoder) with weights drawn from each tensor's own name."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    unet = UNet2DConditionModel(
        sample_size=SIDE // 8, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=32, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
    vae = AutoencoderKL(
        block_out_channels=(32, 32, 32, 64), layers_per_block=1, sample_size=SIDE,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)
    text_encoder = CLIPTextModel(CLIPTextConfig(
        vocab_size=49408, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        bos_token_id=49406, eos_token_id=49407))
    for module in (unet, vae, text_encoder):
        _draw(module)
        module.eval()
    return unet, vae, text_encoder


def write_pictures(folder: Path, kind: str) -> Path:
    """PICTURES PNG files of noise on a gradient, drawn from their names."""
    folder.mkdir(parents=True, exist_ok=True)
    ramp = np.linspace(0, 120, SIDE)[None, :, None]
    for number in range(PICTURES):
        noise = np.random.RandomState(_seed(f"{kind}{number}")).randint(0, 130, (SIDE, SIDE, 3))
        Image.fromarray((ramp + noise).astype(np.uint8)).save(folder / f"{kind}{number}.png")
    return folder


@torch.no_grad()
def _draw(module) -> None:
    for name, parameter in module.named_parameters():
        name = name.removeprefix("text_model.")
        random = np.random.RandomState(_seed(name)).standard_normal(tuple(parameter.shape)).astype(np.float32)
        if parameter.dim() == 1:
            value = 0.05 * random + (1.0 if name.endswith("weight") else 0.0)
        else:
            value = random / np.sqrt(np.prod(parameter.shape[1:])) if "embedding" not in name else 0.1 * random
        parameter.copy_(torch.from_numpy(np.ascontiguousarray(value)))


def _seed(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
