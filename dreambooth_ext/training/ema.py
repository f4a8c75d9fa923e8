"""An exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

ELSEWHERE_EVERY = 10  # steps. Weights take as long to RAM, and their average there, as a step of training takes
WARM_UP = 100  # steps in which each counts


class Ema:
    """Shadows of some parameters, fp32, on their device or on another. The decay warms up: (1 + n) / (10 + n).

    On another device a weight counts for the next `ELSEWHERE_EVERY` steps as it is then, once `WARM_UP` steps are over.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], decay: float, device: str | None = None) -> None:
        self._parameters, self._decay = list(parameters), decay
        self.shadows = [parameter.detach().to(device or parameter.device, torch.float32, copy=True)
                        for parameter in self._parameters]
        self.updates = 0
        self._kept = 1.0  # of the shadows, by the updates that are still to be made
        elsewhere = any(shadow.device.type != own.device.type for shadow, own in zip(self.shadows, self._parameters, strict=True))
        self._every = ELSEWHERE_EVERY if elsewhere else 1

    def update(self, last: bool = False) -> None:
        """Count a step; `last` is the run's."""
        self._kept *= min(self._decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        if last or self.updates <= WARM_UP or self.updates % self._every == 0:
            self._move(1 - self._kept)
            self._kept = 1.0

    @torch.no_grad()
    def _move(self, share: float) -> None:
        """By this share towards the weights."""
        pairs = [(shadow, parameter.detach()) for shadow, parameter in zip(self.shadows, self._parameters, strict=True)]
        if all((own.device, own.dtype) == (shadow.device, shadow.dtype) for shadow, own in pairs):
            torch._foreach_lerp_(self.shadows, [own for _, own in pairs], share)
            return
        for shadow, own in pairs:  # one after the other: their copies together would be as large as the networks
            shadow.lerp_(own.to(shadow), share)

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
        return {"updates": self.updates, "kept": self._kept, "shadows": self.shadows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates, self._kept = state["updates"], state.get("kept", 1.0)
        _write(self.shadows, state["shadows"])


@torch.no_grad()
def _write(targets: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
    for target, value in zip(targets, values, strict=True):
        target.copy_(value)
