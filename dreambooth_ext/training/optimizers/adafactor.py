"""Adafactor (Shazeer and Stern 2018, algorithm 4) on two-dimensional views of every weight."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from .chunked import ChunkedOptimizer, flat, flat_gradient, pieces
from .rounding import store

EPS_SQUARED_GRADIENT = 1e-30
CLIP_THRESHOLD = 1.0  # of the update's root mean square
DECAY_EXPONENT = -0.8


class Adafactor(ChunkedOptimizer):
    """A fixed learning rate, no first moment: less than a hundredth of a byte a parameter.

    Weights of more than two dimensions are viewed as (out, rest). Factoring the last two dimensions of a 3x3
    convolution alone, as is usual, would need two numbers for every three weights; this needs one for each row and
    each column, and nearly all of a UNet's weights are such convolutions. With `kernels` matrices are updated by Triton's.
    """

    def __init__(self, groups: Iterable[Any], lr: float, weight_decay: float, seed: int = 0, kernels: bool = False) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay}, seed)
        self.kernels = kernels
        self._owners: dict[tuple[int, ...], torch.Tensor] = {}

    def empty_state(self, parameter: torch.nn.Parameter) -> dict[str, Any]:
        return empty_state(tuple(parameter.shape), parameter.device)

    def joins(self, parameter: torch.nn.Parameter) -> bool:
        return _is_column(parameter)

    def has_kernel(self, parameter: torch.nn.Parameter) -> bool:
        return not _is_column(parameter)

    def step_by_kernels(self, parameters: list[torch.nn.Parameter], step: int, group: dict[str, Any],
                        scale: torch.Tensor | None) -> None:
        from ..kernels import adafactor  # Triton is not everywhere

        some = []
        for parameter in parameters:
            state = self.state[parameter]
            some.append(adafactor.Factored(*matrices(parameter), state["rows"], state["columns"], self.seed_for(parameter, step)))
        adafactor.step(some, _share(step), group["lr"], group["weight_decay"], scale)

    def step_parameter(self, parameter: torch.nn.Parameter, group: dict[str, Any]) -> None:
        if _is_column(parameter):
            super().step_parameter(parameter, group)
            return
        state = self._state_of(parameter)
        state["step"] += 1
        weights, gradient = matrices(parameter)
        some_rows = list(pieces(gradient))
        _average(gradient, state, some_rows)
        scales = _scales(state)
        whole = _update(gradient, scales, some_rows[0]) if len(some_rows) == 1 else None  # of several, each is made twice
        norms = [torch.linalg.vector_norm(_update(gradient, scales, rows) if whole is None else whole) for rows in some_rows]
        norm = norms[0] if len(norms) == 1 else torch.stack(norms).norm()
        factor = _factor(norm, math.sqrt(gradient.numel()), group)
        draws = self.draws_for(parameter, state["step"])
        for rows in some_rows:
            _apply(weights[rows], _update(gradient, scales, rows) if whole is None else whole, factor, group, draws)

    def update(self, weights: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], group: dict[str, Any],
               draws: torch.Generator, sizes: tuple[int, ...]) -> None:
        """Of columns, whose averages are not factored (lines 5 and 6 of algorithm 4 for vectors)."""
        second, gradient = state["second"].view(-1), gradient.float()
        second.lerp_(gradient.square().add_(EPS_SQUARED_GRADIENT), _share(state["step"]))
        update = gradient * second.rsqrt()
        norms = torch._foreach_norm(update.split(sizes))
        torch._foreach_div_(norms, [math.sqrt(size) for size in sizes])
        factors = _factor(torch.stack(norms), 1.0, group)
        _apply(weights, update, factors if len(sizes) == 1 else factors[self._owner(sizes, weights.device)], group, draws)

    def _owner(self, sizes: tuple[int, ...], device: torch.device) -> torch.Tensor:
        """(N,): which of the joined parameters a number belongs to."""
        if sizes not in self._owners:
            self._owners[sizes] = torch.cat([torch.full((size,), number) for number, size in enumerate(sizes)]).to(device)
        return self._owners[sizes]


def empty_state(shape: tuple[int, ...], device: torch.device | str) -> dict[str, Any]:
    """The state of a parameter of this shape before its first step."""
    rows, columns = matrix_shape(shape)
    if columns == 1:
        return {"step": 0, "second": torch.zeros(rows, 1, device=device)}
    return {"step": 0, "rows": torch.zeros(rows, device=device), "columns": torch.zeros(columns, device=device)}


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """(out, rest); what has one dimension is a single column."""
    return shape[0] if shape else 1, math.prod(shape[1:])


def matrices(parameter: torch.nn.Parameter) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and its gradient as matrices that share their memory: columns are in its order, channels last or not."""
    shape = matrix_shape(tuple(parameter.shape))
    return flat(parameter).view(shape), flat_gradient(parameter).view(shape)


def _is_column(parameter: torch.Tensor) -> bool:
    return matrix_shape(tuple(parameter.shape))[1] == 1


def _share(step: int) -> float:
    """Of the new gradient in the averages: all of it in the first step."""
    return float(step**DECAY_EXPONENT)


def _average(gradient: torch.Tensor, state: dict[str, Any], some_rows: list[slice]) -> None:
    """Lines 5 and 6 of algorithm 4: moving averages of the squared gradient's row and column means."""
    share, rows = _share(state["step"]), [_norms(gradient[piece], 1) for piece in some_rows]
    _move(state["rows"], rows[0] if len(rows) == 1 else torch.cat(rows), gradient.shape[1], share)
    _move(state["columns"], _column_norms(gradient, some_rows), len(gradient), share)


def _column_norms(gradient: torch.Tensor, some_rows: list[slice]) -> torch.Tensor:
    norms = _norms(gradient[some_rows[0]], 0)
    if len(some_rows) > 1:
        norms.square_()
        for piece in some_rows[1:]:
            of_piece = _norms(gradient[piece], 0)
            norms.addcmul_(of_piece, of_piece)
        norms.sqrt_()
    return norms


def _move(average: torch.Tensor, norms: torch.Tensor, count: int, share: float) -> None:
    """Towards the mean squares of what has these norms, `count` numbers each."""
    average.mul_(1 - share).add_(share * EPS_SQUARED_GRADIENT).addcmul_(norms, norms, value=share / count)


def _norms(gradient: torch.Tensor, dim: int) -> torch.Tensor:
    return torch.linalg.vector_norm(gradient, dim=dim, dtype=torch.float32)


def _scales(state: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """What each row and each column is multiplied by, lines 7 and 8: 1 / sqrt(outer(rows, columns) / mean(rows))."""
    return (state["rows"] / state["rows"].mean()).rsqrt()[:, None], state["columns"].rsqrt()[None]


def _update(gradient: torch.Tensor, scales: tuple[torch.Tensor, torch.Tensor], rows: slice) -> torch.Tensor:
    """The unclipped update of some rows, in fp32."""
    of_rows, of_columns = scales
    return (gradient[rows] * of_rows[rows]).mul_(of_columns)


def _factor(norm: torch.Tensor, root: float, group: dict[str, Any]) -> torch.Tensor:
    """By what an update is multiplied whose root mean square is norm / root; line 9."""
    return group["lr"] / (norm / (root * CLIP_THRESHOLD)).clamp(min=1.0)


def _apply(weights: torch.Tensor, update: torch.Tensor, factor: torch.Tensor, group: dict[str, Any],
           draws: torch.Generator) -> None:
    values = weights.float()
    if group["weight_decay"]:
        values.mul_(1 - group["lr"] * group["weight_decay"])
    values.addcmul_(update, factor, value=-1)
    store(weights, values, draws)
