"""AdamW (Loshchilov and Hutter 2019, algorithm 2), its state in 32 or 8 bits."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from .chunked import ChunkedOptimizer, flat, flat_gradient, pieces
from .quantized import (
    BLOCK,
    GREATEST_SHARE,
    SHARE_FACTOR,
    padded,
    read_former_state,
    read_roots,
    read_shares,
    write_roots,
    write_shares,
)
from .rounding import store

if TYPE_CHECKING:
    from ..kernels.adamw import Quantized

LEAST_QUANTIZED = 4096  # smaller tensors keep fp32 state: they are biases and norms, and cost nothing


class AdamW(ChunkedOptimizer):
    """8 bytes a parameter; with `bits` 8 about 2 (of the second moment the root is kept, as Adam divides by it).

    With `kernels` what is kept in 8 bits is updated by Triton's (which must be there): neither in pieces nor joined, since they
    need no temporaries and one launch for many weights. The state is the same.
    """

    def __init__(self, groups: Iterable[Any], lr: float, betas: tuple[float, float], eps: float, weight_decay: float,
                 bits: int = 32, seed: int = 0, kernels: bool = False) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}, seed)
        self.bits, self.kernels = bits, kernels

    def empty_state(self, parameter: torch.nn.Parameter) -> dict[str, Any]:
        return empty_state(parameter.numel(), self.bits, parameter.device)

    def joins(self, parameter: torch.nn.Parameter) -> bool:
        return "share_codes" not in self._state_of(parameter) or parameter.numel() % BLOCK == 0

    def has_kernel(self, parameter: torch.nn.Parameter) -> bool:
        return "share_codes" in self._state_of(parameter)

    def step_by_kernels(self, parameters: list[torch.nn.Parameter], step: int, group: dict[str, Any],
                        scale: torch.Tensor | None) -> None:
        from ..kernels import adamw  # Triton is not everywhere

        adamw.step([self.quantized(parameter) for parameter in parameters], step, group["lr"], group["betas"], group["eps"],
                   group["weight_decay"], scale)

    def quantized(self, parameter: torch.nn.Parameter) -> Quantized:
        """As the kernel takes it."""
        from ..kernels.adamw import Quantized

        state = self.state[parameter]
        return Quantized(flat(parameter), self.gradient_of(parameter), state["share_codes"], state["root_codes"],
                         state["root_scales"], self.seed_for(parameter, state["step"]))

    def gradient_of(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """(N,), which the kernel reads."""
        return flat_gradient(parameter)

    def update(self, weights: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], group: dict[str, Any],
               draws: torch.Generator, sizes: tuple[int, ...]) -> None:
        for piece in pieces(weights):
            values = weights[piece].float()
            if "share_codes" in state:
                _quantized_step(values, gradient[piece].float(), state, piece, group, draws)
            else:
                first, second = state["first"][piece], state["second"][piece]
                adam_step(values, gradient[piece].float(), first, second, state["step"], group)
            store(weights[piece], values, draws)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state.get(parameter, {})
                if "first_codes" in state:
                    self.state[parameter] = _of_former_state(state, parameter, group)


def adam_step(values: torch.Tensor, gradient: torch.Tensor, first: torch.Tensor, second: torch.Tensor, step: int,
              group: dict[str, Any]) -> None:
    """One update of fp32 `values` and both moments, in place."""
    beta1, beta2 = group["betas"]
    first.lerp_(gradient, 1 - beta1)
    second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    denominator = second.sqrt().div_(math.sqrt(1 - beta2**step)).add_(group["eps"])
    values.mul_(1 - group["lr"] * group["weight_decay"])
    values.addcdiv_(first, denominator, value=-group["lr"] / (1 - beta1**step))


@cache
def is_fused_on(device: str) -> bool:
    """Whether this torch has a fused AdamW for the device: on CPUs since 2.4."""
    weight = torch.nn.Parameter(torch.ones(1, device=device))
    weight.grad = torch.ones_like(weight)
    try:
        torch.optim.AdamW([weight], fused=True).step()
    except RuntimeError:
        return False
    return True


def _quantized_step(values: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], piece: slice, group: dict[str, Any],
                    draws: torch.Generator | None) -> None:
    """The same on 8-bit moments, in as few passes over memory as can be.

    Moments are in units in which the new gradient counts 1 in both: m' = b1 m + g, v' = b2 v + g^2. By Cauchy and Schwarz
    |m'| / sqrt(v') is then at most 1 / sqrt(1 - b1^2 / b2), 2.3 by default: what shares can hold.
    """
    (beta1, beta2), step, eps = group["betas"], state["step"], group["eps"]
    beta2 = max(beta2, 1e-6)  # at 0 the root would be gone of which the first moment is a share
    blocks = slice(piece.start // BLOCK, padded(piece.stop) // BLOCK)
    roots, scales = state["root_codes"][piece.start : padded(piece.stop)], state["root_scales"][blocks]
    shares = state["share_codes"][piece]
    new = gradient * math.sqrt(1 - beta2)
    root = read_roots(roots, scales, len(values), factor=math.sqrt(beta2))
    before = root + math.sqrt(beta2 * (1 - beta2 ** (step - 1))) * eps  # sqrt(b2) of what it was divided by
    first = torch.addcmul(new, read_shares(shares), before, value=beta1 / (math.sqrt(beta2) * SHARE_FACTOR))
    torch.hypot(root, new, out=root)
    share = first.div_(root + max(math.sqrt(1 - beta2**step) * eps, 1e-30))
    if group["weight_decay"]:
        values.mul_(1 - group["lr"] * group["weight_decay"])
    unit = (1 - beta1) / math.sqrt(1 - beta2)
    values.add_(share, alpha=-group["lr"] * unit * math.sqrt(1 - beta2**step) / (1 - beta1**step))
    if beta1**2 > 0.95 * beta2:  # the bound is beyond what shares can hold, or there is none
        share.clamp_(-GREATEST_SHARE, GREATEST_SHARE)
    write_shares(shares, share, draws)
    write_roots(roots, scales, root, draws)


def empty_state(count: int, bits: int, device: torch.device | str) -> dict[str, Any]:
    """The state of a parameter of `count` numbers before its first step."""
    if bits == 32 or count < LEAST_QUANTIZED:
        return {"step": 0, "first": torch.zeros(count, device=device), "second": torch.zeros(count, device=device)}
    return {
        "step": 0,
        "share_codes": torch.zeros(count, dtype=torch.uint8, device=device),
        "root_codes": torch.zeros(padded(count), dtype=torch.uint8, device=device),
        "root_scales": torch.zeros(padded(count) // BLOCK, device=device),
    }


def _of_former_state(former: dict[str, Any], parameter: torch.nn.Parameter, group: dict[str, Any]) -> dict[str, Any]:
    count, (beta1, beta2), step = parameter.numel(), group["betas"], former["step"]
    first, root = read_former_state(former, count)
    state = {**empty_state(count, 8, parameter.device), "step": step}
    divisor = root + math.sqrt(1 - beta2**step) * group["eps"]
    share = (first / divisor.clamp(min=1e-30)) * (math.sqrt(1 - beta2) / (1 - beta1))
    draws = torch.Generator(parameter.device).manual_seed(step)
    write_shares(state["share_codes"], share.clamp_(-GREATEST_SHARE, GREATEST_SHARE), draws)
    write_roots(state["root_codes"], state["root_scales"], root, draws)
    return state
