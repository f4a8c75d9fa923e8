"""A run's metrics.jsonl, one line a step, read as it grows."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

MOST_STEPS = 1e11  # of a file that somebody has tampered with
READ_BYTES_AT_MOST = 64 << 20  # at a time; the rest comes with the next question
LAST_LINES_BYTES = 4096  # a line has some 300


def entry_of(line: str | bytes) -> dict[str, Any] | None:
    """The finite numbers of one line, "step" among them; None for a line that was cut off by a crash, or tampered with.

    What is not finite (fp16's first gradients) no curve shows, and JSON cannot hold.
    """
    try:
        entry = json.loads(line)
        step = entry["step"]
        numbers = {name: value for name, value in entry.items() if isinstance(value, (int, float)) and abs(value) < math.inf}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return numbers if isinstance(step, int) and 0 <= step < MOST_STEPS else None


def last_step(path: Path) -> int:
    """The step of the last whole line of a metrics.jsonl; 0 if there is none."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - LAST_LINES_BYTES))
            lines = stream.read().split(b"\n")
    except OSError:
        return 0
    return next((entry["step"] for entry in map(entry_of, reversed(lines)) if entry is not None), 0)


class MetricsTail:
    """Reads only what was written since it was asked last: with 10,000 steps a page's handler would be late otherwise."""

    def __init__(self) -> None:
        self._file: tuple[Path, int] | None = None
        self._read_bytes = 0
        self._entries: dict[int, dict[str, Any]] = {}

    def read(self, path: Path) -> list[dict[str, Any]]:
        """All entries in order of steps: of each step the last one written counts. Empty if there is no such file."""
        try:
            with path.open("rb") as stream:
                status = path.stat()
                if self._file != (path, status.st_ino) or status.st_size < self._read_bytes:  # a resumed run writes it anew
                    self._file, self._read_bytes, self._entries = (path, status.st_ino), 0, {}
                stream.seek(self._read_bytes)
                new = stream.read(READ_BYTES_AT_MOST)
        except OSError:
            return []
        whole = new[: new.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        last = max(self._entries, default=-1) if whole else -1
        for entry in filter(None, map(entry_of, whole.split(b"\n"))):
            step = entry["step"]
            self._entries[step] = entry
            if step > last:
                last = step
            else:
                self._entries = dict(sorted(self._entries.items()))
        return list(self._entries.values())
