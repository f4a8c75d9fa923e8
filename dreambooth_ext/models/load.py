"""Checkpoint files of the ldm layout as loaded models. Everything comes from the file, its sidecar and this package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import BadNumbers
from . import noise
from .checkpoint_file import DTYPES, CheckpointFile, is_finite
from .convert import read_part, resolved
from .family import EMA, UNET, Family, detect
from .layout import PartLayout, layouts
from .networks import built, fill, shapes_of
from .prediction import prediction_of
from .sidecar import Sidecar, read_sidecar
from .stable_diffusion import StableDiffusion
from .tokenizer import Tokenizer
from .vae_file import open_with_vae, vae_tensors


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint is. `resolution` in px; `dtype` is that of the UNet's weights: "fp32", "fp16", "bf16"."""

    path: Path
    family: Family
    inpainting: bool
    prediction_type: str
    zero_terminal_snr: bool
    resolution: int
    dtype: str


def load_checkpoint(
    path: Path, *, dtype: torch.dtype = torch.float32, vae: Path | None = None, prediction_type: str = "auto",
    dtypes: Mapping[str, torch.dtype] | None = None,
) -> StableDiffusion:
    """Load a .safetensors or .ckpt file of SD 1.x, 2.x or SDXL, whatever its size, onto the CPU, in eval mode.

    `vae` names another VAE file to be used instead of the model's own, which may be lacking. `prediction_type` overrides
    what the file and its sidecar say, unless "auto". `dtypes` by part ("unet", "text_encoder", ...) go before `dtype`.
    Raises NotACheckpoint, UnsafeCheckpoint, UnsupportedFamily, MissingTensors and BadNumbers.
    """
    path = Path(path)
    with open_with_vae(path, vae) as file:
        family, sidecar, parts = recognise(file)
        modules = {}
        for layout in parts:
            module = built(layout, path.name)
            rules = resolved(layout.rules, file.shapes, shapes_of(module), path.name)
            if layout.part == "vae" and vae is not None:
                tensors = vae_tensors(Path(vae), shapes_of(module), dtype)
            else:
                tensors = read_part(file, rules, (dtypes or {}).get(layout.part, dtype))
            fill(module, tensors)
            modules[layout.part] = module.eval()
        asked = modules["unet"] if modules["unet"].dtype == torch.float32 else None  # narrower answers may mislead
        kind, zero_snr = prediction_of(file, family, sidecar, asked, prediction_type)
    return model_of(family, sidecar, modules, kind, zero_snr, path)


def inspect(
    path: Path, *, prediction_type: str = "auto", check_numbers: bool = True, vae: Path | None = None
) -> CheckpointInfo:
    """Judge a checkpoint file without loading it: same errors as `load_checkpoint`, about one tensor of memory.

    `vae`, another VAE file to be used with it, is judged as well, and loaded for that. Only a file of SD 2.x whose prediction
    type stands nowhere has its UNet loaded, to be asked.
    """
    path = Path(path)
    with open_with_vae(path, vae) as file:
        family, sidecar, parts = recognise(file)
        for layout in parts:
            wanted = shapes_of(built(layout, path.name))
            resolved(layout.rules, file.shapes, wanted, path.name)
            if layout.part == "vae" and vae is not None:
                vae_tensors(vae, wanted, None)
        if check_numbers:
            require_finite(file)
        kind, zero_snr = prediction_of(file, family, sidecar, None, prediction_type)
        entrance = file.entries[f"{UNET}input_blocks.0.0.weight"]
    names = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}
    return CheckpointInfo(path, family, entrance.shape[1] == 9, kind, zero_snr, resolution_of(family, sidecar, kind),
                          names.get(entrance.dtype, entrance.dtype))


def recognise(file: CheckpointFile, *, vae: bool = True) -> tuple[Family, Sidecar | None, tuple[PartLayout, ...]]:
    """Family, sidecar and structure of an open file, with or without its `vae`. Raises the errors of `load_checkpoint` that
    these can meet.
    """
    dtypes = {name: entry.dtype for name, entry in file.entries.items()}
    family = detect(file.shapes, dtypes, file.path.name)
    sidecar = read_sidecar(file.path)
    return family, sidecar, layouts(file.shapes, family, sidecar, file.path.name, vae=vae)


def require_finite(file: CheckpointFile) -> None:
    """Raise BadNumbers if any weight is NaN or Inf; reads the whole file in pieces."""
    for name, entry in file.entries.items():
        if not entry.is_float or name.startswith(EMA):
            continue
        for chunk in file.chunks(name):
            if not is_finite(chunk.view(DTYPES[entry.dtype])):
                raise BadNumbers(f"{file.path.name} is to be used", f"{name} holds NaN or Inf",
                                 "The file is damaged, or its training diverged; use another.")


def resolution_of(family: Family, sidecar: Sidecar | None, prediction_type: str | None = None) -> int:
    """Side, in px, of the pictures that the model was trained on; without a `prediction_type`, by that of the sidecar."""
    kind = prediction_type or (sidecar.prediction_type if sidecar else None)
    if family.key == "sd2" and kind == "v_prediction":
        return 768  # its own sidecar says 64 latents, as does that of the 512-px model
    if sidecar is not None and sidecar.image_size:
        return sidecar.image_size * 8
    return family.resolution


def load_outline(path: Path, *, prediction_type: str = "auto", vae: Path | None = None) -> StableDiffusion:
    """A checkpoint's networks on the meta device: their shapes without their numbers. Same errors as `inspect`."""
    path = Path(path)
    with open_with_vae(path, vae) as file:
        family, sidecar, parts = recognise(file)
        modules = {layout.part: built(layout, path.name) for layout in parts}
        kind, zero_snr = prediction_of(file, family, sidecar, None, prediction_type)
    return model_of(family, sidecar, modules, kind, zero_snr, path)


def model_of(
    family: Family, sidecar: Sidecar | None, modules: Mapping[str, Any], prediction_type: str, zero_terminal_snr: bool, path: Path
) -> StableDiffusion:
    """A model of these networks by part, which may be weightless."""
    resolution = resolution_of(family, sidecar, prediction_type)
    modules["unet"].register_to_config(sample_size=resolution // 8)
    return StableDiffusion(
        family=family, unet=modules["unet"], vae=modules["vae"],
        text_encoders=tuple(modules[row.part] for row in family.text_encoders),
        tokenizers=tuple(Tokenizer(row.pad_token) for row in family.text_encoders),
        prediction_type=prediction_type, zero_terminal_snr=zero_terminal_snr, path=path, resolution=resolution,
        linear_start=(sidecar.linear_start if sidecar else None) or noise.LINEAR_START,
        linear_end=(sidecar.linear_end if sidecar else None) or noise.LINEAR_END,
    )
