"""A disk that is full or gone does not end a run: the run waits, and goes on as soon as it can write."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from .errors import Cancelled, RunBusy, StorageError, UnsafePath
from .progress import Progress

LOOK_AGAIN_S = 5.0

T = TypeVar("T")


def patiently(write: Callable[[], T], progress: Progress, wait_min: float) -> T:
    """What `write` returns; while it raises StorageError it is called again, for `wait_min` minutes at most.

    `write` must be one that can be called again. Raises its last error after that time, Cancelled if the user stops.
    """
    until = None
    while True:
        try:
            result = write()
        except (UnsafePath, RunBusy):
            raise
        except StorageError as error:
            if until is None:
                until = time.monotonic() + 60 * wait_min
                if wait_min:
                    progress.log(f"Paused. {error}\nThe run then goes on by itself within {LOOK_AGAIN_S:g} s; "
                                 f"it waits for {wait_min:g} min at most.")
            if time.monotonic() >= until:
                raise
            progress.say(f"Paused: {error.why}. {error.instead}".strip())
            try:
                progress.wait(min(LOOK_AGAIN_S, until - time.monotonic()))
            except Cancelled:  # who asked for a stop believes that all is kept
                progress.log(f"Stopped before there was room for it: {error.asked}, and is not.")
                raise
        else:
            if until is not None:
                progress.log("Written. The run goes on.")
                progress.say("")
            return result
