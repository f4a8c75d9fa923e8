"""AdamW of fp32 weights by the gradients of their bf16 copies, which it writes anew: one pass over memory, not five."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .jit import jit
from .rounding import nearest, widened
from .tables import ALIGNED, MANY, address, on_the_card_of, owner, tables

BLOCK = 1024
BLOCKS = 16  # of which a program adds up squares


# Of a weight: its numbers, and the addresses of weight, first and second moment (fp32), copy and the copy's gradient (bf16).
Row = tuple[int, int, int, int, int, int]
Launch = tuple[torch.Tensor, int, bool]  # a table, how many programs, whether its tensors are aligned


@dataclass(frozen=True)
class Launches:
    """What to launch for some weights, as long as they and theirs lie where they lie."""

    of_step: list[Launch]
    of_norm: list[Launch]


def launches(rows: Sequence[Row], device: torch.device) -> Launches:
    """For all numbers of these weights, in the order of memory, which is the same for all that belongs to one."""
    return Launches(_launched(rows, BLOCK, device), _launched([(row[0], row[5]) for row in rows], BLOCK * BLOCKS, device))


def _launched(rows: Sequence[tuple[int, ...]], block: int, device: torch.device) -> list[Launch]:
    """By programs of `block` numbers."""
    found: list[Launch] = []
    for aligned in (True, False):
        some = [row for row in rows if all(number % ALIGNED == 0 for number in row) == aligned]
        found += [(table, programs, aligned)
                  for table, programs in tables(some, [triton.cdiv(row[0], block) for row in some], device)]
    return found


def step(of: Launches, number: int, lr: float, betas: tuple[float, float], eps: float, weight_decay: float,
         scale: torch.Tensor | None) -> None:
    """Update weights, moments and copies in place; it is step `number` of each.

    `scale` is () fp32: by what gradients are multiplied, which are left as they are.
    """
    corrections = 1 - betas[0] ** number, math.sqrt(1 - betas[1] ** number)
    factors = 1 - betas[0], betas[1], 1 - betas[1], 1 - lr * weight_decay, lr / corrections[0], corrections[1], eps
    for table, programs, aligned in of.of_step:
        with on_the_card_of(table):
            _copied_adamw[(programs,)](table, table if scale is None else scale, *factors, scaled=scale is not None,
                                       aligned=aligned, block=BLOCK, many=MANY)


def norm(of: Sequence[Launches]) -> torch.Tensor:
    """() fp32: of all gradients together."""
    return _norm([launch for each in of for launch in each.of_norm])


def norm_of(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """() fp32: of these together, dense and bf16."""
    rows = [(gradient.numel(), gradient.data_ptr()) for gradient in gradients]
    return _norm(_launched(rows, BLOCK * BLOCKS, gradients[0].device))


def _norm(launches: Sequence[Launch]) -> torch.Tensor:
    found = []
    for table, programs, aligned in launches:
        found.append(torch.empty(programs, device=table.device))
        with on_the_card_of(table):
            _norm_of_gradients[(programs,)](table, found[-1], aligned=aligned, blocks=BLOCKS, block=BLOCK, many=MANY)
    return torch.cat(found).sum().sqrt()


@jit
def _copied_adamw(table: tl.tensor, scale: tl.tensor, of_first: tl.tensor, beta2: tl.tensor, of_second: tl.tensor,
                  kept: tl.tensor, rate: tl.tensor, correction: tl.tensor, eps: tl.tensor, scaled: tl.constexpr,
                  aligned: tl.constexpr, block: tl.constexpr, many: tl.constexpr) -> None:
    number = owner(table, tl.program_id(0), many)
    start = (tl.program_id(0) - tl.load(table + number)).to(tl.int64) * block
    left = tl.minimum(tl.load(table + many + number) - start, block).to(tl.int32)
    if aligned:
        left = tl.multiple_of(left, 16)
    weights = address(table, 2, number, 4, aligned, many) + start
    firsts = address(table, 3, number, 4, aligned, many) + start
    seconds = address(table, 4, number, 4, aligned, many) + start
    copies = address(table, 5, number, 2, aligned, many) + start
    gradients = address(table, 6, number, 2, aligned, many) + start
    places = tl.arange(0, block)
    inside = places < left
    new = widened(tl.load(gradients + places, mask=inside, other=0), 2)
    if scaled:
        new *= tl.load(scale)
    first = tl.load(firsts + places, mask=inside, other=0.0)
    first += (new - first) * of_first
    second = tl.load(seconds + places, mask=inside, other=0.0) * beta2 + new * new * of_second
    values = tl.load(weights + places, mask=inside, other=0.0) * kept
    values -= rate * (first / (tl.sqrt(second) / correction + eps))
    tl.store(firsts + places, first, mask=inside)
    tl.store(seconds + places, second, mask=inside)
    tl.store(weights + places, values, mask=inside)
    tl.store(copies + places, nearest(values), mask=inside)


@jit
def _norm_of_gradients(table: tl.tensor, squares: tl.tensor, aligned: tl.constexpr, blocks: tl.constexpr, block: tl.constexpr,
                       many: tl.constexpr) -> None:
    number = owner(table, tl.program_id(0), many)
    start = (tl.program_id(0) - tl.load(table + number)).to(tl.int64) * (blocks * block)
    left = tl.minimum(tl.load(table + many + number) - start, blocks * block).to(tl.int32)
    if aligned:
        left = tl.multiple_of(left, 16)
    gradients = address(table, 2, number, 2, aligned, many) + start
    total = tl.zeros((block,), tl.float32)
    for number_of_block in range(blocks):
        places = number_of_block * block + tl.arange(0, block)
        values = widened(tl.load(gradients + places, mask=places < left, other=0), 2)
        total += values * values
    tl.store(squares + tl.program_id(0), tl.sum(total, axis=0))
