"""The names that LoRA files have in the WebUI's Lora tab: those of sd-scripts.

lora_unet_ or lora_te_ (SDXL: lora_te1_, lora_te2_), then the module's path with underscores. The UNet's path is
diffusers' for SD 1.x and 2.x, and the checkpoint's own for SDXL, where the WebUI expects it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from .config_layout import unet_levels
from .family import SDXL, Family
from .ldm_keys import canonical, unet_rules

BASE_VERSIONS = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}
# Below modules of these names every linear layer and convolution may have an adapter.
_IN_UNET, _IN_TEXT_ENCODER = {"attentions", "resnets", "downsamplers", "upsamplers"}, {"layers"}


class LoraNames:
    """File names of a model's layers. `unet_config` is that of its UNet2DConditionModel."""

    def __init__(self, family: Family, unet_config: Mapping[str, Any]) -> None:
        self.family = family
        levels, mid_depth = unet_levels(unet_config)
        self._ldm = {_module(rule.ours[0]): _module(rule.ldm) for rule in unet_rules(levels, mid_depth, "")}
        self._unet = self._ldm if family is SDXL else {}

    def of(self, part: str, module: str) -> str:
        """The name of a layer of a part ("unet", "text_encoder", ...), by its path in diffusers' or our names."""
        if part == "unet":
            return "lora_unet_" + self._unet.get(module, module).replace(".", "_")
        head = {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}[part] if self.family is SDXL else "lora_te_"
        return head + "text_model_" + canonical(module).replace(".", "_")

    def known(self, layers: Iterable[tuple[str, str]]) -> dict[str, tuple[str, str]]:
        """Name -> (part, path) of these layers; the UNet's under diffusers' names and the checkpoint's own: files have both."""
        found: dict[str, tuple[str, str]] = {}
        for part, module in layers:
            if part == "unet":
                found |= {"lora_unet_" + name.replace(".", "_"): (part, module) for name in (module, self._ldm.get(module, module))}
            found[self.of(part, module)] = part, module
        return found


def target_layers(part: str, module: nn.Module) -> dict[str, nn.Module]:
    """Path (our names) -> layer, for every layer that a LoRA of this part may adapt.

    The UNet's transformers, resnets and samplers; the text encoder's attention and MLP.
    """
    places = _IN_UNET if part == "unet" else _IN_TEXT_ENCODER
    return {path: layer for path, layer in linear_and_convolutions(module).items() if not places.isdisjoint(path.split("."))}


def linear_and_convolutions(module: nn.Module) -> dict[str, nn.Module]:
    """Path (our names) -> layer, for every layer that a low-rank product can be added to."""
    return {canonical(path): layer for path, layer in module.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))}


def _module(tensor: str) -> str:
    return tensor.rpartition(".")[0]
