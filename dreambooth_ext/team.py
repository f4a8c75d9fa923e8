"""The processes of one `accelerate launch`: the first leads, the others render and train as it says.

Only the leader touches the run's folder. A process that was started alone is a team of one, and nothing here does anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import Cancelled, HostError
from .host import Txt2Img
from .progress import Progress

if TYPE_CHECKING:
    from PIL.Image import Image

    from .config import TrainConfig

Render = Callable[[Path, Txt2Img, Progress], "Iterator[Image]"]
PATIENCE = timedelta(days=7)  # the leader may have thousands of pictures to prepare, or wait for room on the disk


@dataclass(frozen=True)
class TrainOrder:
    """What the leader tells the others to train, once its pictures are ready."""

    config: TrainConfig
    run: Path
    resume: bool


@dataclass(frozen=True)
class _RenderOrder:
    base: Path
    request: Txt2Img


class Team:
    """This process's place among `count` of them."""

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count
        self._train_order_given = False

    @classmethod
    def launched(cls, device: str) -> Team:
        """The team that `accelerate launch` (or torchrun) made this process part of; alone without it.

        Every process calls it, since it waits for the others. `device` is the configuration's; Accelerate would take "auto"
        for a GPU, and where there is none leave each process by itself, without a word.
        """
        team = cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
        if team.count > 1:
            import torch
            from accelerate import PartialState

            PartialState(cpu=device == "cpu" or not torch.cuda.is_available(), timeout=PATIENCE)
        return team

    @property
    def follows(self) -> bool:
        return self.rank > 0

    @contextmanager
    def led(self) -> Iterator[None]:
        """For the leader: whatever ends it before training lets the others go, too."""
        try:
            yield
        except BaseException:
            if not self._train_order_given:
                self._tell(None)
            raise

    def train(self, order: TrainOrder) -> None:
        """For the leader: from now on all train."""
        self._train_order_given = True
        self._tell(order)

    def shared(self, render: Render) -> Render:
        """For the leader: `render`, with the seeds split over all processes."""
        if self.count == 1:
            return render

        def rendered(base: Path, request: Txt2Img, progress: Progress) -> Iterator[Image]:
            self._tell(_RenderOrder(base, request))
            parts = self._gathered(render, base, request, progress)
            for place in range(len(request.seeds)):
                yield parts[place % self.count][place // self.count]

        return rendered

    def follow(self, render: Render, progress: Progress) -> TrainOrder:
        """For the others: render what is asked for until training begins. Raises Cancelled if the leader has ended."""
        while True:
            order = self._tell(None)
            if order is None:
                raise Cancelled
            if isinstance(order, TrainOrder):
                return order
            self._gathered(render, order.base, order.request, progress)

    def _tell(self, order: Any) -> Any:
        """What the leader says, in every process."""
        if self.count == 1:
            return order
        from torch import distributed

        said = [order]
        distributed.broadcast_object_list(said, src=0)
        return said[0]

    def _gathered(self, render: Render, base: Path, request: Txt2Img, progress: Progress) -> list[list[Image]]:
        """Every process's share of the pictures. Raises what went wrong here, or HostError for what did elsewhere."""
        from torch import distributed

        own: list[Image] = []
        fault: BaseException | None = None
        seeds = request.seeds[self.rank :: self.count]
        try:
            own = list(render(base, replace(request, seeds=seeds), progress)) if seeds else []
        except BaseException as error:  # noqa: BLE001  raised below: the others wait for this process to answer
            fault = error
        parts: list[Any] = [None] * self.count
        distributed.all_gather_object(parts, (own, None if fault is None else f"{type(fault).__name__}: {fault}"))
        if fault is not None:
            raise fault
        for rank, (_, why) in enumerate(parts):
            if why is not None:
                raise HostError("class images are to be rendered by several processes", f"process {rank} failed: {why}",
                                "Look at its output above.")
        return [pictures for pictures, _ in parts]
