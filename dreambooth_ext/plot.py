"""A loss curve as inline SVG: raw values faint, smoothed values strong. At home in light and dark themes."""

from __future__ import annotations

import math
from collections.abc import Sequence

WIDTH, HEIGHT, MARGIN_LEFT, MARGIN_BOTTOM = 640, 220, 52, 22
POINTS_DRAWN = 400  # more than the eye can tell apart at this width; keeps a page of 10,000 steps light
SMOOTHING = 0.98


def curve(points: Sequence[tuple[float, float]], label: str = "loss") -> str:
    """An <svg> of (step, value) points, in order of steps; values that are not finite are left out."""
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    if len(finite) < 2:
        return '<p class="dreambooth-empty">The curve appears after two steps.</p>'
    smooth = _thinned(list(zip((step for step, _ in finite), smoothed([value for _, value in finite]), strict=True)))
    raw = _thinned(finite)
    first, last = finite[0][0], finite[-1][0]
    top = max(value for _, value in raw) * 1.05 or 1.0
    inner_width, inner_height = WIDTH - MARGIN_LEFT - 8, HEIGHT - MARGIN_BOTTOM - 8

    def path(series: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{MARGIN_LEFT + (step - first) / (last - first) * inner_width:.1f},"
                        f"{8 + (1 - value / top) * inner_height:.1f}" for step, value in series)

    grid = "".join(_grid_line(share, top, inner_height) for share in (0.0, 0.5, 1.0))
    return (f'<svg class="dreambooth-curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{grid}'
            f'<polyline points="{path(raw)}" fill="none" stroke="currentColor" stroke-opacity=".25"/>'
            f'<polyline points="{path(smooth)}" fill="none" stroke="currentColor" stroke-width="2"/>'
            f'<text x="{MARGIN_LEFT}" y="{HEIGHT - 4}" font-size="12" fill="gray">{first:g}</text>'
            f'<text x="{WIDTH - 8}" y="{HEIGHT - 4}" font-size="12" fill="gray" text-anchor="end">step {last:g}</text>'
            "</svg>")


def smoothed(values: Sequence[float], smoothing: float = SMOOTHING) -> list[float]:
    """Exponential moving average with bias correction, so that its first values are no lower than the data."""
    average, weight, result = 0.0, 0.0, []
    for value in values:
        average = smoothing * average + (1 - smoothing) * value
        weight = smoothing * weight + (1 - smoothing)
        result.append(average / weight)
    return result


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most POINTS_DRAWN points; the last one always stays."""
    stride = max(1, math.ceil(len(points) / POINTS_DRAWN))
    kept = points[::stride]
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def _grid_line(share: float, top: float, inner_height: int) -> str:
    y = 8 + (1 - share) * inner_height
    return (f'<line x1="{MARGIN_LEFT}" x2="{WIDTH - 8}" y1="{y:.1f}" y2="{y:.1f}" stroke="gray" stroke-opacity=".3"/>'
            f'<text x="{MARGIN_LEFT - 6}" y="{y + 4:.1f}" font-size="12" fill="gray" text-anchor="end">'
            f"{share * top:.3g}</text>")
