"""One background job at a time in this process: start it, watch it from anywhere, cancel it, queue more.

The state lives here, in the package, so that a reloaded page or a reloaded script finds it again.
"""

from __future__ import annotations

import threading
import time
import traceback
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .errors import Cancelled, DreamboothError, RunBusy
from .progress import Progress, Report

ENDED = ("finished", "cancelled", "failed")
KEPT = "what was finished is kept"  # of a job that was stopped
TOO_LATE = "The stop came too late: it was finished already."
LOG_LINES_KEPT = 500
ENDED_JOBS_KEPT = 50


@dataclass
class Job:
    """A piece of work and what is known of it. Times are seconds since 1970; state: queued, running or one of ENDED.

    Of jobs with the same `key`, one at a time may wait or run.
    """

    name: str
    work: Callable[[Progress], Any]
    key: Any = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    state: str = "queued"
    message: str = ""
    result: Any = None
    last: Report = field(default_factory=lambda: Report("", 0, 0))
    preview: Any = None
    stopped_by: str = ""
    started_s: float = 0.0
    ended_s: float = 0.0
    log: deque[str] = field(default_factory=lambda: deque(maxlen=LOG_LINES_KEPT))
    progress: Progress = field(default_factory=Progress)
    done: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.progress.listen(self._note)

    def _note(self, report: Report) -> None:
        if report.phase == "log":
            self.log.append(report.text)
            return
        if report.image is not None:
            self.preview = report.image
        self.last = report

    def status(self) -> dict[str, Any]:
        """What the page and the API show: plain values only."""
        return {
            "id": self.id, "name": self.name, "state": self.state, "message": self.message,
            "phase": self.last.phase, "done": self.last.done, "total": self.last.total, "text": self.last.text,
            "figures": dict(self.last.figures), "log": list(self.log), "stopped_by": self.stopped_by,
            "started_s": self.started_s, "ended_s": self.ended_s,
        }


class Jobs:
    """A queue with one worker thread, which ends when nothing is left to do."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[Job] = deque()
        self._ended: deque[Job] = deque(maxlen=ENDED_JOBS_KEPT)
        self._worker: threading.Thread | None = None
        self.running: Job | None = None

    def start(self, job: Job) -> Job:
        """Queue a job; it runs at once if nothing else does. Raises RunBusy if there is one of the same key."""
        with self._lock:
            others = [*([self.running] if self.running else []), *self._waiting]
            if job.key is not None and any(other.key == job.key for other in others):
                raise RunBusy(f"{job.name} is to be worked on", "it is running or waiting already", "Watch it, or stop it first.")
            self._waiting.append(job)
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name="dreambooth", daemon=True)
                self._worker.start()
        return job

    def find(self, job_id: str) -> Job | None:
        return next((job for job in self.all() if job.id == job_id), None)

    def all(self) -> list[Job]:
        """The running job, then those that wait, then those that ended, newest first."""
        with self._lock:
            return [*([self.running] if self.running else []), *self._waiting, *reversed(self._ended)]

    def move(self, job_id: str, places: int) -> bool:
        """Move a waiting job sooner (-1, ...) or later (1, ...) in the queue, its ends at most. False if it does not wait."""
        with self._lock:
            order = [job.id for job in self._waiting]
            if job_id not in order:
                return False
            at = order.index(job_id)
            job = self._waiting[at]
            del self._waiting[at]
            self._waiting.insert(min(max(at + places, 0), len(self._waiting)), job)
        return True

    def stop(self, job_id: str, by: str) -> bool:
        """Cancel a job, running or waiting; `by` says who asked. False if there is no such job to stop."""
        with self._lock:
            waiting = next((job for job in self._waiting if job.id == job_id), None)
            if waiting is not None:
                self._waiting.remove(waiting)
                waiting.stopped_by = by
                self._end(waiting, "cancelled", "taken out of the queue")
                return True
            job = self.running  # a job ends under the same lock: either it hears of the stop, or there is none to stop any more
            if job is None or job.id != job_id:
                return False
            job.stopped_by = job.stopped_by or by
            job.progress.cancel()
        return True

    def stop_all(self, by: str) -> Job | None:
        """Take what waits out of the queue, and cancel the running job, if there is one: its `done` tells when it has ended."""
        for job in reversed(self.all()):
            if job.state not in ENDED:
                self.stop(job.id, by)
        return self.running

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._worker = None
                    return
                job = self.running = self._waiting.popleft()
                job.state, job.started_s = "running", time.time()
            state, message = self._outcome(job)
            with self._lock:
                self.running = None
                if state == "finished" and job.progress.cancelled:
                    message = getattr(job.work, "too_late", TOO_LATE)
                self._end(job, state, message)

    @staticmethod
    def _outcome(job: Job) -> tuple[str, str]:
        try:
            job.result = job.work(job.progress)
        except Cancelled as stopped:
            return "cancelled", str(stopped) or KEPT
        except DreamboothError as error:
            return "failed", str(error)
        except BaseException as error:  # noqa: BLE001  the thread's last line of defence: whatever it is, it is told
            job.log.append(traceback.format_exc())
            return "failed", f"{type(error).__name__}: {error}"
        return "finished", ""

    def _end(self, job: Job, state: str, message: str) -> None:
        job.state, job.message, job.ended_s = state, message, time.time()
        job.work = _nothing  # lets go of the model and the pictures that the work held
        self._ended.append(job)
        job.done.set()


def _nothing(progress: Progress) -> None:
    raise RuntimeError("this job has ended")


JOBS = Jobs()
