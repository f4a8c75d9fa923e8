"""A checkpoint file as diffusers and transformers modules, and back to a folder that diffusers loads. Offline."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import BadNumbers, MissingTensors
from . import ldm_keys
from .checkpoint_file import CheckpointFile, TensorInfo
from .family import Family, detect
from .layout import Layout, layout_of

TRAIN_TIMESTEPS = 1000
# One entry of each module's weights file in a diffusers folder.
WEIGHT_FILES = {"unet": "unet/diffusion_pytorch_model.safetensors", "vae": "vae/diffusion_pytorch_model.safetensors",
                "text_encoder": "text_encoder/model.safetensors"}


@dataclass
class StableDiffusion:
    """A whole model in memory. `resolution` is the side, in pixels, of the pictures it was made for."""

    family: Family
    unet: Any
    vae: Any
    text_encoders: tuple[Any, ...]
    tokenizers: tuple[Any, ...]
    prediction_type: str
    zero_terminal_snr: bool
    path: Path
    resolution: int
    linear_start: float = 0.00085
    linear_end: float = 0.0120

    @property
    def text_encoder(self) -> Any:
        return self.text_encoders[0]

    @property
    def modules(self) -> tuple[Any, ...]:
        return (self.unet, self.vae, *self.text_encoders)

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> StableDiffusion:
        for module in self.modules:
            module.to(device=device, dtype=dtype)
        return self

    def alphas_cumprod(self) -> torch.Tensor:
        """(1000,) float32: the cumulative product of 1 - beta, "scaled linear" as in latent diffusion (LDM, 2022)."""
        root = torch.linspace(self.linear_start**0.5, self.linear_end**0.5, TRAIN_TIMESTEPS, dtype=torch.float64)
        return torch.cumprod(1.0 - root**2, dim=0).to(torch.float32)

    def scheduler_config(self) -> dict[str, Any]:
        """What diffusers' schedulers need to know to work as this model was trained."""
        return {"num_train_timesteps": TRAIN_TIMESTEPS, "beta_start": self.linear_start, "beta_end": self.linear_end,
                "beta_schedule": "scaled_linear", "prediction_type": self.prediction_type, "clip_sample": False,
                "set_alpha_to_one": False, "steps_offset": 1, "rescale_betas_zero_snr": self.zero_terminal_snr}


@dataclass(frozen=True)
class Summary:
    """What can be told of a file from its names and shapes alone."""

    family: Family
    resolution: int
    prediction_type: str


def tokenizer_folder() -> Path:
    """CLIP's vocabulary, packaged."""
    return Path(__file__).parent / "clip_tokenizer"


def load_tokenizer() -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(str(tokenizer_folder()), local_files_only=True)


def inspect(path: Path) -> Summary:
    """Judge a file by its names and shapes and all its numbers. Raises CheckpointError of every kind."""
    with CheckpointFile(path) as file:
        family = detect(file.tensors, path)
        layout = layout_of(file.tensors, family, path)
        for prefix, wanted in _wanted(family, layout).items():
            _require_tensors(file, prefix, wanted)
            for name in wanted:
                _require_finite(prefix + name, file.tensor(prefix + name), path)
    return Summary(family, layout.resolution, layout.prediction_type)


def load_checkpoint(path: Path, *, dtype: torch.dtype = torch.float32, vae: Path | None = None,
                    prediction_type: str = "auto") -> StableDiffusion:
    """Load a .safetensors or .ckpt file of the original layout. Raises CheckpointError of every kind.

    `vae` names another VAE file to be used in place of the file's own.
    """
    with CheckpointFile(path) as file:
        family = detect(file.tensors, path)
        layout = layout_of(file.tensors, family, path)
        modules = _empty_modules(layout)
        for module, (prefix, names) in zip(modules, _names_of(family, layout, modules).items(), strict=True):
            _fill(module, file, prefix, names, dtype)
    if vae is not None:
        from .vae import load_vae_into

        load_vae_into(modules[1], vae, dtype)
    prediction = layout.prediction_type if prediction_type == "auto" else prediction_type
    model = StableDiffusion(family, modules[0], modules[1], (modules[2],), (load_tokenizer(),), prediction, False, path,
                            layout.resolution, layout.linear_start, layout.linear_end)
    for module in model.modules:
        module.eval()
    return model


def save_diffusers(model: StableDiffusion, folder: Path) -> None:
    """Write a folder that `DiffusionPipeline.from_pretrained` loads."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        vae=model.vae, text_encoder=model.text_encoder, tokenizer=model.tokenizers[0], unet=model.unet,
        scheduler=DDIMScheduler(**model.scheduler_config()), safety_checker=None, feature_extractor=None,  # type: ignore
        requires_safety_checker=False)
    pipeline.save_pretrained(str(folder), safe_serialization=True)


def load_diffusers(folder: Path, base: StableDiffusion) -> StableDiffusion:
    """The model of a folder written by `save_diffusers`; `base` tells what the folder does not (family, path)."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    unet = UNet2DConditionModel.from_pretrained(str(folder), subfolder="unet", local_files_only=True)
    vae = AutoencoderKL.from_pretrained(str(folder), subfolder="vae", local_files_only=True)
    text = CLIPTextModel.from_pretrained(str(folder / "text_encoder"), local_files_only=True)
    model = replace(base, unet=unet, vae=vae, text_encoders=(text,))
    for module in model.modules:
        module.eval()
    return model


def ldm_names(part: str, keys: Any, layout: Layout, family: Family) -> dict[str, str]:
    """{name in diffusers' or transformers' module: full name in the checkpoint file} of one part of the model."""
    if part == "unet":
        layers = layout.unet["layers_per_block"]
        return {key: ldm_keys.UNET_PREFIX + ldm_keys.unet_name(key, layers, layout.attention) for key in keys}
    if part == "vae":
        levels = len(layout.vae["block_out_channels"])
        return {key: ldm_keys.VAE_PREFIX + ldm_keys.vae_name(key, levels) for key in keys}
    return {key: family.text_prefix + ldm_keys.text_name(key) for key in keys if not key.endswith("position_ids")}


def _empty_modules(layout: Layout) -> tuple[Any, Any, Any]:
    """UNet, VAE and text encoder whose parameters take no memory yet; buffers are real."""
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with init_empty_weights(include_buffers=False):
        return (UNet2DConditionModel(**layout.unet), AutoencoderKL(**layout.vae),
                CLIPTextModel(CLIPTextConfig(**layout.text_encoder)))


def _names_of(family: Family, layout: Layout, modules: tuple[Any, Any, Any]) -> dict[str, dict[str, str]]:
    """{prefix: {module's name: file's name without the prefix}} of UNet, VAE and text encoder, in this order."""
    prefixes = (ldm_keys.UNET_PREFIX, ldm_keys.VAE_PREFIX, family.text_prefix)
    result = {}
    for part, prefix, module in zip(WEIGHT_FILES, prefixes, modules, strict=True):
        names = ldm_names(part, module.state_dict(), layout, family)
        result[prefix] = {key: name[len(prefix):] for key, name in names.items()}
    return result


def _wanted(family: Family, layout: Layout) -> dict[str, dict[str, tuple[int, ...]]]:
    """{prefix: {file's name: shape}} of all tensors that the modules need."""
    modules = _empty_modules(layout)
    result = {}
    for module, (prefix, names) in zip(modules, _names_of(family, layout, modules).items(), strict=True):
        state = module.state_dict()
        result[prefix] = {name: tuple(state[key].shape) for key, name in names.items()}
    return result


def _fill(module: Any, file: CheckpointFile, prefix: str, names: dict[str, str], dtype: torch.dtype) -> None:
    empty = module.state_dict()
    _require_tensors(file, prefix, {name: tuple(empty[key].shape) for key, name in names.items()})
    state = {}
    for key, name in names.items():
        tensor = file.tensor(prefix + name).to(dtype).reshape(empty[key].shape).contiguous()
        _require_finite(prefix + name, tensor, file.path)
        state[key] = tensor
    missing = [key for key in empty if key not in state]  # only integer positions, which the module has made itself
    module.load_state_dict({**state, **{key: empty[key] for key in missing}}, strict=True, assign=True)


def _require_tensors(file: CheckpointFile, prefix: str, wanted: dict[str, tuple[int, ...]]) -> None:
    missing = [name for name in wanted if prefix + name not in file.tensors]
    if missing:
        raise MissingTensors(f"{file.path.name} is to be loaded", f"{len(missing)} tensors are missing, such as {prefix}{missing[0]}",
                             "Use the full checkpoint, or download it again.")
    for name, shape in wanted.items():
        if not _same_shape(prefix + name, file.tensors[prefix + name], shape):
            found = "x".join(map(str, file.tensors[prefix + name].shape))
            raise MissingTensors(f"{file.path.name} is to be loaded",
                                 f"{prefix}{name} is {found} and should be {'x'.join(map(str, shape))}",
                                 "This file was changed by some other program; use the original one.")


def _same_shape(name: str, info: TensorInfo, shape: tuple[int, ...]) -> bool:
    if not info.dtype.is_floating_point:
        return False
    # Old converters wrote the VAE's 1x1 convolutions without their last two dimensions.
    found = info.shape[:2] if ldm_keys.is_vae_projection(name) and info.shape[2:] == (1, 1) else info.shape
    return tuple(found) == shape


def _require_finite(name: str, tensor: torch.Tensor, path: Path) -> None:
    if not bool(torch.isfinite(tensor).all()):
        raise BadNumbers(f"{path.name} is to be used", f"{name} holds NaN or Inf", "Such a file renders black; use another.")
