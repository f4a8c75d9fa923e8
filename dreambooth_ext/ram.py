"""Returning the process's freed memory to the operating system."""

from __future__ import annotations

import ctypes
import gc
import sys
import traceback


def give_back_ram() -> None:
    """glibc keeps freed memory for itself otherwise: the process stays as large as it ever was, and grows with each job."""
    gc.collect()  # and what stood in a circle lets go of its place on the device
    trim_heap()


def let_go(error: BaseException | None) -> None:
    """What failed still holds its tensors, and so does what it came of: an error that was told in plain words has another behind
    it, which began where they are."""
    waiting, seen = [error], set()
    while waiting:
        each = waiting.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            traceback.clear_frames(each.__traceback__)
            waiting += [each.__cause__, each.__context__]


def trim_heap() -> None:
    """Freed memory goes back, but for what stands in circles: quick enough for the middle of a step."""
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
