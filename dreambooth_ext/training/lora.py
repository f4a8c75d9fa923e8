"""Low-rank adapters (Hu et al. 2022) on a network's own layers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
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
            self.down: nn.Module = nn.Conv2d(layer.in_channels, rank, layer.kernel_size, layer.stride, layer.padding,  # type: ignore[arg-type]
                                             bias=False, device=device)
            self.up: nn.Module = nn.Conv2d(rank, layer.out_channels, 1, bias=False, device=device)
        else:
            self.down = nn.Linear(layer.in_features, rank, bias=False, device=device)
            self.up = nn.Linear(rank, layer.out_features, bias=False, device=device)
        self.alpha, self.scale = alpha, alpha / rank
        with torch.no_grad():
            bound = 1 / math.sqrt(self.down.weight[0].numel())  # type: ignore[index,union-attr]
            values = torch.empty(self.down.weight.shape).uniform_(-bound, bound, generator=draws)  # type: ignore[union-attr]
            self.down.weight.copy_(values)  # type: ignore[union-attr,operator]
            self.up.weight.zero_()  # type: ignore[union-attr,operator]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(self.down(x.to(self.down.weight.dtype))) * self.scale  # type: ignore[union-attr]

    def delta(self) -> torch.Tensor:
        """What the layer's weight would have to gain, fp32."""
        up, down = self.up.weight.flatten(1), self.down.weight.flatten(1)  # type: ignore[union-attr,operator]
        return (up @ down).view(len(up), *self.down.weight.shape[1:]) * self.scale  # type: ignore[union-attr,index]


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

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Inside the block the layers have the adapters in their weights, and no adapters."""
        weights = {name: layer.weight.detach().clone() for name, layer in self._layers.items()}
        adapters = {name: layer.lora for name, layer in self._layers.items()}
        try:
            with torch.no_grad():
                for layer in self._layers.values():
                    layer.weight.copy_(layer.weight.float() + layer.lora.delta())
            for layer in self._layers.values():
                delattr(layer, CHILD)
            yield
        finally:
            with torch.no_grad():
                for name, layer in self._layers.items():
                    layer.weight.copy_(weights[name])
                    layer.add_module(CHILD, adapters[name])

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
