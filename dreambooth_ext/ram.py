"""Returning the process's freed memory to the operating system."""

from __future__ import annotations

import ctypes
import gc
import sys


def give_back_ram() -> None:
    """glibc keeps freed memory for itself otherwise: the process stays as large as it ever was, and grows with each job."""
    gc.collect()  # and what stood in a circle lets go of its place on the device
    trim_heap()


def trim_heap() -> None:
    """Freed memory goes back, but for what stands in circles: quick enough for the middle of a step."""
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
