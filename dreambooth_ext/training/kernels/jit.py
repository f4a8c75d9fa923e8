"""`triton.jit` as our kernels need it, from Triton 2.1 on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton


def jit(function: Callable[..., Any]) -> Any:
    """Readers see what each argument is; Triton sees which of them are constants, and nothing else.

    It compiles for what numbers and addresses happen to be: multiples of 16, or 1. Where an argument has an annotation that it
    does not know, such as `tl.tensor`, Triton 2.1 looks at that in the first launch alone, and what it compiled for a width of
    1280 would run for a width of 24 as well.
    """
    function.__annotations__ = {name: kind for name, kind in function.__annotations__.items() if "constexpr" in kind}
    return triton.jit(function)
