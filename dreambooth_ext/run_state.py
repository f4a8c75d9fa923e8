"""Where a run stands, as its folder keeps it, and the reading of what a folder from anywhere holds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .words import printable

_OBJECT_BYTES_AT_MOST = 16 << 20  # inputs.json of 1000 pictures has some 100 KiB
_TOO_LARGE = 1e11  # steps, or seconds since 1970, of a file that somebody has tampered with


@dataclass(frozen=True)
class RunState:
    """Where a run stands: new, preparing, class images, training or publishing; then finished, interrupted or failed.

    Times are seconds since 1970. `failure` is the class of the error that ended it.
    """

    state: str = "new"
    step: int = 0
    steps: int = 0
    message: str = ""
    started_s: float = 0.0
    updated_s: float = 0.0
    published: tuple[str, ...] = ()
    failure: str = ""


_FIELDS: dict[str, Any] = {"state": str, "step": int, "steps": int, "message": str, "started_s": (int, float),
                           "updated_s": (int, float), "failure": str}


def read_state(path: Path) -> RunState:
    """The state written last; a fresh one if the file is missing or damaged. Raises OSError if it cannot be read."""
    values = read_object(path)
    published = values.get("published", ())
    given = {name: value for name, value in values.items()
             if name in _FIELDS and isinstance(value, _FIELDS[name]) and not isinstance(value, bool)}
    if not all(abs(value) < _TOO_LARGE for value in given.values() if isinstance(value, (int, float))):
        return RunState()  # also what is no number: a comparison with it is false
    known = isinstance(published, list) and all(isinstance(name, str) for name in published)
    return RunState(**given, published=tuple(printable(name) for name in published) if known else ())


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if it is missing, or holds none. Raises OSError if it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8") if path.stat().st_size <= _OBJECT_BYTES_AT_MOST else ""
        value = json.loads(text, object_pairs_hook=_with_printable_texts)
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def read_texts(path: Path) -> dict[str, str]:
    """The texts of such an object, by name."""
    return {name: value for name, value in read_object(path).items() if isinstance(value, str)}


def _with_printable_texts(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {printable(name): printable(value) if isinstance(value, str) else value for name, value in pairs}
