"""Pictures to latents and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..errors import MissingTensors
from . import ldm_keys
from .checkpoint_file import CheckpointFile


def encode_pictures(vae: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation, both (B, 4, H/8, W/8) and scaled, of the posterior of (B, 3, H, W) in -1..1."""
    posterior = vae.encode(pixels).latent_dist
    scale = vae.config.scaling_factor
    return posterior.mean * scale, posterior.std * scale


def decode_latents(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) in 0..1 from scaled latents (B, 4, H/8, W/8)."""
    return (vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0] / 2 + 0.5).clamp(0, 1)


def vae_file_names(file: CheckpointFile) -> dict[str, str]:
    """{ldm name without prefix: name in the file} of a VAE file or of the VAE in a whole checkpoint."""
    prefix = ldm_keys.VAE_PREFIX if any(name.startswith(ldm_keys.VAE_PREFIX) for name in file) else ""
    return {name[len(prefix):]: name for name in file if name.startswith(prefix)}


def load_vae_into(vae: Any, path: Path, dtype: torch.dtype) -> None:
    """Replace the weights of `vae` by those of a VAE file in the original layout. Raises MissingTensors."""
    levels = len(vae.config.block_out_channels)
    with CheckpointFile(path) as file:
        names, state = vae_file_names(file), {}
        for key, former in vae.state_dict().items():
            name = names.get(ldm_keys.vae_name(key, levels))
            if name is None or file.tensor(name).numel() != former.numel():
                raise MissingTensors(f"{path.name} is to be used as VAE", f"it has no fitting {key}",
                                     "Choose a VAE of the base's own family.")
            state[key] = file.tensor(name).to(dtype).reshape(former.shape)
    vae.load_state_dict(state, strict=True, assign=True)
