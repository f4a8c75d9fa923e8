"""AdamW of fp32 weights by the gradients of their bf16 copies, which it writes anew: one pass over memory, not five."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .rounding import nearest, widened
from .tables import MANY, address, are_aligned, on_the_card_of, owner, tables

BLOCK = 1024
BLOCKS = 16  # of which a program adds up squares


@dataclass(frozen=True)
class Copied:
    """A weight of N numbers in the order of memory, its moments, its copy and the copy's gradient."""

    weights: torch.Tensor  # (N,) fp32, as the moments
    first: torch.Tensor
    second: torch.Tensor
    copy: torch.Tensor  # (N,) bf16, as the gradient
    gradient: torch.Tensor

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return self.weights, self.first, self.second, self.copy, self.gradient


def step(parameters: Sequence[Copied], number: int, lr: float, betas: tuple[float, float], eps: float, weight_decay: float,
         scale: torch.Tensor | None) -> None:
    """Update weights, moments and copies in place; it is step `number` of each.

    `scale` is () fp32: by what gradients are multiplied, which are left as they are.
    """
    corrections = 1 - betas[0] ** number, math.sqrt(1 - betas[1] ** number)
    factors = 1 - betas[0], betas[1], 1 - betas[1], 1 - lr * weight_decay, lr / corrections[0], corrections[1], eps
    for aligned in (True, False):
        some = [each for each in parameters if are_aligned(each.tensors, len(each.weights)) == aligned]
        if not some:
            continue
        rows = [(len(each.weights), *(tensor.data_ptr() for tensor in each.tensors)) for each in some]
        with on_the_card_of(some[0].weights):
            for table, programs in tables(rows, [triton.cdiv(row[0], BLOCK) for row in rows], some[0].weights.device):
                _copied_adamw[(programs,)](table, table if scale is None else scale, *factors, scaled=scale is not None,
                                           aligned=aligned, block=BLOCK, many=MANY)


def norm(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """() fp32: of all the numbers of these bf16 tensors, (N,) each."""
    found = []
    for aligned in (True, False):
        some = [each for each in gradients if are_aligned([each], len(each)) == aligned]
        if not some:
            continue
        rows = [(len(each), each.data_ptr()) for each in some]
        with on_the_card_of(some[0]):
            for table, programs in tables(rows, [triton.cdiv(row[0], BLOCK * BLOCKS) for row in rows], some[0].device):
                found.append(torch.empty(programs, device=some[0].device))
                _norm_of_gradients[(programs,)](table, found[-1], aligned=aligned, blocks=BLOCKS, block=BLOCK, many=MANY)
    return torch.cat(found).sum().sqrt()


@triton.jit
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


@triton.jit
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
