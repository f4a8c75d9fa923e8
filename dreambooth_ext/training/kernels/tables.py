"""One launch for many tensors: a table on the device tells each program on which of them it works.

A launch costs the host some 30 us, as much time as a GPU takes for millions of numbers. After the "multi-tensor apply" of NVIDIA's
Apex: addresses are numbers, so they can lie in a tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton.language as tl

from .jit import jit

MANY = 64  # tensors a launch: each program compares its number with so many
ALIGNED = 16  # bytes of an address, numbers of a row: then each thread loads 16 bytes at once
_NEVER = 2**62


@jit
def owner(table: tl.tensor, program: tl.tensor, many: tl.constexpr) -> tl.tensor:
    """Which tensor a program works on: the last whose first program is not after it."""
    return tl.sum((tl.load(table + tl.arange(0, many)) <= program).to(tl.int32), 0) - 1


@jit
def address(table: tl.tensor, column: tl.constexpr, number: tl.tensor, size: tl.constexpr, aligned: tl.constexpr,
            many: tl.constexpr) -> tl.tensor:
    """A tensor's address, as it stands in a column of the table, of numbers of 1 byte (uint8), 2 (bf16, its bits) or 4 (fp32)."""
    entry = tl.load(table + column * many + number)
    if size == 2:  # Triton 2.1 takes no type from an argument
        found = entry.to(tl.pointer_type(tl.int16))
    elif size == 1:
        found = entry.to(tl.pointer_type(tl.uint8))
    else:
        found = entry.to(tl.pointer_type(tl.float32))
    if aligned:
        found = tl.multiple_of(found, 16)
    return found


def tables(rows: Sequence[Sequence[int]], programs: Sequence[int], device: torch.device) -> Iterator[tuple[torch.Tensor, int]]:
    """For each launch its table and number of programs: tensor i has `programs[i]` of them.

    A table is (columns + 1, MANY) int64: each tensor's first program, and below it what its row tells.
    """
    for start in range(0, len(rows), MANY):
        part, firsts = rows[start : start + MANY], [0]
        for count in programs[start : start + MANY]:
            firsts.append(firsts[-1] + count)
        empty = MANY - len(part)
        numbers = firsts[:-1] + [_NEVER] * empty
        for column in zip(*part, strict=True):
            numbers += [*column, *[0] * empty]
        # From memory that is not pinned the driver takes its copy at once: the host does not wait for the GPU.
        yield torch.tensor(numbers, dtype=torch.int64).to(device, non_blocking=True), firsts[-1]


def are_aligned(tensors: Sequence[torch.Tensor], row: int) -> bool:
    """Whether they begin, and rows of so many numbers go on, where several numbers can be loaded at once."""
    return row % ALIGNED == 0 and all(tensor.data_ptr() % ALIGNED == 0 for tensor in tensors)


def on_the_card_of(tensor: torch.Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current card, wherever the tensors are."""
    if tensor.is_cuda and tensor.get_device() != torch.cuda.current_device():
        return torch.cuda.device(tensor.device)
    return nullcontext()
