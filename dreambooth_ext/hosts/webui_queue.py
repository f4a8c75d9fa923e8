"""Holding the WebUI's queue for a whole job, as its own API does for a picture."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..progress import Progress, Report

WATCH_EVERY_S = 0.05


@contextmanager
def held(job_id: str, progress: Progress) -> Iterator[None]:
    """Wait for our turn, then hold the queue; the host's bar shows our progress and its Interrupt stops us.

    Raises Cancelled if the user has lost patience meanwhile.
    """
    from modules import call_queue, shared
    from modules import progress as host_progress

    task = f"task(dreambooth-{job_id})"
    host_progress.add_task_to_queue(task)
    with call_queue.queue_lock:
        shared.state.begin(job=task)
        host_progress.start_task(task)
        watch = _InterruptWatch(shared.state, progress)
        mirror = _Mirror(shared.state)
        progress.listen(mirror)
        try:
            progress.check()
            with watch:
                yield
        finally:
            mirror.active = False
            host_progress.finish_task(task)
            shared.state.end()
            shared.total_tqdm.clear()


class _InterruptWatch:
    """Latches the host's flags: another job that ends elsewhere may reset them before we look."""

    def __init__(self, state: Any, progress: Progress) -> None:
        self._state, self._progress = state, progress
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="dreambooth-interrupt", daemon=True)

    def __enter__(self) -> None:
        self._progress.listen(lambda report: self._look())
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(WATCH_EVERY_S):
            self._look()

    def _look(self) -> None:
        if self._over.is_set():
            return
        # stopping_generation came with 1.8
        if self._state.interrupted or getattr(self._state, "stopping_generation", False):
            self._progress.cancel()


class _Mirror:
    """Shows our reports in the host's own bar: (job_no + sampling_step/sampling_steps) / job_count."""

    def __init__(self, state: Any) -> None:
        self._state = state
        self.active = True

    def __call__(self, report: Report) -> None:
        if not self.active or report.phase == "log":
            return
        # All of it every time: a job that ends elsewhere sets job_count to 0.
        self._state.job_count = max(report.total, 1)
        self._state.job_no = min(report.done, report.total)
        self._state.sampling_step = 0
        counted = report.total and report.phase != "publishing"  # which counts bytes
        self._state.textinfo = f"Dreambooth: {report.phase}" + (f" {report.done} of {report.total}" if counted else "")
        if report.image is not None:
            self._state.assign_current_image(report.image)
