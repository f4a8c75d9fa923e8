"""8-bit AdamW on fp32 weights that learn by the gradients of their bf16 copies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from .adamw import AdamW
from .chunked import flat, laid_as

if TYPE_CHECKING:
    from ..kernels.adamw import Quantized


class CopiedAdamW8bit(AdamW):
    """Takes the copies' gradients as they are, and writes the copies, by our kernels (which must be there).

    Its state is that of `AdamW` with 8 bits, with which a run can go on. Biases and norms, whose state has 32 bits, are few enough
    for their gradients to be widened.
    """

    def __init__(self, groups: list[dict[str, Any]], copies: Mapping[torch.nn.Parameter, torch.nn.Parameter],
                 **arguments: Any) -> None:
        super().__init__(groups, bits=8, kernels=True, **arguments)
        self._copies = copies
        self._scale: torch.Tensor | None = None

    @torch.no_grad()
    def clip(self, max_norm: float) -> torch.Tensor:
        """Let the next step multiply gradients so that their norm is at most `max_norm`; returns their norm before that."""
        from ..kernels import copied_adamw  # Triton is not everywhere

        norm = copied_adamw.norm_of([self._gradient(weight) for weight in self._due()])
        self._scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # as torch's clip_grad_norm_
        return norm

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        due = self._due()
        small = [weight for weight in due if not self.has_kernel(weight)]
        gradients = [torch.empty_like(weight) for weight in small]
        _copy_all(gradients, [self._gradient(weight) for weight in small])
        for weight, gradient in zip(small, gradients, strict=True):
            weight.grad = gradient
        self.step_parameters(due, self._scale)
        _copy_all([self._copies[weight] for weight in small], small)
        for weight in small:
            weight.grad = None
        self._scale = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        for copy in self._copies.values():
            copy.grad = None

    def quantized(self, parameter: torch.nn.Parameter) -> Quantized:
        return replace(super().quantized(parameter), copy=flat(self._copies[parameter]))

    def gradient_of(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        return flat(self._gradient(parameter))

    def _due(self) -> list[torch.nn.Parameter]:
        return [weight for weight in self._parameters() if self._copies[weight].grad is not None]

    def _gradient(self, weight: torch.nn.Parameter) -> torch.Tensor:
        """In the copy's layout, which is the weight's."""
        copy = self._copies[weight]
        assert copy.grad is not None
        copy.grad = laid_as(copy.grad, copy)
        return copy.grad


def _copy_all(targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> None:
    if targets:  # torch takes no empty lists
        torch._foreach_copy_(list(targets), list(sources))
