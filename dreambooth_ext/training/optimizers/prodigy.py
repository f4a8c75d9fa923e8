"""Prodigy (Mishchenko and Defazio 2024, algorithm 4): Adam that estimates its own learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from .chunked import ChunkedOptimizer, flat, flat_gradient, pieces
from .rounding import store

D0 = 1e-6  # the first estimate of the distance to the solution


class Prodigy(ChunkedOptimizer):
    """16 bytes a parameter. The learning rate is a factor on the estimate: leave it at 1.

    One estimate serves all parameters, so that they can only be updated together, never one by one. It stays on the
    device, where it is worked out without waiting for it.
    """

    def __init__(self, groups: Iterable[Any], lr: float, betas: tuple[float, float], eps: float, weight_decay: float,
                 seed: int = 0) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}, seed)
        device = next(self._parameters()).device
        for group in self.param_groups:
            # Kept with the first group, so that a saved state holds them.
            for name, value in (("distance", D0), ("numerator", 0.0)):
                group[name] = torch.tensor(value, dtype=torch.float64, device=device)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        head = self.param_groups[0]
        distance, beta3 = head["distance"], math.sqrt(head["betas"][1])
        numerator, denominator = head["numerator"] * beta3, torch.zeros_like(distance)
        active = [(parameter, group) for group in self.param_groups for parameter in group["params"]
                  if parameter.grad is not None]
        for parameter, group in active:
            if group["lr"] > 0:
                up, down = self._gather(parameter, group, distance, beta3)
                numerator, denominator = numerator + up, denominator + down
        moved = denominator > 0
        estimate = torch.where(moved, numerator / denominator.clamp(min=1e-300), distance)
        for group in self.param_groups:
            group["distance"] = torch.maximum(distance, estimate)
            group["numerator"] = torch.where(moved, numerator, group["numerator"])
        for parameter, group in active:
            # The rate is that of the estimate before this step, as in the algorithm.
            self._apply(parameter, group, (distance * group["lr"] * moved).float(), head["distance"].float())

    def _gather(self, parameter: torch.nn.Parameter, group: dict[str, Any], distance: torch.Tensor,
                beta3: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Update the moments; what the parameter adds to numerator and denominator of the estimate."""
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        weights, gradient = flat(parameter), flat_gradient(parameter)
        if not state:
            empty = {name: torch.zeros(weights.numel(), device=weights.device) for name in ("first", "second", "sum")}
            state.update(step=0, start=weights.clone(), **empty)
        weight = distance / D0 * distance * group["lr"]
        up, down = torch.zeros_like(distance), torch.zeros_like(distance)
        for piece in pieces(weights):
            new = gradient[piece].float()
            up += torch.dot(new, state["start"][piece].float() - weights[piece].float())
            state["first"][piece].mul_(beta1).add_(new * (distance * (1 - beta1)).float())
            state["second"][piece].mul_(beta2).add_(new.square() * (distance**2 * (1 - beta2)).float())
            total = state["sum"][piece].mul_(beta3).add_(new * weight.float())
            down += total.abs().sum()
        return up * weight, down

    def _apply(self, parameter: torch.nn.Parameter, group: dict[str, Any], rate: torch.Tensor,
               distance: torch.Tensor) -> None:
        state = self.state[parameter]
        if not state:
            return  # its learning rate was 0 so far
        state["step"] += 1
        weights = flat(parameter)
        draws = self.draws_for(parameter, state["step"]) if weights.dtype != torch.float32 else None
        for piece in pieces(weights):
            values = weights[piece].float()
            denominator = state["second"][piece].sqrt().add_(distance * group["eps"])
            values.mul_(1 - rate * group["weight_decay"]).sub_(state["first"][piece] / denominator * rate)
            store(weights[piece], values, draws)
