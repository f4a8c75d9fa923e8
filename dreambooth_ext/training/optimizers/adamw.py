"""AdamW (Loshchilov and Hutter 2019, algorithm 2), its state in 32 or 8 bits."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from .chunked import ChunkedOptimizer, flat, flat_gradient, pieces
from .quantized import BLOCK, dequantize_positive, dequantize_signed, padded, quantize_positive, quantize_signed
from .rounding import store

LEAST_QUANTIZED = 4096  # smaller tensors keep fp32 state: they are biases and norms, and cost nothing


class AdamW(ChunkedOptimizer):
    """8 bytes a parameter; with `bits` 8 about 2 (of the second moment the root is kept, as Adam divides by it)."""

    def __init__(self, groups: Iterable[Any], lr: float, betas: tuple[float, float], eps: float, weight_decay: float,
                 bits: int = 32, seed: int = 0) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}, seed)
        self.bits = bits

    def step_parameter(self, parameter: torch.nn.Parameter, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state.update(empty_state(parameter.numel(), self.bits, parameter.device))
        self._update(flat(parameter), flat_gradient(parameter), state, group, parameter)

    def _update(self, weights: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], group: dict[str, Any],
                parameter: torch.nn.Parameter) -> None:
        state["step"] += 1
        draws = self.draws_for(parameter, state["step"]) if self._is_rounded(weights, state) else None
        for piece in pieces(weights.numel()):
            first, second = _read(state, piece)
            values = weights[piece].float()
            adam_step(values, gradient[piece].float(), first, second, state["step"], group)
            store(weights[piece], values, draws)
            _write(state, piece, first, second, draws)

    @staticmethod
    def _is_rounded(weights: torch.Tensor, state: dict[str, Any]) -> bool:
        return weights.dtype != torch.float32 or "first_codes" in state


def adam_step(values: torch.Tensor, gradient: torch.Tensor, first: torch.Tensor, second: torch.Tensor, step: int,
              group: dict[str, Any]) -> None:
    """One update of fp32 `values` and both moments, in place."""
    beta1, beta2 = group["betas"]
    first.lerp_(gradient, 1 - beta1)
    second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    denominator = second.sqrt().div_(math.sqrt(1 - beta2**step)).add_(group["eps"])
    values.mul_(1 - group["lr"] * group["weight_decay"])
    values.addcdiv_(first, denominator, value=-group["lr"] / (1 - beta1**step))


def empty_state(count: int, bits: int, device: torch.device | str) -> dict[str, Any]:
    """The state of a parameter of `count` numbers before its first step."""
    if bits == 32 or count < LEAST_QUANTIZED:
        return {"step": 0, "first": torch.zeros(count, device=device), "second": torch.zeros(count, device=device)}
    codes, blocks = padded(count), padded(count) // BLOCK
    return {
        "step": 0,
        "first_codes": torch.zeros(codes, dtype=torch.int8, device=device),
        "first_scales": torch.zeros(blocks, device=device),
        "root_codes": torch.zeros(codes, dtype=torch.uint8, device=device),
        "root_scales": torch.zeros(blocks, device=device),
    }


def _read(state: dict[str, Any], piece: slice) -> tuple[torch.Tensor, torch.Tensor]:
    if "first" in state:
        return state["first"][piece], state["second"][piece]
    codes, blocks, count = _stored(piece)
    first = dequantize_signed(state["first_codes"][codes], state["first_scales"][blocks], count)
    root = dequantize_positive(state["root_codes"][codes], state["root_scales"][blocks], count)
    return first, root.square_()


def _write(state: dict[str, Any], piece: slice, first: torch.Tensor, second: torch.Tensor,
           draws: torch.Generator | None) -> None:
    if "first" in state:
        return  # updated in place
    codes, blocks, _ = _stored(piece)
    state["first_codes"][codes], state["first_scales"][blocks] = quantize_signed(first, draws)
    state["root_codes"][codes], state["root_scales"][blocks] = quantize_positive(second.sqrt_(), draws)


def _stored(piece: slice) -> tuple[slice, slice, int]:
    """Where a piece's codes and scales are, and how many of its numbers are no padding."""
    stop = padded(piece.stop)
    return slice(piece.start, stop), slice(piece.start // BLOCK, stop // BLOCK), piece.stop - piece.start
