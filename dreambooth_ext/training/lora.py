"""Low-rank adapters (Hu et al. 2022) on a network's own layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import ResumeError
from ..models.ldm_keys import canonical

FILE = "lora.safetensors"
CHILD = "lora"  # an adapter's name below its layer


class Adapter(nn.Module):
    """What is added to a Linear's or Conv2d's output: up(down(x)) * alpha / rank. It starts as nothing."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int, alpha: float, draws: torch.Generator) -> None:
        super().__init__()
        device = layer.weight.device
        if isinstance(layer, nn.Conv2d):
            self.down: Any = nn.Conv2d(layer.in_channels, rank, layer.kernel_size, layer.stride, layer.padding,  # type: ignore[arg-type]
                                       bias=False, device=device)
            self.up: Any = nn.Conv2d(rank, layer.out_channels, 1, bias=False, device=device)
        else:
            self.down = nn.Linear(layer.in_features, rank, bias=False, device=device)
            self.up = nn.Linear(rank, layer.out_features, bias=False, device=device)
        self.alpha, self.scale = alpha, alpha / rank
        with torch.no_grad():
            bound = 1 / math.sqrt(self.down.weight[0].numel())
            self.down.weight.copy_(torch.empty(self.down.weight.shape).uniform_(-bound, bound, generator=draws))
            self.up.weight.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # The few weights take the width of the many activations: those would be kept in fp32 for the way back.
        down, up = self.down.weight.to(x.dtype), (self.up.weight * self.scale).to(x.dtype)
        if isinstance(self.down, nn.Conv2d):
            return F.conv2d(self.down._conv_forward(x, down, None), up)
        return F.linear(F.linear(x, down), up)


class Lora:
    """The adapters of all `parts` ("unet", "text_encoder", ...). `conv_rank` 0 leaves 3x3 convolutions out.

    Layers: those of the UNet's transformers and of the text encoders; with a `conv_rank` those of its resnets and
    samplers too, as in the LoRA files that WebUIs read.
    """

    def __init__(self, parts: Mapping[str, nn.Module], rank: int, alpha: float, conv_rank: int, seed: int) -> None:
        draws = torch.Generator().manual_seed(seed)
        self._layers: dict[str, Any] = {}
        for part, module in parts.items():
            for name, layer in list(module.named_modules()):
                size = _rank_for(part, name, layer, rank, conv_rank)
                if size:
                    layer.add_module(CHILD, Adapter(layer, size, alpha, draws))  # type: ignore[arg-type]
                    self._layers[f"{part}.{canonical(name)}"] = layer
        self._hooks = [layer.register_forward_hook(_add_adapter) for layer in self._layers.values()]

    def state_dict(self) -> dict[str, torch.Tensor]:
        """PART.MODULE.lora_down.weight, .lora_up.weight and .alpha, under diffusers' module names; on the CPU."""
        found: dict[str, torch.Tensor] = {}
        for name, layer in self._layers.items():
            adapter = layer.lora
            found[f"{name}.lora_down.weight"] = adapter.down.weight.detach().cpu().clone(memory_format=torch.contiguous_format)
            found[f"{name}.lora_up.weight"] = adapter.up.weight.detach().cpu().clone(memory_format=torch.contiguous_format)
            found[f"{name}.alpha"] = torch.tensor(float(adapter.alpha))
        return found

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Raises ResumeError if the adapters are others."""
        if state.keys() != self.state_dict().keys():
            raise ResumeError("the LoRA is to be continued", "it was trained on other layers",
                              "Start a new run under another name.")
        for name, layer in self._layers.items():
            layer.lora.down.weight.copy_(state[f"{name}.lora_down.weight"])
            layer.lora.up.weight.copy_(state[f"{name}.lora_up.weight"])

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
        for layer in self._layers.values():
            delattr(layer, CHILD)


def _add_adapter(layer: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
    return output + layer.lora(inputs[0]).to(output.dtype) if hasattr(layer, CHILD) else None


def _rank_for(part: str, name: str, layer: nn.Module, rank: int, conv_rank: int) -> int:
    """0 for a layer that gets no adapter."""
    if not isinstance(layer, (nn.Linear, nn.Conv2d)):
        return 0
    if part.startswith("text_encoder"):
        return rank if ".layers." in f".{name}" else 0
    if ".attentions." in f".{name}":
        return rank
    if not conv_rank or not any(f".{place}." in f".{name}" for place in ("resnets", "downsamplers", "upsamplers")):
        return 0
    return conv_rank if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1) else rank
