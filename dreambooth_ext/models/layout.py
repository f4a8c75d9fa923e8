"""A model's sizes, read off the shapes of its tensors and its sidecar .yaml; nothing is assumed that can be seen."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import MissingTensors, NotACheckpoint
from .checkpoint_file import TensorInfo
from .family import Family
from .ldm_keys import UNET_PREFIX, VAE_PREFIX

HEAD_WIDTH_OF_CLIP = 64
Shapes = Mapping[str, TensorInfo]


@dataclass(frozen=True)
class Layout:
    """The arguments for diffusers' and transformers' classes, and what else a sidecar tells."""

    unet: dict[str, Any]
    vae: dict[str, Any]
    text_encoder: dict[str, Any]
    attention: tuple[bool, ...]  # which UNet levels have it, outermost first
    resolution: int
    prediction_type: str = "epsilon"
    linear_start: float = 0.00085
    linear_end: float = 0.0120
    sidecar: dict[str, Any] = field(default_factory=dict)


def layout_of(tensors: Shapes, family: Family, path: Path) -> Layout:
    """Raises MissingTensors if a tensor by which the sizes are known is not there, NotACheckpoint for a bad sidecar."""
    parameters = read_sidecar(path)
    try:
        unet, attention = _unet(tensors, parameters)
        vae, text = _vae(tensors, parameters, family), _text(tensors, family.text_prefix)
    except (KeyError, IndexError, ValueError) as error:
        raise MissingTensors(f"{path.name} is to be loaded", f"it is not whole: {error} is missing or has no sense",
                             "Download it again, or choose another base.") from error
    latent_side = parameters.get("image_size")
    resolution = latent_side * 8 if type(latent_side) is int and 0 < latent_side <= 512 else family.resolution
    unet["sample_size"], vae["sample_size"] = resolution // 8, resolution
    prediction = "v_prediction" if parameters.get("parameterization") == "v" else "epsilon"
    return Layout(unet, vae, text, attention, resolution, prediction, _number(parameters, "linear_start", 0.00085),
                  _number(parameters, "linear_end", 0.0120), parameters)


def read_sidecar(path: Path) -> dict[str, Any]:
    """`model.params` of NAME.yaml beside the file, or {}."""
    import yaml

    sidecar = path.with_suffix(".yaml")
    if not sidecar.is_file():
        return {}
    try:
        value = yaml.safe_load(sidecar.read_text(encoding="utf-8-sig"))
        parameters = value["model"]["params"]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, RecursionError) as error:
        raise NotACheckpoint(f"{sidecar.name} is to be read", f"it is no model configuration ({type(error).__name__})",
                             "Remove it, or put the original one beside the checkpoint.") from error
    return parameters if isinstance(parameters, dict) else {}


def _unet(tensors: Shapes, parameters: dict[str, Any]) -> tuple[dict[str, Any], tuple[bool, ...]]:
    def shape(name: str) -> tuple[int, ...]:
        return tensors[f"{UNET_PREFIX}{name}"].shape

    blocks = 1 + max(int(found[1]) for name in tensors
                     if (found := re.match(rf"{re.escape(UNET_PREFIX)}input_blocks\.(\d+)\.", name)))
    layers = 2  # of every Stable Diffusion
    levels = blocks // (layers + 1)
    firsts = [1 + level * (layers + 1) for level in range(levels)]
    channels = tuple(shape(f"input_blocks.{first}.0.out_layers.3.weight")[0] for first in firsts)
    attention = tuple(f"{UNET_PREFIX}input_blocks.{first}.1.norm.weight" in tensors for first in firsts)
    attended = firsts[attention.index(True)]
    cross = shape(f"input_blocks.{attended}.1.transformer_blocks.0.attn2.to_k.weight")[1]
    heads = _of(parameters, "unet_config", "num_heads", 8)
    config = {
        "in_channels": shape("input_blocks.0.0.weight")[1], "out_channels": shape("out.2.weight")[0],
        "block_out_channels": channels, "layers_per_block": layers, "cross_attention_dim": cross,
        "attention_head_dim": heads if type(heads) is int and heads > 0 else 8,
        "down_block_types": tuple("CrossAttnDownBlock2D" if has else "DownBlock2D" for has in attention),
        "up_block_types": tuple("CrossAttnUpBlock2D" if has else "UpBlock2D" for has in reversed(attention)),
        "use_linear_projection": len(shape(f"input_blocks.{attended}.1.proj_in.weight")) == 2,
    }
    return config, attention


def _vae(tensors: Shapes, parameters: dict[str, Any], family: Family) -> dict[str, Any]:
    def shape(name: str) -> tuple[int, ...]:
        return tensors[f"{VAE_PREFIX}{name}"].shape

    levels = 1 + max(int(found[1]) for name in tensors
                     if (found := re.match(rf"{re.escape(VAE_PREFIX)}encoder\.down\.(\d+)\.", name)))
    layers = 1 + max(int(found[1]) for name in tensors
                     if (found := re.match(rf"{re.escape(VAE_PREFIX)}encoder\.down\.0\.block\.(\d+)\.", name)))
    channels = tuple(shape(f"encoder.down.{level}.block.0.conv1.weight")[0] for level in range(levels))
    return {
        "block_out_channels": channels, "layers_per_block": layers, "latent_channels": shape("post_quant_conv.weight")[0],
        "down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels,
        "scaling_factor": _number(parameters, "scale_factor", family.scaling_factor),
    }


def _text(tensors: Shapes, prefix: str) -> dict[str, Any]:
    root = f"{prefix}text_model."
    vocabulary, width = tensors[f"{root}embeddings.token_embedding.weight"].shape
    layers = 1 + max(int(found[1]) for name in tensors
                     if (found := re.match(rf"{re.escape(root)}encoder\.layers\.(\d+)\.", name)))
    return {
        "vocab_size": vocabulary, "hidden_size": width, "num_hidden_layers": layers, "projection_dim": width,
        "intermediate_size": tensors[f"{root}encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_attention_heads": max(1, width // HEAD_WIDTH_OF_CLIP),
        "max_position_embeddings": tensors[f"{root}embeddings.position_embedding.weight"].shape[0],
        "hidden_act": "quick_gelu", "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 1,
    }


def _number(parameters: dict[str, Any], name: str, otherwise: float) -> float:
    value = parameters.get(name, otherwise)
    return float(value) if isinstance(value, (int, float)) and 0 < value < 100 else otherwise


def _of(parameters: dict[str, Any], section: str, name: str, otherwise: Any) -> Any:
    inner = parameters.get(section)
    values = inner.get("params") if isinstance(inner, dict) else None
    return values.get(name, otherwise) if isinstance(values, dict) else otherwise
