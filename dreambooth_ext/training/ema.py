"""An exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch


class Ema:
    """Shadows of some parameters, fp32. The decay warms up: (1 + n) / (10 + n), at most `decay`."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter], decay: float) -> None:
        self._parameters, self._decay = list(parameters), decay
        self.shadows = [parameter.detach().float().clone() for parameter in self._parameters]
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for shadow, parameter in zip(self.shadows, self._parameters, strict=True):
            shadow.lerp_(parameter.detach().to(shadow.dtype), 1 - decay)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The averages stand in the model inside the block; the trained weights are back afterwards, whatever happens."""
        kept = [parameter.detach().clone() for parameter in self._parameters]
        try:
            with torch.no_grad():
                for parameter, shadow in zip(self._parameters, self.shadows, strict=True):
                    parameter.copy_(shadow)
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(self._parameters, kept, strict=True):
                    parameter.copy_(value)

    def state_dict(self) -> dict:
        return {"updates": self.updates, "shadows": self.shadows}

    def load_state_dict(self, state: dict) -> None:
        self.updates = state["updates"]
        for shadow, value in zip(self.shadows, state["shadows"], strict=True):
            shadow.copy_(value)
