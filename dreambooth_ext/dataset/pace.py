"""How fast a host renders class images, remembered beside their library, so that the next plan can say how long it takes."""

from __future__ import annotations

import json
import time
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


class Watch:
    """Times a host's pictures as they come. The first `batch` of them wait for its model."""

    def __init__(self, batch: int) -> None:
        self.pictures = 0
        self._batch, self._work = batch, 0.0
        self._began = self._loaded = time.monotonic()
        self._work_before = 0.0  # the model was loaded

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def leave_out(self, seconds: float) -> None:
        """In which nothing was rendered."""
        self._began, self._loaded = self._began + seconds, self._loaded + seconds

    def count(self, work: float) -> None:
        """One picture more."""
        self.pictures, self._work = self.pictures + 1, self._work + work
        if self.pictures == self._batch:
            self._loaded, self._work_before = time.monotonic(), self._work

    def note(self, library: Path, host: str, known: bool) -> None:
        """Remember the host's pace; if none is `known`, the first batch's is better than nothing. Raises StorageError."""
        if self.pictures > self._batch:
            note(library, host, self._work - self._work_before, time.monotonic() - self._loaded)
        elif not known:
            note(library, host, self._work, self.seconds)


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
