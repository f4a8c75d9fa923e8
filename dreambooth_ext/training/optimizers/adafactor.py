"""Adafactor (Shazeer and Stern 2018, algorithm 4) on two-dimensional views of every weight."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from .chunked import CHUNK, ChunkedOptimizer
from .rounding import store

EPS_SQUARED_GRADIENT = 1e-30
CLIP_THRESHOLD = 1.0  # of the update's root mean square
DECAY_EXPONENT = -0.8


class Adafactor(ChunkedOptimizer):
    """A fixed learning rate, no first moment: less than a hundredth of a byte a parameter.

    Weights of more than two dimensions are viewed as (out, rest). Factoring the last two dimensions of a 3x3
    convolution alone, as is usual, would need two numbers for every three weights; this needs one for each row and
    each column, and nearly all of a UNet's weights are such convolutions.
    """

    def __init__(self, groups: Iterable[Any], lr: float, weight_decay: float, seed: int = 0) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay}, seed)

    def step_parameter(self, parameter: torch.nn.Parameter, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state.update(empty_state(tuple(parameter.shape), parameter.device))
        state["step"] += 1
        share = state["step"] ** DECAY_EXPONENT  # of the new gradient in the averages: all of it in the first step
        gradient, weights = matrix(parameter.grad), matrix(parameter.detach())
        _average(gradient, state, share)
        factor = group["lr"] / (_update_rms(gradient, state) / CLIP_THRESHOLD).clamp(min=1.0)
        draws = self.draws_for(parameter, state["step"]) if parameter.dtype != torch.float32 else None
        for rows in _row_pieces(gradient):
            values = weights[rows].float()
            if group["weight_decay"]:
                values.mul_(1 - group["lr"] * group["weight_decay"])
            values.addcmul_(_update(gradient, state, rows), factor, value=-1)
            store(weights[rows], values, draws)


def empty_state(shape: tuple[int, ...], device: torch.device | str) -> dict[str, Any]:
    """The state of a parameter of this shape before its first step."""
    rows, columns = matrix_shape(shape)
    if columns == 1:
        return {"step": 0, "second": torch.zeros(rows, 1, device=device)}
    return {"step": 0, "rows": torch.zeros(rows, device=device), "columns": torch.zeros(columns, device=device)}


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """(out, rest); what has one dimension is a single column."""
    rows = shape[0] if shape else 1
    columns = 1
    for size in shape[1:]:
        columns *= size
    return rows, columns


def matrix(tensor: torch.Tensor) -> torch.Tensor:
    """A weight or its gradient as a matrix that shares its memory."""
    return tensor.view(matrix_shape(tuple(tensor.shape)))


def _row_pieces(gradient: torch.Tensor) -> Iterator[slice]:
    count = max(1, CHUNK // gradient.shape[1])
    return (slice(start, min(start + count, len(gradient))) for start in range(0, len(gradient), count))


def _average(gradient: torch.Tensor, state: dict[str, Any], share: float) -> None:
    """Lines 5 and 6 of algorithm 4: moving averages of the squared gradient's row and column means."""
    if "second" in state:
        state["second"].lerp_(gradient.float().square().add_(EPS_SQUARED_GRADIENT), share)
        return
    columns = torch.zeros(gradient.shape[1], device=gradient.device)
    for rows in _row_pieces(gradient):  # norms read a bf16 gradient as it is
        state["rows"][rows].lerp_(_norms(gradient[rows], 1).square_().div_(gradient.shape[1]).add_(EPS_SQUARED_GRADIENT), share)
        columns += _norms(gradient[rows], 0).square_()
    state["columns"].lerp_(columns.div_(len(gradient)).add_(EPS_SQUARED_GRADIENT), share)


def _norms(gradient: torch.Tensor, dim: int) -> torch.Tensor:
    return torch.linalg.vector_norm(gradient, dim=dim, dtype=torch.float32)


def _update(gradient: torch.Tensor, state: dict[str, Any], rows: slice) -> torch.Tensor:
    """Lines 7 and 8: gradient / sqrt(outer(rows, columns) / mean(rows)), in fp32."""
    if "second" in state:
        return gradient[rows] * state["second"][rows].rsqrt()
    of_rows = (state["rows"][rows] / state["rows"].mean()).rsqrt()[:, None]
    return (gradient[rows] * of_rows).mul_(state["columns"].rsqrt()[None])


def _update_rms(gradient: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
    norms = [torch.linalg.vector_norm(_update(gradient, state, rows)) for rows in _row_pieces(gradient)]
    return torch.stack(norms).norm() / math.sqrt(gradient.numel())
