"""A run's figures and previews for TensorBoard, where it is installed: RUN/tensorboard, beside our own metrics.jsonl."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from .progress import Progress, Report
from .run_folder import RunFolder

FOLDER = "tensorboard"
SCALARS = {"loss": "loss/train", "validation_loss": "loss/validation", "learning_rate": "learning_rate",
           "steps_per_s": "speed/steps_per_s", "memory_gib": "memory/gib"}


@contextmanager
def tensorboard_log(run: RunFolder, progress: Progress) -> Iterator[None]:
    """While the block runs, write what training reports. Nothing is imported, nor written, without TensorBoard."""
    if find_spec("tensorboard") is None:
        yield
        return
    board = _Board(run, progress)
    try:
        with progress.heard_by(board.listen):
            yield
    finally:
        board.close()


class _Board:
    """Opens its file with the first step. Whatever goes wrong here is told once, and costs no run."""

    def __init__(self, run: RunFolder, progress: Progress) -> None:
        self._run, self._progress = run, progress
        self._writer: Any = None
        self._broken = False
        self._shown: dict[str, float] = {}

    def listen(self, report: Report) -> None:
        if self._broken or report.phase != "training":
            return
        try:
            if report.image is not None:
                self._open(report.done).add_image("previews", self._pixels(report.image), report.done)
            elif report.figures:
                for name, tag in SCALARS.items():
                    value = report.figures.get(name)
                    if isinstance(value, (int, float)):
                        self._open(report.done).add_scalar(tag, value, report.done)
        except Exception as error:  # noqa: BLE001  another's library, of whatever version: the run matters more
            self._give_up(error)

    def close(self) -> None:
        if self._writer is None or self._broken:
            return
        try:
            self._writer.close()  # its thread may still be writing, and a disk be full
        except Exception as error:  # noqa: BLE001  the run has ended as it has, by now
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._broken = True
        self._progress.log(f"TensorBoard's files could not be written ({type(error).__name__}: {error}).")

    def _open(self, step: int) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # A resumed run takes steps again: what an earlier file says of them is void.
            self._writer = SummaryWriter(str(self._run.path / FOLDER), purge_step=step)
        return self._writer

    @staticmethod
    def _pixels(image: Any) -> Any:
        import numpy as np

        return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
