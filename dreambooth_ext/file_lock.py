"""A file that one process holds; the operating system frees it when the process dies, however it dies."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .files import make_folder, storage_error
from .progress import Progress

TRIES, BETWEEN_S = 4, 0.05  # whoever only looks holds the file for a moment, too
LOOK_AGAIN_S = 5.0
_HELD = (errno.EACCES, errno.EAGAIN, errno.EDEADLK, getattr(errno, "EDEADLOCK", errno.EDEADLK))  # by another one


@contextmanager
def alone(path: Path, progress: Progress, told: str) -> Iterator[float]:
    """Hold the file, once whoever holds it lets go; yields the seconds waited. `told`: what is waited for.

    On a file system that knows no locks nobody waits. Raises StorageError, Cancelled.
    """
    try:
        make_folder(path.parent)
        stream = path.open("a+b")
    except OSError as error:
        raise storage_error(path, error) from error
    began, waited = time.monotonic(), False
    with stream:
        while not _is_ours(stream.fileno()):
            if not waited:
                progress.log(f"Waiting: {told}")
            waited = True
            progress.say(f"Waiting: {told}")  # whoever hears it looks whether another process has asked for a stop
            progress.wait(LOOK_AGAIN_S)
        yield time.monotonic() - began if waited else 0.0


def _is_ours(handle: int) -> bool:
    """Whether we hold the file now, or nobody can."""
    try:
        take(handle)
    except OSError as error:
        return error.errno not in _HELD
    return True


def take(handle: int) -> None:
    """Hold an open file until it is closed. Raises OSError if another one holds it."""
    for left in reversed(range(TRIES)):
        try:
            return lock(handle)
        except OSError:
            if not left:
                raise
            time.sleep(BETWEEN_S)


def is_held(path: Path) -> bool:
    """Whether somebody holds the file. True where that cannot be told."""
    try:
        with path.open("rb") as stream:
            lock(stream.fileno(), shared=True)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def lock(handle: int, *, shared: bool = False) -> None:
    """Try once. Raises OSError."""
    if os.name == "nt":
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    else:
        import fcntl

        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
