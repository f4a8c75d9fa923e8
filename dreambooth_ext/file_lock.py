"""A file that one process holds; the operating system frees it when the process dies, however it dies."""

from __future__ import annotations

import os
import time
from pathlib import Path

TRIES, BETWEEN_S = 4, 0.05  # whoever only looks holds the file for a moment, too


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
