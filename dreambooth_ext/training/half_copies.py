"""bf16 copies of the trained networks: they compute, fp32 weights learn (Micikevicius et al. 2018, section 3.1).

Autocast casts each weight in each pass, one by one, and its norms write fp32. Counted for Stable Diffusion 1.5 at 512 px (what
operations are given and give, by fake tensors of a GPU), a pass launches 4,877 of them so and 2,981 with copies; they touch 51 and
33 GB at batch 1 + 1, 242 and 158 GB at batch 8 + 8.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch

from ..models.networks import in_dtype

COLLECTED_BYTES = 64 * 2**20  # of gradients that are widened at once


class HalfCopies:
    """`modules` are the copies, by part. Their gradients become those of the fp32 weights, in fp32, while a pass goes on; with
    `at_end` when it is over, since several processes average the copies' own; with `keep` they stay where they are."""

    def __init__(self, modules: Mapping[str, torch.nn.Module], at_end: bool = False, keep: bool = False) -> None:
        self.modules: dict[str, Any] = {part: _copied(module) for part, module in modules.items()}
        self._weights = {half: weight for part, module in modules.items()
                         for half, weight in zip(self.modules[part].parameters(), module.parameters(), strict=True)
                         if weight.requires_grad}
        self._at_once = float("inf") if at_end else COLLECTED_BYTES
        self._come: list[torch.nn.Parameter] = []
        self._come_bytes = 0
        for half in () if keep else self._weights:
            half.register_post_accumulate_grad_hook(self._take)

    @property
    def of_weights(self) -> dict[torch.nn.Parameter, torch.nn.Parameter]:
        """Each trained weight's copy."""
        return {weight: half for half, weight in self._weights.items()}

    @torch.no_grad()
    def refresh(self) -> None:
        """Make them the weights' roundings again, after those have changed."""
        torch._foreach_copy_(list(self._weights), list(self._weights.values()))

    @torch.no_grad()
    def collect(self) -> None:
        """Hand over the gradients that are still the copies'; those of several passes add up in fp32."""
        if not self._come:
            return
        weights = [self._weights[half] for half in self._come]
        gradients = [torch.empty_like(weight) for weight in weights]
        torch._foreach_copy_(gradients, [half.grad for half in self._come])
        for half, weight, gradient in zip(self._come, weights, gradients, strict=True):
            half.grad = None
            weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)
        self.forget()

    def forget(self) -> None:
        """Gradients that have come are nobody's any more."""
        self._come.clear()
        self._come_bytes = 0

    def _take(self, half: torch.Tensor) -> None:
        assert isinstance(half, torch.nn.Parameter)
        self._come.append(half)
        self._come_bytes += half.numel() * half.element_size()
        if self._come_bytes > self._at_once:
            self.collect()


def _copied(module: torch.nn.Module) -> torch.nn.Module:
    """In bf16, its weights laid out as the module's; the fp32 ones are never there twice."""
    halves = {id(weight): torch.nn.Parameter(weight.detach().to(torch.bfloat16), weight.requires_grad)
              for weight in module.parameters()}
    return in_dtype(copy.deepcopy(module, halves), torch.bfloat16)
