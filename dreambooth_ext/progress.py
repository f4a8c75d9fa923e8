"""How work tells what it is doing, and learns that it should stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from .errors import Cancelled


@dataclass(frozen=True)
class Report:
    """One message of a running job. `figures` holds numbers by name (loss, steps_per_s, ...)."""

    phase: str
    done: int
    total: int
    text: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)
    image: Any = None  # a PIL image for whoever shows previews


class Progress:
    """Sends reports to listeners and carries the wish to stop. Safe to use from several threads.

    `report` never raises `Cancelled`: work calls `check` where it can stop without losing anything.
    """

    def __init__(self, *listeners: Callable[[Report], None], cancelled: Callable[[], bool] | None = None) -> None:
        self._listeners = list(listeners)
        self._outside_wish = cancelled
        self._stop = threading.Event()
        self._requests: set[str] = set()
        self.phase = ""
        self._last = (0, 0)

    def listen(self, listener: Callable[[Report], None]) -> None:
        self._listeners.append(listener)

    @contextmanager
    def heard_by(self, *listeners: Callable[[Report], None]) -> Iterator[None]:
        """While the block runs: other work may go on with the same Progress, which is none of their business."""
        self._listeners = [*self._listeners, *listeners]
        try:
            yield
        finally:  # a new list: another thread may be reporting
            self._listeners = [each for each in self._listeners if each not in listeners]

    def start(self, phase: str, total: int, text: str = "") -> None:
        self.phase = phase
        self.report(0, total, text)

    def report(self, done: int, total: int, text: str = "", image: Any = None, **figures: Any) -> None:
        self._last = (done, total)
        message = Report(self.phase, done, total, text, figures, image)
        for listener in self._listeners:
            listener(message)

    def say(self, text: str) -> None:
        """A word on where the work stands, at the count that was reported last."""
        self.report(*self._last, text)

    def log(self, text: str) -> None:
        """Say something that is no step of a count: warnings, what is in effect, where a file went."""
        message = Report("log", 0, 0, text)
        for listener in self._listeners:
            listener(message)

    def cancel(self) -> None:
        self._stop.set()

    @property
    def cancelled(self) -> bool:
        # Latched: another job ending elsewhere may reset the host's own flag.
        if not self._stop.is_set() and self._outside_wish is not None and self._outside_wish():
            self._stop.set()
        return self._stop.is_set()

    def check(self) -> None:
        """Raise `Cancelled` if the user wishes to stop."""
        if self.cancelled:
            raise Cancelled

    def wait(self, seconds: float) -> None:
        """Sleep, but raise `Cancelled` soon after the user wishes to stop."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.check()
            time.sleep(min(left, 0.1))

    def apart(self) -> Progress:
        """For a part of the work that counts something else: the listeners do not hear it, and a wish to stop reaches it."""
        return Progress(cancelled=lambda: self.cancelled)

    def request(self, wish: str) -> None:
        """Ask the running work for something extra at its next step: "preview" or "snapshot"."""
        self._requests.add(wish)

    def take_request(self, wish: str) -> bool:
        """True once for each `request(wish)`."""
        if wish in self._requests:
            self._requests.discard(wish)
            return True
        return False


SILENT = Progress()
