"""Batches made ready while the device works on the one before."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Protocol

import torch

from .data import Batch

Place = tuple[int, int]  # optimizer step from 0, forward pass


class Batches(Protocol):
    def batch(self, step: int, micro: int) -> Batch: ...


class Prefetched:
    """The same batches, one ahead; for a GPU in memory that it copies from by itself.

    Only for batches that depend on their place alone. Use it as a context manager: its thread ends with the block.
    """

    def __init__(self, batches: Batches, steps: int, micro_batches: int, device: torch.device) -> None:
        self._batches, self._steps, self._micro_batches = batches, steps, micro_batches
        self._pinned = device.type == "cuda"
        # A thread begins on the first GPU, and would take memory there. Accelerate's "cuda" means the one that was set.
        begin = partial(torch.cuda.set_device, torch.cuda.current_device()) if self._pinned else None
        self._thread = ThreadPoolExecutor(1, "dreambooth batches", initializer=begin)
        self._ahead: tuple[Place, Future[Batch]] | None = None

    def __enter__(self) -> Prefetched:
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def batch(self, step: int, micro: int) -> Batch:
        if self._ahead is not None and self._ahead[0] == (step, micro):
            found = self._ahead[1].result()
        else:
            if self._ahead is not None:
                self._ahead[1].result()  # one at a time: they share what they know of the epoch
            found = self._made(step, micro)
        following = (step, micro + 1) if micro + 1 < self._micro_batches else (step + 1, 0)
        self._ahead = (following, self._thread.submit(self._made, *following)) if following[0] < self._steps else None
        return found

    def _made(self, step: int, micro: int) -> Batch:
        batch = self._batches.batch(step, micro)
        return batch.pinned() if self._pinned else batch
