"""torch's AdamW on fp32 weights that learn by the gradients of their bf16 copies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .chunked import laid_as


@dataclass(frozen=True)
class Due:
    """Weights of one group that will have made `number` steps, and what to launch for them."""

    group: dict[str, Any]
    number: int
    weights: list[torch.nn.Parameter]
    launches: Any


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
        self._due: list[Due] = []
        self._launches: dict[Any, Any] = {}  # of the last step, by what they are for

    @torch.no_grad()
    def clip(self, max_norm: float) -> torch.Tensor:
        """Let the next step multiply gradients so that their norm is at most `max_norm`; returns their norm before that."""
        from ..kernels import copied_adamw  # Triton is not everywhere

        norm = copied_adamw.norm([due.launches for due in self._what_is_due()])
        self._scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # as torch's clip_grad_norm_
        return norm

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        from ..kernels import copied_adamw

        for due in self._what_is_due():
            group = due.group
            torch._foreach_add_([self.state[weight]["step"] for weight in due.weights], 1)
            copied_adamw.step(due.launches, due.number, group["lr"], group["betas"], group["eps"], group["weight_decay"],
                              self._scale)
            self._steps.update(dict.fromkeys(due.weights, due.number))
        self._due, self._scale = [], None

    def zero_grad(self, set_to_none: bool = True) -> None:
        for copy in self._copies.values():
            copy.grad = None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._steps.clear()

    def _what_is_due(self) -> list[Due]:
        """Of what has gradients, what will be at the same step. Its addresses go to the device only where they have changed."""
        from ..kernels import copied_adamw

        if self._due:
            return self._due
        kept: dict[Any, Any] = {}
        for group in self.param_groups:
            alike: dict[int, list[torch.nn.Parameter]] = {}
            for weight in group["params"]:
                if self._copies[weight].grad is not None:
                    alike.setdefault(self._steps_of(weight) + 1, []).append(weight)
            for number, weights in alike.items():
                rows = tuple(self._row(weight) for weight in weights)
                kept[rows] = self._launches.get(rows) or copied_adamw.launches(rows, weights[0].device)
                self._due.append(Due(group, number, weights, kept[rows]))
        self._launches = kept
        return self._due

    def _steps_of(self, weight: torch.nn.Parameter) -> int:
        """How many it has behind it."""
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros((), device=weight.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        if weight not in self._steps:
            self._steps[weight] = int(state["step"])
        return self._steps[weight]

    def _row(self, weight: torch.nn.Parameter) -> Any:
        state, copy = self.state[weight], self._copies[weight]
        assert copy.grad is not None
        copy.grad = laid_as(copy.grad, copy)
        tensors = (weight, state["exp_avg"], state["exp_avg_sq"], copy, copy.grad)
        return (weight.numel(), *(tensor.data_ptr() for tensor in tensors))
