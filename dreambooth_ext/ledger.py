"""What a run took: seconds by phase, and the most memory that was seen. Kept in RUN/took.json, over resumes as well."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from .errors import StorageError
from .files import write_json
from .progress import Progress, Report
from .run_folder import RunFolder

FILE = "took.json"


@contextmanager
def ledger(run: RunFolder, progress: Progress) -> Iterator[None]:
    """While the block runs, count; at its end, however it ends, write. A full disk costs no run."""
    took = read_ledger(run)
    phase, since_s = progress.phase, time.monotonic()

    def close() -> None:
        nonlocal phase, since_s
        if phase:
            took["seconds"][phase] = took["seconds"].get(phase, 0.0) + time.monotonic() - since_s
        phase, since_s = progress.phase, time.monotonic()

    def listen(report: Report) -> None:
        if report.phase not in ("log", phase):
            close()
        memory = report.figures.get("memory_gib")
        if isinstance(memory, (int, float)) and math.isfinite(memory):
            took["memory_gib"] = max(took["memory_gib"] or 0.0, memory)

    try:
        with progress.heard_by(listen):
            yield
    finally:
        close()
        with suppress(StorageError):
            run.require_there()
            write_json(run.path / FILE, took)


def read_ledger(run: RunFolder) -> dict[str, Any]:
    """{"seconds": {phase: s}, "memory_gib": of the GPU, None on a CPU}; what makes no sense is left out."""
    try:
        values = json.loads((run.path / FILE).read_text(encoding="utf-8"))
        seconds = {str(phase): float(value) for phase, value in values["seconds"].items() if 0 <= float(value) < 1e9}
        memory = values.get("memory_gib")
        return {"seconds": seconds, "memory_gib": memory if isinstance(memory, float) and 0 <= memory < 1e5 else None}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {"seconds": {}, "memory_gib": None}
