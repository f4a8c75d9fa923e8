"""How fast a host renders class images, remembered beside their library, so that the next plan can say how long it takes."""

from __future__ import annotations

import json
from pathlib import Path

from ..files import write_json

FILE = "pace.json"


def work_of(steps: int, width: int, height: int) -> float:
    """What one picture takes, in steps x megapixels: a sampler's time grows with both."""
    return steps * width * height / 1e6


def seconds_for(library: Path, host: str, work: float) -> float | None:
    """How long so much work took this host last time; None if it has rendered nothing here yet."""
    pace = _read(library).get(host)
    return pace * work if isinstance(pace, (int, float)) and 0 < pace < 1e9 else None


def note(library: Path, host: str, work: float, seconds: float) -> None:
    """Remember a host's pace. Raises StorageError."""
    if work > 0 and seconds > 0:
        write_json(library / FILE, {**_read(library), host: seconds / work})


def about(seconds: float) -> str:
    """95 -> "about 2 min"; 4000 -> "about 1 h 07 min"."""
    minutes = round(seconds / 60)
    if seconds < 55:
        return f"about {max(1, round(seconds))} s"
    return f"about {max(1, minutes)} min" if minutes < 60 else f"about {minutes // 60} h {minutes % 60:02d} min"


def _read(library: Path) -> dict[str, object]:
    try:
        values = json.loads((library / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
