"""A step's numbers, read from the device without holding it up."""

from __future__ import annotations

from collections.abc import Mapping

import torch


class Figures:
    """Copies scalars to RAM while the device goes on; `read` waits only for what is not there yet.

    On a GPU they are best read a step later: by then they have arrived.
    """

    def __init__(self, values: Mapping[str, torch.Tensor]) -> None:
        self._names = tuple(values)
        stacked = torch.stack([value.detach().float() for value in values.values()])
        self._arrived: torch.cuda.Event | None = None
        self._values = stacked
        if stacked.is_cuda:
            self._values = torch.empty(stacked.shape, pin_memory=True)
            self._values.copy_(stacked, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> dict[str, float]:
        if self._arrived is not None:
            self._arrived.synchronize()
        return dict(zip(self._names, self._values.tolist(), strict=True))
