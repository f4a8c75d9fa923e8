"""Which model a file is, told from the names and shapes of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import MissingTensors, UnsupportedFamily
from .checkpoint_file import TensorInfo
from .ldm_keys import TEXT_PREFIX, UNET_PREFIX, VAE_PREFIX

SUPPORTED = "Stable Diffusion 1.x and models made from it are supported."


@dataclass(frozen=True)
class Family:
    """A row of the table: what all models of a family share."""

    name: str
    text_prefix: str
    resolution: int  # pixels, a side
    scaling_factor: float  # of the VAE's latents
    architecture: str  # modelspec's word for it


SD1 = Family("SD 1.x", TEXT_PREFIX, 512, 0.18215, "stable-diffusion-v1")

# A tensor by which a file is known, and what it then is.
_OTHERS = (
    ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", "Stable Diffusion 3"),
    ("model.diffusion_model.x_embedder.proj.weight", "Stable Diffusion 3"),
    ("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "Flux"),
    ("double_blocks.0.img_attn.qkv.weight", "Flux"),
    ("conditioner.embedders.1.model.ln_final.weight", "SDXL"),
    ("conditioner.embedders.0.model.ln_final.weight", "the SDXL refiner"),
    ("cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight", "Stable Diffusion 2.x"),
    ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight", "a LoRA, not a whole model"),
    ("first_stage_model.vquantizer.codebook.weight", "Stable Cascade"),
)


def detect(tensors: Mapping[str, TensorInfo], path: Path) -> Family:
    """The family of a file. Raises UnsupportedFamily by name, or MissingTensors if it is no model that we know."""
    for marker, name in _OTHERS:
        if marker in tensors:
            raise UnsupportedFamily(f"{path.name} is to be trained", f"it is {name}", SUPPORTED)
    if any(name.startswith(("lora_unet_", "lora_te")) for name in tensors):
        raise UnsupportedFamily(f"{path.name} is to be trained", "it is a LoRA, not a whole model", SUPPORTED)
    first = tensors.get(f"{UNET_PREFIX}input_blocks.0.0.weight")
    if first is None:
        raise MissingTensors(f"{path.name} is to be trained", "it holds no Stable Diffusion UNet", SUPPORTED)
    if len(first.shape) != 4 or first.shape[1] != 4:
        kind = "an inpainting model" if first.shape[1:2] == (9,) else "a model of another kind of input"
        raise UnsupportedFamily(f"{path.name} is to be trained", f"it is {kind}", SUPPORTED)
    for prefix, part in ((VAE_PREFIX, "VAE"), (TEXT_PREFIX, "text encoder")):
        if not any(name.startswith(prefix) for name in tensors):
            raise MissingTensors(f"{path.name} is to be trained", f"it holds no {part}",
                                 "Use the full checkpoint, not one that was pruned of its parts.")
    return SD1
