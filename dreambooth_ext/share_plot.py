"""A comparison's measures by step as inline SVG: a line with its marks for each, a larger mark at the step that was chosen."""

from __future__ import annotations

import math

from .comparison import Comparison

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 200, 52, 16, 26, 24
STYLES = ('stroke-width="2.5"', 'stroke-width="2" stroke-dasharray="6 4"')  # told apart without colours as well
COLOURS = ("#2563eb", "#d97706")
NEAR, DRIFT = "nearness to the subject", "drift of the class"


def measures(found: Comparison) -> str:
    """An <svg> of nearness and drift; empty with fewer than two steps that have any."""
    best = found.best
    near = [(column.step, column.nearness) for column in found.columns if column.nearness is not None]
    drift = [(column.step, column.drift) for column in found.columns if column.drift is not None]
    drawn = {name: points for name, points in ((NEAR, near), (DRIFT, drift)) if points}
    steps = sorted({step for points in drawn.values() for step, _ in points})
    if len(steps) < 2:
        return ""
    values = [share for points in drawn.values() for _, share in points]
    top, low = max(1.0, *values), min(0.0, *values)

    def x(step: float) -> float:
        return LEFT + (step - steps[0]) / (steps[-1] - steps[0]) * (WIDTH - LEFT - RIGHT)

    def y(share: float) -> float:
        return TOP + (top - share) / (top - low) * (HEIGHT - TOP - BOTTOM)

    parts = [_level(y(share), share) for share in (0.0, 0.5, 1.0)]
    for number, (name, points) in enumerate(drawn.items()):
        colour, style = COLOURS[number % 2], STYLES[number % 2]
        path = " ".join(f"{x(step):.1f},{y(share):.1f}" for step, share in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" {style}/>')
        parts += [f'<circle cx="{x(step):.1f}" cy="{y(share):.1f}" r="{6 if best and step == best.step else 3}" '
                  f'fill="{colour}"><title>step {step}: {name} {share:.0%}</title></circle>'
                  for step, share in points]
        left = LEFT + number * 290
        parts.append(f'<line x1="{left}" x2="{left + 26}" y1="12" y2="12" stroke="{colour}" {style}/>'
                     f'<text x="{left + 32}" y="16" font-size="12" fill="currentColor">{name}</text>')
    shown = steps if len(steps) <= 10 else [*steps[:: math.ceil(len(steps) / 9)], steps[-1]]
    parts += [f'<text x="{x(step):.1f}" y="{HEIGHT - 6}" font-size="12" fill="gray" text-anchor="middle">{step}</text>'
              for step in shown]
    return (f'<svg class="dreambooth-curve dreambooth-shares" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="measures by step">{"".join(parts)}</svg>')


def _level(y: float, share: float) -> str:
    return (f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="gray" stroke-opacity=".3"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" font-size="12" fill="gray" text-anchor="end">{share:.0%}</text>')
