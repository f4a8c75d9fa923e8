"""Adafactor's step of matrices, `optimizers.adafactor`: five launches for many weights, whose gradients are read three times.

Sums are made of parts that lie in memory, each written by one program, and not by atomic additions: their order, and so the
result, is always the same. Loops are of the kind `while`, since Triton's interpreter knows no range() of tensors with numpy 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from ..optimizers.adafactor import CLIP_THRESHOLD, EPS_SQUARED_GRADIENT
from .adamw import BYTES
from .jit import jit
from .rounding import ROUNDS, rounded, widened
from .tables import MANY, address, are_aligned, on_the_card_of, owner, tables

TILE = 64  # rows and columns of a matrix that a program works on
PARTS = 32  # that are added at once
# The table's columns; those of rows and of columns of the matrix stand side by side.
_ROWS, _COLUMNS, _WEIGHTS, _GRADIENT, _OF_ROWS, _OF_COLUMNS, _ROW_PARTS, _COLUMN_PARTS, _SUMS, _SQUARES, _FACTOR, _SEED = (
    tl.constexpr(column) for column in range(1, 13))
_EPS = tl.constexpr(EPS_SQUARED_GRADIENT)


@dataclass(frozen=True)
class Factored:
    """A weight as a matrix, its gradient and averages, all dense, and the seed of this step's draws."""

    weights: torch.Tensor  # (rows, columns) bf16 or fp32
    gradient: torch.Tensor  # (rows, columns) bf16 or fp32
    of_rows: torch.Tensor  # (rows,) fp32
    of_columns: torch.Tensor  # (columns,) fp32
    seed: int

    @property
    def tiles(self) -> tuple[int, int]:
        rows, columns = self.weights.shape
        return triton.cdiv(rows, TILE), triton.cdiv(columns, TILE)

    @property
    def scratch(self) -> tuple[int, ...]:
        """Numbers that the launches leave to one another: parts of each row's, each column's, the averages', the update's sums."""
        (rows, columns), (down, across) = self.weights.shape, self.tiles
        return rows * across, columns * down, down, down * across, 1


def step(parameters: Sequence[Factored], share: float, lr: float, weight_decay: float, scale: torch.Tensor | None) -> None:
    """Update weights and averages, in place; of the averages the new gradient becomes a `share`.

    `scale` is () fp32: by what gradients are multiplied, which are left as they are.
    """
    alike: dict[Any, list[Factored]] = {}
    for each in parameters:
        like = each.weights.dtype, each.gradient.dtype, are_aligned((each.weights, each.gradient), each.weights.shape[1])
        alike.setdefault(like, []).append(each)
    for (weight_bytes, gradient_bytes, aligned), some in alike.items():
        constants = {"scaled": scale is not None, "gradient_bytes": BYTES[gradient_bytes], "aligned": aligned, "many": MANY}
        for start in range(0, len(some), MANY):
            with on_the_card_of(some[0].weights):
                _launch(some[start : start + MANY], share, lr, 1 - lr * weight_decay, scale, BYTES[weight_bytes], constants)


def _launch(some: Sequence[Factored], share: float, lr: float, kept: float, scale: torch.Tensor | None, weight_bytes: Any,
            constants: dict[str, Any]) -> None:
    device = some[0].weights.device
    scratch = torch.empty(sum(sum(each.scratch) for each in some), device=device)
    place, rows = scratch.data_ptr(), []
    for each in some:
        places = []
        for count in each.scratch:
            places.append(place)
            place += 4 * count
        tensors = each.weights, each.gradient, each.of_rows, each.of_columns
        rows.append((*each.weights.shape, *(tensor.data_ptr() for tensor in tensors), *places, each.seed))
    ((of_tiles, tiles),) = tables(rows, [math.prod(each.tiles) for each in some], device)
    ((of_vectors, vectors),) = tables(rows, [sum(each.tiles) for each in some], device)
    factor = of_tiles if scale is None else scale
    _squares[(tiles,)](of_tiles, factor, **constants, tile=TILE)
    _averages[(vectors,)](of_vectors, share, 1.0 - share, tile=TILE, parts=PARTS, many=MANY)
    _norms[(tiles,)](of_tiles, factor, **constants, tile=TILE)
    _factors[(len(some),)](of_tiles, lr, CLIP_THRESHOLD, tile=TILE, many=MANY)
    _apply[(tiles,)](of_tiles, factor, kept, **constants, weight_bytes=weight_bytes, tile=TILE)


@jit
def _entry(table: tl.tensor, column: tl.tensor, number: tl.tensor, many: tl.constexpr) -> tl.tensor:
    return tl.load(table + column * many + number)


@jit
def _gradient(table: tl.tensor, scale: tl.tensor, number: tl.tensor, row: tl.tensor, column: tl.tensor, scaled: tl.constexpr,
              gradient_bytes: tl.constexpr, aligned: tl.constexpr, many: tl.constexpr) -> tl.tensor:
    """(row, column) fp32 of the gradient; 0 outside."""
    places, inside = _places(table, number, row, column, aligned, many)
    values = tl.load(address(table, _GRADIENT, number, gradient_bytes, aligned, many) + places, mask=inside, other=0)
    values = widened(values, gradient_bytes)
    if scaled:
        values = values * tl.load(scale)
    return values


@jit
def _places(table: tl.tensor, number: tl.tensor, row: tl.tensor, column: tl.tensor, aligned: tl.constexpr,
            many: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """Where the numbers of these rows and columns lie, and whether they are there."""
    rows = _entry(table, _ROWS, number, many).to(tl.int32)
    columns = _entry(table, _COLUMNS, number, many).to(tl.int32)
    if aligned:
        columns = tl.multiple_of(columns, 16)
    places = row.to(tl.int64)[:, None] * columns + column[None, :]
    return places, (row < rows)[:, None] & (column < columns)[None, :]


@jit
def _tile(table: tl.tensor, tile: tl.constexpr, many: tl.constexpr) -> tuple[tl.tensor, ...]:
    """Of this program: its tensor, its tile's number, first row and first column."""
    number = owner(table, tl.program_id(0), many)
    program = tl.program_id(0) - tl.load(table + number).to(tl.int32)
    across = tl.cdiv(_entry(table, _COLUMNS, number, many).to(tl.int32), tile)
    return number, program, program // across * tile, program % across * tile


@jit
def _squares(table: tl.tensor, scale: tl.tensor, scaled: tl.constexpr, gradient_bytes: tl.constexpr, aligned: tl.constexpr,
             many: tl.constexpr, tile: tl.constexpr) -> None:
    """Parts of the sums of each row's and each column's squares."""
    number, _program, top, left = _tile(table, tile, many)
    row = top + tl.arange(0, tile)
    column = left + tl.arange(0, tile)
    rows = _entry(table, _ROWS, number, many)
    columns = _entry(table, _COLUMNS, number, many)
    gradient = _gradient(table, scale, number, row, column, scaled, gradient_bytes, aligned, many)
    squares = gradient * gradient
    of_rows = address(table, _ROW_PARTS, number, 4, False, many) + (left // tile) * rows
    of_columns = address(table, _COLUMN_PARTS, number, 4, False, many) + (top // tile) * columns
    tl.store(of_rows + row, tl.sum(squares, axis=1), mask=row < rows)
    tl.store(of_columns + column, tl.sum(squares, axis=0), mask=column < columns)


@jit
def _averages(table: tl.tensor, share: tl.tensor, rest: tl.tensor, tile: tl.constexpr, parts: tl.constexpr,
              many: tl.constexpr) -> None:
    """Lines 5 and 6 of algorithm 4: the averages of rows, then of columns, `tile` of them a program; sums of the rows'."""
    number = owner(table, tl.program_id(0), many)
    program = tl.program_id(0) - tl.load(table + number).to(tl.int32)
    rows = _entry(table, _ROWS, number, many).to(tl.int32)
    down = tl.cdiv(rows, tile)
    is_column = (program >= down).to(tl.int32)
    count = _entry(table, _ROWS + is_column, number, many).to(tl.int32)
    other = _entry(table, _COLUMNS - is_column, number, many).to(tl.int32)  # numbers that each is the average of
    source = _entry(table, _ROW_PARTS + is_column, number, many).to(tl.pointer_type(tl.float32))
    average = _entry(table, _OF_ROWS + is_column, number, many).to(tl.pointer_type(tl.float32))
    place = (program - is_column * down) * tile + tl.arange(0, tile)
    part = tl.arange(0, parts)
    pieces = tl.cdiv(other, tile)
    total = tl.zeros([parts, tile], dtype=tl.float32)
    left = pieces
    while left > 0:
        piece = pieces - left + part
        inside = (piece < pieces)[:, None] & (place < count)[None, :]
        total += tl.load(source + (piece.to(tl.int64)[:, None] * count + place[None, :]), mask=inside, other=0.0)
        left -= parts
    mean = tl.sum(total, axis=0) / other.to(tl.float32)
    moved = tl.load(average + place, mask=place < count, other=0.0) * rest + (mean + _EPS) * share
    tl.store(average + place, moved, mask=place < count)
    sums = address(table, _SUMS, number, 4, False, many)
    tl.store(sums + program, tl.sum(tl.where(place < count, moved, 0.0), axis=0), mask=program < down)


@jit
def _mean(table: tl.tensor, number: tl.tensor, tile: tl.constexpr, many: tl.constexpr) -> tl.tensor:
    """Of the rows' averages."""
    rows = _entry(table, _ROWS, number, many).to(tl.int32)
    sums = address(table, _SUMS, number, 4, False, many)
    place = tl.arange(0, tile)
    down = tl.cdiv(rows, tile)
    total = tl.zeros([tile], dtype=tl.float32)
    left = down
    while left > 0:
        total += tl.load(sums + down - left + place, mask=place < left, other=0.0)
        left -= tile
    return tl.sum(total, axis=0) / rows.to(tl.float32)


@jit
def _update(table: tl.tensor, scale: tl.tensor, number: tl.tensor, row: tl.tensor, column: tl.tensor, mean: tl.tensor,
            scaled: tl.constexpr, gradient_bytes: tl.constexpr, aligned: tl.constexpr, many: tl.constexpr) -> tl.tensor:
    """(row, column) of the unclipped update, lines 7 and 8: gradient / sqrt(outer(rows, columns) / mean(rows))."""
    rows = _entry(table, _ROWS, number, many).to(tl.int32)
    columns = _entry(table, _COLUMNS, number, many).to(tl.int32)
    of_rows = tl.load(address(table, _OF_ROWS, number, 4, False, many) + row, mask=row < rows, other=1.0)
    of_columns = tl.load(address(table, _OF_COLUMNS, number, 4, False, many) + column, mask=column < columns, other=1.0)
    gradient = _gradient(table, scale, number, row, column, scaled, gradient_bytes, aligned, many)
    return gradient * (1.0 / tl.sqrt(of_rows / mean))[:, None] * (1.0 / tl.sqrt(of_columns))[None, :]


@jit
def _norms(table: tl.tensor, scale: tl.tensor, scaled: tl.constexpr, gradient_bytes: tl.constexpr, aligned: tl.constexpr,
           many: tl.constexpr, tile: tl.constexpr) -> None:
    """Parts of the sum of the update's squares."""
    number, program, top, left = _tile(table, tile, many)
    row = top + tl.arange(0, tile)
    column = left + tl.arange(0, tile)
    mean = _mean(table, number, tile, many)
    update = _update(table, scale, number, row, column, mean, scaled, gradient_bytes, aligned, many)
    squares = address(table, _SQUARES, number, 4, False, many)
    tl.store(squares + program, tl.sum(tl.sum(update * update, axis=1), axis=0))


@jit
def _factors(table: tl.tensor, lr: tl.tensor, threshold: tl.tensor, tile: tl.constexpr, many: tl.constexpr) -> None:
    """By what an update is multiplied, line 9; a program for each tensor."""
    number = tl.program_id(0)
    rows = _entry(table, _ROWS, number, many).to(tl.int32)
    columns = _entry(table, _COLUMNS, number, many).to(tl.int32)
    count = tl.cdiv(rows, tile) * tl.cdiv(columns, tile)
    squares = address(table, _SQUARES, number, 4, False, many)
    place = tl.arange(0, 1024)
    total = tl.zeros([1024], dtype=tl.float32)
    left = count
    while left > 0:
        total += tl.load(squares + count - left + place, mask=place < left, other=0.0)
        left -= 1024
    root_mean_square = tl.sqrt(tl.sum(total, axis=0) / rows.to(tl.float32) / columns.to(tl.float32))
    factor = lr / tl.maximum(root_mean_square / threshold, 1.0)
    tl.store(address(table, _FACTOR, number, 4, False, many), factor)


@jit
def _apply(table: tl.tensor, scale: tl.tensor, kept: tl.tensor, scaled: tl.constexpr, gradient_bytes: tl.constexpr,
           aligned: tl.constexpr, many: tl.constexpr, weight_bytes: tl.constexpr, tile: tl.constexpr) -> None:
    """The weights' decay and step; of each of four words 16 bits round a number."""
    number, program, top, left = _tile(table, tile, many)
    weights = address(table, _WEIGHTS, number, weight_bytes, aligned, many)
    factor = tl.load(address(table, _FACTOR, number, 4, False, many))
    quarter: tl.constexpr = tile // 4
    offsets = program * (quarter * tile) + tl.arange(0, quarter)[:, None] * tile + tl.arange(0, tile)[None, :]
    one, two, three, four = tl.randint4x(_entry(table, _SEED, number, many), offsets, ROUNDS)
    column = left + tl.arange(0, tile)
    mean = _mean(table, number, tile, many)
    for part in tl.static_range(4):
        if part == 0:
            word = one
        elif part == 1:
            word = two
        elif part == 2:
            word = three
        else:
            word = four
        row = top + part * quarter + tl.arange(0, quarter)
        update = _update(table, scale, number, row, column, mean, scaled, gradient_bytes, aligned, many)
        places, inside = _places(table, number, row, column, aligned, many)
        values = widened(tl.load(weights + places, mask=inside, other=0), weight_bytes) * kept - update * factor
        noise = (word.to(tl.uint32, bitcast=True) >> 16).to(tl.int32, bitcast=True)
        tl.store(weights + places, rounded(values, noise, weight_bytes), mask=inside)
