"""diffusers' and transformers' modules from a configuration, without the time and memory of random weights."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, cast

import torch
from torch import nn

from ..errors import MissingTensors
from .layout import PartLayout
from .ldm_keys import canonical

CLASSES = {"unet": ("diffusers", "UNet2DConditionModel"), "vae": ("diffusers", "AutoencoderKL")}


def in_dtype(module: nn.Module, dtype: torch.dtype | None, device: torch.device | str | None = None) -> nn.Module:
    """The module itself, cast and moved as far as asked. By torch's own way: diffusers' warns of parts to be kept in fp32 where
    there are none.
    """
    return nn.Module.to(module, device=device, dtype=dtype)


def class_of(part: str, projected: bool = False) -> tuple[str, str]:
    """(library, class) as diffusers' model_index.json names them."""
    return CLASSES.get(part, ("transformers", "CLIPTextModelWithProjection" if projected else "CLIPTextModel"))


def load_class(part: str, projected: bool = False) -> Any:
    """The class itself; importing it takes seconds the first time."""
    library, name = class_of(part, projected)
    return getattr(import_module(library), name)


def build(part: str, config: Mapping[str, Any], file: str, projected: bool = False) -> nn.Module:
    """The module on the meta device, weightless. Raises MissingTensors if there can be no such structure."""
    loaded = load_class(part, projected)
    try:
        with torch.device("meta"):
            if part in CLASSES:
                return cast(nn.Module, loaded(**config))
            return cast(nn.Module, loaded(loaded.config_class(**config)))
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError, OverflowError) as error:
        raise MissingTensors(f"{file} is to be loaded", f"its {part} has an impossible structure ({error})",
                             "The file may be damaged.") from error


def names_of(module: nn.Module) -> dict[str, str]:
    """The module's tensors: our name -> its own. `position_ids` is an index, no weight."""
    return {canonical(name): name for name in module.state_dict(keep_vars=True) if not name.endswith("position_ids")}


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes by our names."""
    state = module.state_dict(keep_vars=True)
    return {ours: tuple(state[theirs].shape) for ours, theirs in names_of(module).items()}


def tensors_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """The weights by our names; not copies."""
    state = module.state_dict()
    return {ours: state[theirs] for ours, theirs in names_of(module).items()}


def fill(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give a weightless module its weights, by our names, all of them."""
    names = names_of(module)
    module.load_state_dict({names[ours]: tensor for ours, tensor in tensors.items()}, strict=False, assign=True)
    for owner in module.modules():
        for name, buffer in owner.named_buffers(recurse=False):
            if buffer.is_meta and name == "position_ids":
                setattr(owner, name, torch.arange(buffer.shape[-1]).expand(buffer.shape).clone())
    left = [name for name, tensor in [*module.named_parameters(), *module.named_buffers()] if tensor.is_meta]
    if left:
        raise MissingTensors(f"a {type(module).__name__} is to be filled", f"{left[0]} has no values",
                             "Use a whole checkpoint; this one lacks a part of the network.")


def built(layout: PartLayout, file: str) -> nn.Module:
    """`build` for a part found in a file."""
    projected = any(rule.ours[0] == "text_projection.weight" for rule in layout.rules)
    return build(layout.part, layout.config, file, projected)
