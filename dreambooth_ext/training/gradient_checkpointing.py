"""Gradient checkpointing of any of the networks (Chen et al. 2016): activations are computed again instead of kept."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def checkpoint_gradients(module: Any, wanted: bool = True) -> list[Any]:
    """Switch it on or off; returns what is to be removed after training.

    Always torch's way without reentrance, as diffusers does: the other one gives no gradients to what is inside unless what goes
    in wants one. Below adapters nothing does: a LoRA's text encoders would learn nothing, without a word.
    """
    if hasattr(module, "enable_gradient_checkpointing"):
        (module.enable_gradient_checkpointing if wanted else module.disable_gradient_checkpointing)()
        return []
    name = next(name for name in ("activation_checkpointing", "gradient_checkpointing") if hasattr(module, f"{name}_enable"))
    if not wanted:
        getattr(module, f"{name}_disable")()
        return []
    enable = getattr(module, f"{name}_enable")
    if f"{name}_kwargs" in inspect.signature(enable).parameters:
        enable(**{f"{name}_kwargs": {"use_reentrant": False}})
        return []
    # Transformers before 4.35 can only do it the other way, and has torch warn of that.
    return [_Checkpointed(layer) for layer in module.modules() if type(layer).__name__ == "CLIPEncoderLayer"]


class _Checkpointed:
    """A layer of another class, until it is removed: copies of the layer are of that class, too, and call themselves."""

    def __init__(self, layer: torch.nn.Module) -> None:
        self._layer: Any = layer
        self._own: Any = type(layer)
        layer.__class__ = _checkpointed(self._own)  # type: ignore[arg-type]

    def remove(self) -> None:
        self._layer.__class__ = self._own


@cache
def _checkpointed(own: Any) -> Any:
    class Checkpointed(own):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            if not (self.training and torch.is_grad_enabled()):
                return super().forward(*args, **kwargs)
            return checkpoint(super().forward, *args, use_reentrant=False, **kwargs)

    Checkpointed.__name__ = own.__name__  # by which a network is split over several cards
    return Checkpointed
