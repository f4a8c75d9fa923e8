"""Numbers and names as people read them."""

from __future__ import annotations

import re


def counted(count: int, thing: str) -> str:
    """1, "picture" -> "1 picture"; 3, "picture" -> "3 pictures"."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def duration(seconds: float) -> str:
    """95 -> "1 min 35 s"; 4000 -> "1 h 06 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def half_of(learning_rate: float) -> str:
    """A rate to go on at where one was too high, as it is typed: 5e-06 -> "2.5e-06"."""
    return f"{learning_rate / 2:.2g}"


def printable(text: str) -> str:
    """Without halves of characters, which JSON and file systems can write, and nothing can print."""
    return text.encode("utf-8", "replace").decode()


def as_webui_reads(prompt: str) -> str:
    """A prompt as txt2img must have it, where brackets are weights, to read it as training did."""
    return re.sub(r"[\\()\[\]]", r"\\\g<0>", prompt)
