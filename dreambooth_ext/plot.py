"""Curves of a run as inline SVG: the loss faint, smoothed strong, and the validation loss. At home in light and dark themes."""

from __future__ import annotations

import math
from collections.abc import Sequence

WIDTH, HEIGHT, MARGIN_LEFT, MARGIN_BOTTOM, MARGIN_TOP, MARGIN_RIGHT = 640, 240, 52, 22, 26, 12
POINTS_DRAWN = 400  # more than the eye can tell apart at this width; keeps a page of 10,000 steps light
SMOOTHING = 0.98
VALIDATION_COLOUR = "#d97706"  # on white and on black alike
Points = Sequence[tuple[float, float]]


def curve(points: Points, label: str = "loss", validation: Points = (), smoothing: float = SMOOTHING) -> str:
    """An <svg> of (step, value) points, in order of steps; values that are not finite are left out.

    `validation` is drawn beside them, with a dot at each measurement. Without `smoothing` the values are drawn as they are.
    """
    finite = _finite(points)
    if len(finite) < 2:
        return '<p class="dreambooth-empty">The curve begins with the second step.</p>'
    smooth = _thinned(list(zip((step for step, _ in finite), smoothed([value for _, value in finite], smoothing), strict=True)))
    first, last = finite[0][0], finite[-1][0]
    raw, fixed = _thinned(finite), [(step, value) for step, value in _finite(validation) if first <= step <= last]
    frame = _Frame(first, last, _top([*raw, *fixed], smooth))
    grid = "".join(frame.grid_line(share) for share in (0.0, 0.5, 1.0))
    lines = (f'<polyline points="{frame.path(raw)}" fill="none" stroke="currentColor" stroke-opacity=".28"/>'
             f'<polyline points="{frame.path(smooth)}" fill="none" stroke="currentColor" stroke-width="2"/>')
    legend = _legend(MARGIN_LEFT, "each step", "currentColor", ".28") + _legend(MARGIN_LEFT + 100, "smoothed", "currentColor") \
        if smoothing else ""
    if fixed:
        dots = "".join(f'<circle cx="{x}" cy="{y}" r="2.5" fill="{VALIDATION_COLOUR}"/>'
                       for x, y in map(frame.place, _thinned(fixed)))
        lines += (f'<polyline points="{frame.path(_thinned(fixed))}" fill="none" stroke="{VALIDATION_COLOUR}" '
                  f'stroke-width="2"/>{dots}')
        legend += _legend(MARGIN_LEFT + 200, "validation", VALIDATION_COLOUR)
    return (f'<svg class="dreambooth-curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
            f"<title>{label}: {smooth[-1][1]:.4g} at step {last:g}</title>{grid}{lines}{legend}"
            f'<text x="{MARGIN_LEFT}" y="{HEIGHT - 4}" font-size="12" fill="gray">{first:g}</text>'
            f'<text x="{WIDTH - MARGIN_RIGHT}" y="{HEIGHT - 4}" font-size="12" fill="gray" text-anchor="end">step {last:g}</text>'
            "</svg>")


def smoothed(values: Sequence[float], smoothing: float = SMOOTHING) -> list[float]:
    """Exponential moving average with bias correction, so that its first values are no lower than the data."""
    average, weight, result = 0.0, 0.0, []
    for value in values:
        average = smoothing * average + (1 - smoothing) * value
        weight = smoothing * weight + (1 - smoothing)
        result.append(average / weight)
    return result


class _Frame:
    """Where a value stands in the picture; what is above `top` stands at its upper edge."""

    def __init__(self, first: float, last: float, top: float) -> None:
        self._first, self._span, self._top = first, last - first, top
        self._width, self._height = WIDTH - MARGIN_LEFT - MARGIN_RIGHT, HEIGHT - MARGIN_BOTTOM - MARGIN_TOP

    def place(self, point: tuple[float, float]) -> tuple[str, str]:
        step, value = point
        share = min(max(value / self._top, 0.0), 1.0)
        return (f"{MARGIN_LEFT + (step - self._first) / self._span * self._width:.1f}",
                f"{MARGIN_TOP + (1 - share) * self._height:.1f}")

    def path(self, points: Points) -> str:
        return " ".join(",".join(self.place(point)) for point in points)

    def grid_line(self, share: float) -> str:
        y = MARGIN_TOP + (1 - share) * self._height
        return (f'<line x1="{MARGIN_LEFT}" x2="{WIDTH - MARGIN_RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="gray" '
                f'stroke-opacity=".3"/><text x="{MARGIN_LEFT - 6}" y="{y + 4:.1f}" font-size="12" fill="gray" '
                f'text-anchor="end">{_short(share * self._top)}</text>')


def _short(value: float) -> str:
    return f"{value:.1e}" if 0 < value < 1e-3 else f"{value:.3g}"


def _finite(points: Points) -> list[tuple[float, float]]:
    return [(step, value) for step, value in points if math.isfinite(value)]


def _top(points: Points, smooth: Points) -> float:
    """The height of the picture: a few outliers must not press all the others flat."""
    values = sorted(value for _, value in points)
    usual = values[min(len(values) - 1, int(len(values) * 0.98))]
    return max(usual, *(value for _, value in smooth)) * 1.05 or 1.0


def _legend(x: float, text: str, colour: str, opacity: str = "1") -> str:
    return (f'<line x1="{x}" x2="{x + 18}" y1="10" y2="10" stroke="{colour}" stroke-opacity="{opacity}" stroke-width="2"/>'
            f'<text x="{x + 24}" y="14" font-size="12" fill="gray">{text}</text>')


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most POINTS_DRAWN points; the last one always stays."""
    stride = max(1, math.ceil(len(points) / POINTS_DRAWN))
    kept = points[::stride]
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]
