"""An exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


class Ema:
    """Shadows of some parameters, fp32, on their device or on another. The decay warms up: (1 + n) / (10 + n)."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter], decay: float, device: str | None = None) -> None:
        self._parameters, self._decay = list(parameters), decay
        self.shadows = [parameter.detach().to(device or parameter.device, torch.float32, copy=True)
                        for parameter in self._parameters]
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        pairs = [(shadow, parameter.detach()) for shadow, parameter in zip(self.shadows, self._parameters, strict=True)]
        if all((own.device, own.dtype) == (shadow.device, shadow.dtype) for shadow, own in pairs):
            torch._foreach_lerp_(self.shadows, [own for _, own in pairs], 1 - decay)
            return
        for shadow, own in pairs:  # one after the other: their copies together would be as large as the networks
            shadow.lerp_(own.to(shadow), 1 - decay)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The averages stand in the model inside the block; the trained weights are back afterwards, whatever happens."""
        kept = [parameter.detach().to("cpu", copy=True) for parameter in self._parameters]
        try:
            _write(self._parameters, self.shadows)
            yield
        finally:
            _write(self._parameters, kept)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "shadows": self.shadows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        _write(self.shadows, state["shadows"])


@torch.no_grad()
def _write(targets: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
    for target, value in zip(targets, values, strict=True):
        target.copy_(value)
