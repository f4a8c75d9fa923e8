"""Says where the work stands when nothing has been heard of it for long: a hang is named, not guessed at."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from .progress import Progress, Report

SILENCE_S = 300.0  # longer than the slowest step, picture or file that was seen
FRAMES = 6


@contextmanager
def watched(progress: Progress, silence_s: float = SILENCE_S) -> Iterator[None]:
    """While the block runs, log the place of the calling thread whenever `progress` was silent for `silence_s`.

    It only tells: what is slow for a good reason goes on.
    """
    heard_s, over, thread = time.monotonic(), threading.Event(), threading.get_ident()

    def listen(report: Report) -> None:
        nonlocal heard_s
        if report.phase != "log":
            heard_s = time.monotonic()

    def watch() -> None:
        told = 0.0
        while not over.wait(silence_s / 10):
            silent = time.monotonic() - max(heard_s, told)
            if silent >= silence_s:
                told = time.monotonic()
                progress.log(f"No sign of progress for {told - heard_s:.0f} s in phase {progress.phase}. The work stands at:\n"
                             + _place(thread))

    watcher = threading.Thread(target=watch, name="dreambooth watchdog", daemon=True)
    watcher.start()
    try:
        with progress.heard_by(listen):
            yield
    finally:
        over.set()
        watcher.join()


def _place(thread: int) -> str:
    frame = sys._current_frames().get(thread)
    if frame is None:
        return "a thread that has ended"
    lines = [f"  {entry.filename.replace(chr(92), '/').rsplit('/', 1)[-1]}:{entry.lineno} {entry.name}"
             for entry in traceback.extract_stack(frame)]
    return "\n".join(lines[-FRAMES:])
