"""torch's AdamW on fp32 weights that learn by the gradients of their bf16 copies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .chunked import flat, laid_as


class CopiedAdamW(torch.optim.AdamW):
    """Takes the copies' gradients as they are, and writes the copies: no gradient is ever widened in memory.

    By a kernel of our own. Its state is that of torch's AdamW, with which a run can go on.
    """

    def __init__(self, groups: list[dict[str, Any]], copies: Mapping[torch.nn.Parameter, torch.nn.Parameter],
                 **arguments: Any) -> None:
        super().__init__(groups, foreach=False, **arguments)
        self._copies = copies
        self._scale: torch.Tensor | None = None
        self._steps: dict[torch.nn.Parameter, int] = {}  # as in the state, where they lie on the device

    @torch.no_grad()
    def clip(self, max_norm: float) -> torch.Tensor:
        """Let the next step multiply gradients so that their norm is at most `max_norm`; returns their norm before that."""
        from ..kernels import copied_adamw  # Triton is not everywhere

        gradients = [flat(copy.grad) for copy in self._copies.values() if copy.grad is not None]
        norm = copied_adamw.norm(gradients)
        self._scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # as torch's clip_grad_norm_
        return norm

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        from ..kernels import copied_adamw

        for group in self.param_groups:
            learning = [weight for weight in group["params"] if self._copies[weight].grad is not None]
            alike: dict[int, list[copied_adamw.Copied]] = {}
            for weight in learning:
                alike.setdefault(self._next_step(weight), []).append(self._copied(weight))
            if learning:
                torch._foreach_add_([self.state[weight]["step"] for weight in learning], 1)
            for number, some in alike.items():
                copied_adamw.step(some, number, group["lr"], group["betas"], group["eps"], group["weight_decay"], self._scale)
        self._scale = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        for copy in self._copies.values():
            copy.grad = None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._steps.clear()

    def _next_step(self, weight: torch.nn.Parameter) -> int:
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros((), device=weight.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        if weight not in self._steps:
            self._steps[weight] = int(state["step"])
        self._steps[weight] += 1
        return self._steps[weight]

    def _copied(self, weight: torch.nn.Parameter) -> Any:
        from ..kernels.copied_adamw import Copied

        state, copy = self.state[weight], self._copies[weight]
        assert copy.grad is not None
        tensors = (weight, state["exp_avg"], state["exp_avg_sq"], copy, laid_as(copy.grad, weight))
        return Copied(*(flat(tensor) for tensor in tensors))
