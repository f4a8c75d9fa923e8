"""A loaded model: its networks, and what about it the networks do not tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import noise
from .family import Family
from .networks import in_dtype
from .tokenizer import Tokenizer


@dataclass
class StableDiffusion:
    """One model of any family. `prediction_type` is "epsilon" or "v_prediction"; `resolution` in px."""

    family: Family
    unet: Any  # diffusers.UNet2DConditionModel
    vae: Any  # diffusers.AutoencoderKL
    text_encoders: tuple[Any, ...]  # transformers.CLIPTextModel, for SDXL also a CLIPTextModelWithProjection
    tokenizers: tuple[Tokenizer, ...]
    prediction_type: str
    zero_terminal_snr: bool
    path: Path
    resolution: int
    linear_start: float = noise.LINEAR_START
    linear_end: float = noise.LINEAR_END

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The networks under their names in diffusers' folders."""
        rows = self.family.text_encoders
        texts = {row.part: module for row, module in zip(rows, self.text_encoders, strict=True)}
        return {"unet": self.unet, "vae": self.vae, **texts}

    def trained_parts(self, text_encoders: bool) -> dict[str, nn.Module]:
        """The networks that training changes: the UNet, and the text encoders if they are wanted."""
        return {part: module for part, module in self.parts.items()
                if part == "unet" or (text_encoders and part.startswith("text_encoder"))}

    def with_parts(self, others: Mapping[str, Any]) -> StableDiffusion:
        """This model with other networks in the place of those of the same names."""
        parts = {**self.parts, **others}
        return replace(self, unet=parts["unet"], vae=parts["vae"],
                       text_encoders=tuple(parts[row.part] for row in self.family.text_encoders))

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        return tuple(self.parts.values())

    @property
    def text_encoder(self) -> Any:
        return self.text_encoders[0]

    @property
    def inpainting(self) -> bool:
        """True if the UNet also reads a mask and a masked picture (9 channels)."""
        return bool(self.unet.config.in_channels == 9)

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    def alphas_cumprod(self) -> torch.Tensor:
        """(1000,) float64, on the CPU."""
        return noise.alphas_cumprod(self.linear_start, self.linear_end, self.zero_terminal_snr)

    def scheduler_config(self) -> dict[str, Any]:
        """What diffusers' schedulers need to know to work as this model was trained."""
        return {
            "num_train_timesteps": noise.TIMESTEPS, "beta_start": self.linear_start, "beta_end": self.linear_end,
            "beta_schedule": "scaled_linear", "prediction_type": self.prediction_type, "clip_sample": False,
            "set_alpha_to_one": False, "steps_offset": 1, "rescale_betas_zero_snr": self.zero_terminal_snr,
            "timestep_spacing": "trailing" if self.zero_terminal_snr else "leading",
        }

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> StableDiffusion:
        """Move all networks, and cast them if a dtype is given. SDXL's VAE overflows in fp16 and stays in fp32 then."""
        for part, module in self.parts.items():
            in_fp32 = dtype == torch.float16 and part == "vae" and self.family.has_time_ids
            in_dtype(module, torch.float32 if in_fp32 else dtype, device)
        return self

    def eval(self) -> StableDiffusion:
        for module in self.modules:
            module.eval()
        return self

    def requires_grad_(self, wanted: bool) -> StableDiffusion:
        for module in self.modules:
            module.requires_grad_(wanted)
        return self


@contextmanager
def inference(*modules: nn.Module) -> Iterator[None]:
    """In the block the modules are in eval mode, without gradients; afterwards each is in the mode it was in."""
    training = [(module, module.training) for root in modules for module in root.modules()]
    for root in modules:
        root.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, was in training:
            module.training = was
