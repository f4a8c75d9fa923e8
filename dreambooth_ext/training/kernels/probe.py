"""Whether our kernels run here. Triton comes with torch's builds for Linux, wants a C compiler, and is missing elsewhere."""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache

import torch


@cache
def why_none(device: str) -> str:
    """What keeps our kernels from running on "cuda", "cuda:1", ..., found by running them; empty if nothing does.

    The first time Triton compiles them, which takes seconds; it keeps what it has compiled.
    """
    return tried(device) if device.startswith("cuda") else "they are for GPUs"


def tried(device: str) -> str:
    """The same without a look at what device it is: on a CPU Triton's interpreter computes, for tests."""
    on_gpu = torch.device(device).type == "cuda"
    try:
        from .trial import wrong_ones

        with torch.cuda.device(device) if on_gpu else nullcontext(), torch.enable_grad(), torch.inference_mode(False):
            wrong = wrong_ones(device)
    except Exception as error:  # noqa: BLE001  Triton is missing, or a compiler, or support for this card
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
    return f"what they compute is wrong: {', '.join(wrong)}" if wrong else ""
