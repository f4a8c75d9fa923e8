"""GEGLU (Shazeer 2020): one half of a row times the GELU of its other half, without a copy of either."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from .jit import jit

BLOCK = 1024


@jit
def _gate(values: tl.tensor) -> tl.tensor:
    """The normal distribution's share below each value."""
    return 0.5 * (1 + tl.math.erf(values * 0.7071067811865476))


@jit
def _geglu(x: tl.tensor, y: tl.tensor, width: tl.tensor, block: tl.constexpr) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    inside = column < width
    hidden = tl.load(x + row * 2 * width + column, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(x + row * 2 * width + width + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * width + column, (hidden * gate * _gate(gate)).to(y.dtype.element_ty), mask=inside)


@jit
def _geglu_gradient(x: tl.tensor, grad: tl.tensor, grad_x: tl.tensor, width: tl.tensor, block: tl.constexpr) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    inside = column < width
    hidden = tl.load(x + row * 2 * width + column, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(x + row * 2 * width + width + column, mask=inside, other=0.0).to(tl.float32)
    change = tl.load(grad + row * width + column, mask=inside, other=0.0).to(tl.float32)
    below = _gate(gate)
    slope = below + gate * 0.3989422804014327 * tl.exp(-0.5 * gate * gate)
    kind = grad_x.dtype.element_ty
    tl.store(grad_x + row * 2 * width + column, (change * gate * below).to(kind), mask=inside)
    tl.store(grad_x + row * 2 * width + width + column, (change * hidden * slope).to(kind), mask=inside)


class _Geglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous()
        width = x.shape[-1] // 2
        y = x.new_empty((*x.shape[:-1], width))
        _geglu[_grid(y)](x, y, width, block=BLOCK)
        ctx.save_for_backward(x)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        (x,), grad = ctx.saved_tensors, grads[0].contiguous()
        grad_x = torch.empty_like(x)
        _geglu_gradient[_grid(grad)](x, grad, grad_x, grad.shape[-1], block=BLOCK)
        return grad_x


def _grid(y: torch.Tensor) -> tuple[int, int]:
    return y.numel() // y.shape[-1], triton.cdiv(y.shape[-1], BLOCK)


def geglu(x: torch.Tensor) -> torch.Tensor:
    """(..., 2 d) of any float dtype -> (..., d): the first half times the GELU of the second; computed in fp32."""
    return _Geglu.apply(x)  # type: ignore[no-any-return]
