"""What asks the work to stop: Ctrl+C, and what ends a service, a rented computer or a terminal."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from .progress import Progress

Handler = Callable[[int, Any], Any]


@contextmanager
def heard(handler: Handler) -> Iterator[None]:
    """While the block runs, `handler` is told of every signal that asks to stop. For the main thread."""
    former = {number: signal.signal(number, handler) for number in _stopping()}
    try:
        yield
    finally:
        for number, before in former.items():
            signal.signal(number, before or signal.SIG_DFL)


def _stopping() -> list[int]:
    """A launcher ends its processes by SIGTERM where one has failed: the others would wait for it if they went on."""
    if "RANK" in os.environ:
        return [signal.SIGINT]
    others = (getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP", "SIGBREAK"))  # the last: a window of Windows is closed
    return [signal.SIGINT, *(number for number in others if number and signal.getsignal(number) != signal.SIG_IGN)]  # nohup


class Interrupter:
    """The first signal asks the work to stop and save; the second one ends it.

    A launcher of several processes passes on the Ctrl+C that the terminal has sent to all of them: what comes again within
    ECHO_S there is the same one.
    """

    ECHO_S = 3.0

    def __init__(self, progress: Progress) -> None:
        self._progress, self._since_s = progress, 0.0

    def __call__(self, number: int, frame: Any) -> None:
        if self._progress.cancelled:
            if "RANK" in os.environ and time.monotonic() - self._since_s < self.ECHO_S:
                return
            raise KeyboardInterrupt
        self._since_s = time.monotonic()
        self._progress.cancel()  # first: what is printed may have to wait for its reader
        # Of a terminal that was closed; or one that has not taken yet what was just being printed, as `less` behind a pipe.
        with suppress(OSError, RuntimeError):
            print("Stopping after this step (Ctrl+C again to end at once) ...", file=sys.stderr, flush=True)
