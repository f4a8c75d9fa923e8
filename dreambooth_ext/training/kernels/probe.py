"""Whether our kernels run here. Triton comes with torch's builds for Linux, wants a C compiler, and is missing elsewhere."""

from __future__ import annotations

import os
import shutil
import sysconfig
from contextlib import nullcontext, suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch


class _Full(Exception):
    """Somebody has all of the GPU's memory."""


def why_none(device: str) -> str:
    """What keeps our kernels from running on "cuda", "cuda:1", ..., found by running them; empty if nothing does.

    The first time Triton compiles them, which takes seconds; it keeps what it has compiled.
    """
    if not device.startswith("cuda"):
        return "they are for GPUs"
    try:
        return _found(device)
    except _Full as full:
        return str(full)


@cache
def _found(device: str) -> str:
    return _why_nothing_compiles() or tried(device)


def _why_nothing_compiles() -> str:
    """What Triton compiles a few lines of C with; it would print the compiler's complaints into the console."""
    with suppress(ValueError):  # of a stand-in that a host has put in its place, which is tried like any other
        if find_spec("triton") is None:
            return "Triton is not installed"
    if os.name == "nt":  # its builds for Windows bring a compiler
        return ""
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "Python's headers are not installed (the package python3-dev or the like)"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "there is no C compiler"
    return ""


def tried(device: str) -> str:
    """The same without a look at what device it is: on a CPU Triton's interpreter computes, for tests.

    Raises _Full where it would be otherwise once there is memory: nothing is found that could be kept.
    """
    on_gpu = torch.device(device).type == "cuda"
    try:
        from .trial import wrong_ones

        with torch.cuda.device(device) if on_gpu else nullcontext(), torch.enable_grad(), torch.inference_mode(False):
            wrong = wrong_ones(device)
    except Exception as error:  # noqa: BLE001  Triton is missing, or a compiler, or support for this card
        told = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
        if "out of memory" in str(error):  # torch's or the driver's
            raise _Full(told) from None
        return told
    return f"what they compute is wrong: {', '.join(wrong)}" if wrong else ""
