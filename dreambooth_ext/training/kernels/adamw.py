"""AdamW on 8-bit state, `optimizers.adamw`'s `_quantized_step`, in one pass over memory and one launch for many weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from ..optimizers.quantized import BLOCK, SHARE_FACTOR, TOP
from .jit import jit
from .rounding import ROUNDS, hypotenuse, nearest, root_code, root_of, rounded, share_code, share_of, widened
from .tables import MANY, address, are_aligned, on_the_card_of, owner, tables

ROWS = 4  # blocks that a program works on at once, twice: with more, its registers leave few programs to a processor
_BLOCK = tl.constexpr(BLOCK)
_SHARE_FACTOR = tl.constexpr(SHARE_FACTOR)
_TOP = tl.constexpr(TOP)
BYTES = {torch.bfloat16: 2, torch.float32: 4}  # what is told to kernels: Triton 2.1 compares numbers only


@dataclass(frozen=True)
class Quantized:
    """A parameter of N numbers and its 8-bit state, in the order of memory, and the seed of this step's draws.

    If it has a copy, which is bf16, that becomes the weights' rounding to nearest.
    """

    weights: torch.Tensor  # (N,) bf16 or fp32
    gradient: torch.Tensor  # (N,) bf16 or fp32
    share_codes: torch.Tensor
    root_codes: torch.Tensor
    root_scales: torch.Tensor
    seed: int
    copy: torch.Tensor | None = None

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        own = self.weights, self.gradient, self.share_codes, self.root_codes, self.root_scales
        return own if self.copy is None else (*own, self.copy)

    @property
    def row(self) -> tuple[int, ...]:
        """As it stands in a table."""
        return (self.weights.numel(), self.seed, *(tensor.data_ptr() for tensor in self.tensors))


def step(parameters: Sequence[Quantized], number: int, lr: float, betas: tuple[float, float], eps: float, weight_decay: float,
         scale: torch.Tensor | None) -> None:
    """Update the weights and the state of these, in place; it is step `number` of each.

    `scale` is () fp32: by what gradients are multiplied, which are left as they are.
    """
    alike: dict[Any, list[Quantized]] = {}
    for each in parameters:
        aligned = are_aligned(each.tensors, each.weights.numel())
        like = each.weights.dtype, each.gradient.dtype, each.copy is not None, aligned
        alike.setdefault(like, []).append(each)
    factors = _factors(number, lr, betas, eps, weight_decay)
    for (weight_bytes, gradient_bytes, copied, aligned), some in alike.items():
        device = some[0].weights.device
        rows = [each.row for each in some]
        with on_the_card_of(some[0].weights):
            for table, programs in tables(rows, [triton.cdiv(row[0], 2 * ROWS * BLOCK) for row in rows], device):
                _step[(programs,)](table, table if scale is None else scale, *factors, scaled=scale is not None,
                                   weight_bytes=BYTES[weight_bytes], gradient_bytes=BYTES[gradient_bytes], copied=copied,
                                   aligned=aligned, rows=ROWS, many=MANY)


def _factors(number: int, lr: float, betas: tuple[float, float], eps: float, weight_decay: float) -> tuple[float, ...]:
    """What the kernel multiplies by and adds, in the order of its arguments; see `_quantized_step` for the formulas."""
    beta1, beta2 = betas[0], max(betas[1], 1e-6)
    unit = (1 - beta1) / math.sqrt(1 - beta2)
    return (
        math.sqrt(1 - beta2),
        math.sqrt(beta2) / TOP,
        math.sqrt(beta2 * (1 - beta2 ** (number - 1))) * eps,
        beta1 / (math.sqrt(beta2) * SHARE_FACTOR),
        max(math.sqrt(1 - beta2**number) * eps, 1e-30),
        1 - lr * weight_decay,
        lr * unit * math.sqrt(1 - beta2**number) / (1 - beta1**number),
    )


@jit
def _step(table: tl.tensor, scale: tl.tensor, gradient_factor: tl.tensor, root_factor: tl.tensor, eps_before: tl.tensor,
          share_factor: tl.tensor, eps_after: tl.tensor, kept: tl.tensor, rate: tl.tensor, scaled: tl.constexpr,
          weight_bytes: tl.constexpr, gradient_bytes: tl.constexpr, copied: tl.constexpr, aligned: tl.constexpr,
          rows: tl.constexpr, many: tl.constexpr) -> None:
    number = owner(table, tl.program_id(0), many)
    program = tl.program_id(0) - tl.load(table + number).to(tl.int32)
    block = program.to(tl.int64) * (2 * rows)
    start = block * _BLOCK
    weights = address(table, 3, number, weight_bytes, aligned, many) + start
    gradients = address(table, 4, number, gradient_bytes, aligned, many) + start
    shares = address(table, 5, number, 1, aligned, many) + start
    roots = address(table, 6, number, 1, aligned, many) + start
    scales = address(table, 7, number, 4, aligned, many) + block
    copies = address(table, 8 if copied else 3, number, 2, aligned, many) + start
    left = tl.minimum(tl.load(table + many + number) - start, 2 * rows * _BLOCK).to(tl.int32)
    if aligned:
        left = tl.multiple_of(left, 16)
    if scaled:
        gradient_factor *= tl.load(scale)
    row = tl.arange(0, rows)
    places = row[:, None] * _BLOCK + tl.arange(0, _BLOCK)[None, :]
    # Of four words, 55 bits for each of two numbers.
    one, two, three, four = tl.randint4x(tl.load(table + 2 * many + number), program * (rows * _BLOCK) + places, ROUNDS)
    _update(weights, gradients, shares, roots, scales, copies, row, places, left, one, two,
            gradient_factor, root_factor, eps_before, share_factor, eps_after, kept, rate, weight_bytes, gradient_bytes, copied)
    half: tl.constexpr = rows * _BLOCK
    _update(weights, gradients, shares, roots, scales, copies, row + rows, places + half, left, three, four,
            gradient_factor, root_factor, eps_before, share_factor, eps_after, kept, rate, weight_bytes, gradient_bytes, copied)


@jit
def _update(weights: tl.tensor, gradients: tl.tensor, shares: tl.tensor, roots: tl.tensor, scales: tl.tensor, copies: tl.tensor,
            row: tl.tensor, places: tl.tensor, left: tl.tensor, word: tl.tensor, other_word: tl.tensor,
            gradient_factor: tl.tensor, root_factor: tl.tensor, eps_before: tl.tensor, share_factor: tl.tensor,
            eps_after: tl.tensor, kept: tl.tensor, rate: tl.tensor, weight_bytes: tl.constexpr, gradient_bytes: tl.constexpr,
            copied: tl.constexpr) -> None:
    """(rows, BLOCK) numbers at `places`, as far as there are any `left`."""
    inside = places < left
    begun = row * _BLOCK < left
    new = widened(tl.load(gradients + places, mask=inside, other=0), gradient_bytes) * gradient_factor
    unit = tl.load(scales + row, mask=begun, other=0.0) * root_factor
    root = root_of(tl.load(roots + places, mask=inside, other=0)) * unit[:, None]
    first = new + share_of(tl.load(shares + places, mask=inside, other=0)) * (root + eps_before) * share_factor
    root = tl.where(inside, hypotenuse(root, new), 0.0)
    share = first / (root + eps_after)
    values = widened(tl.load(weights + places, mask=inside, other=0), weight_bytes) * kept - share * rate
    word = word.to(tl.uint32, bitcast=True)
    other_word = other_word.to(tl.uint32, bitcast=True)
    noise = (((word & 7) << 13) | (other_word & 0x1FFF)).to(tl.int32, bitcast=True)
    tl.store(weights + places, rounded(values, noise, weight_bytes), mask=inside)
    if copied:
        tl.store(copies + places, nearest(values), mask=inside)
    tl.store(shares + places, share_code(share * _SHARE_FACTOR, (word >> 12).to(tl.int32, bitcast=True)), mask=inside)
    largest = tl.max(root, axis=1)
    tl.store(scales + row, largest, mask=begun)
    root = root * (1.0 / tl.maximum(largest, 1e-30) * _TOP)[:, None]
    tl.store(roots + places, root_code(root, (other_word >> 13).to(tl.int32, bitcast=True)), mask=inside)
