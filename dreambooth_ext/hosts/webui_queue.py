"""Holding the WebUI's queue for a whole job, as its own API does for a picture."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..progress import Progress, Report

WATCH_EVERY_S = 0.05
RELOAD_SHOWS_WITHIN_S = 0.25


@contextmanager
def held(job_id: str, progress: Progress) -> Iterator[InterruptWatch]:
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
        watch = InterruptWatch(shared, progress)
        mirror = _Mirror(shared.state)
        progress.listen(mirror)
        try:
            progress.check()
            with watch:
                yield watch
        finally:
            mirror.active = False
            host_progress.finish_task(task)
            shared.state.end()
            shared.total_tqdm.clear()


class InterruptWatch:
    """Latches the host's flags: another job that ends elsewhere may reset them before we look.

    "Reload UI" raises the same flag as Interrupt, and is no wish to stop: `reloads` counts how often that was seen.
    """

    def __init__(self, shared: Any, progress: Progress) -> None:
        self._shared, self._state, self._progress = shared, shared.state, progress
        self.reloads = 0
        self._judging = threading.RLock()  # what it logs makes it look again
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="dreambooth-interrupt", daemon=True)

    def __enter__(self) -> None:
        self._progress.listen(lambda report: self.look())
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(WATCH_EVERY_S):
            self.look()

    def look(self) -> None:
        """Cancel the job if somebody wants it stopped. A reload is told within RELOAD_SHOWS_WITHIN_S."""
        with self._judging:
            if self._over.is_set() or self._progress.cancelled:
                return
            if getattr(self._state, "stopping_generation", False):  # came with 1.8
                self._progress.cancel()
            elif self._state.interrupted:
                if self._page_goes_down():
                    self.reloads += 1
                    self._state.interrupted = False
                    self._progress.log("The WebUI's page is loaded anew; the run goes on.")
                else:
                    self._progress.cancel()

    def _page_goes_down(self) -> bool:
        """The host's main thread closes its server at once when the page is to be loaded anew."""
        end = time.monotonic() + RELOAD_SHOWS_WITHIN_S
        while time.monotonic() < end:
            if getattr(getattr(getattr(self._shared, "demo", None), "server", None), "should_exit", False):
                return True
            time.sleep(WATCH_EVERY_S / 5)
        return False


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
