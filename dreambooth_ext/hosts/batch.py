"""How many pictures are rendered at once: as many as the memory that is free holds without risk."""

from __future__ import annotations

AT_MOST = 8  # beyond it a GPU gains little, and an interrupt waits longer
RESERVE_GIB = 1.5  # the VAE decodes one picture at a time, and the rest of the desktop wants some
GIB_PER_PICTURE = 0.7  # at 512 x 512 px in fp16 with guidance; twice what scaled dot product attention takes [estimate]
FREE_ON_CPU_GIB = 4.0  # RAM is shared with everything else


def pictures_at_once(free_gib: float | None, width: int, height: int) -> int:
    """From 1 to AT_MOST; `free_gib` of the device, None on a CPU; `width` and `height` in px."""
    free = FREE_ON_CPU_GIB if free_gib is None else free_gib
    each = GIB_PER_PICTURE * width * height / 512**2
    return max(1, min(AT_MOST, int((free - RESERVE_GIB) / each)))
