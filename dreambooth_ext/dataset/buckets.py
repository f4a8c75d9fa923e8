"""Aspect-ratio buckets: sizes of about the same area, so that wide and tall pictures need not be cut to squares."""

from __future__ import annotations

import math

STEP = 64  # pixels; the UNet halves its input three times after the VAE's factor of eight
LONGEST_ASPECT = 2.0


def bucket_sizes(resolution: int) -> list[tuple[int, int]]:
    """All (width, height) of multiples of `STEP` whose area is at most resolution squared, largest area for each width."""
    area, sizes = resolution * resolution, set()
    for width in range(STEP, int(resolution * LONGEST_ASPECT) + 1, STEP):
        height = area // width // STEP * STEP
        if height >= STEP and max(width / height, height / width) <= LONGEST_ASPECT + 1e-9:
            sizes |= {(width, height), (height, width)}
    return sorted(sizes | {(resolution, resolution)})


def bucket_for(width: int, height: int, resolution: int) -> tuple[int, int]:
    """The bucket whose aspect ratio is nearest to the picture's; among equals the one of the largest area."""
    aspect = math.log(width / height)
    return min(bucket_sizes(resolution), key=lambda size: (round(abs(math.log(size[0] / size[1]) - aspect), 9), -size[0] * size[1]))
