"""Where a run stands, as its folder keeps it, and the reading of what a folder from anywhere holds."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import StorageError
from .words import printable

_OBJECT_BYTES_AT_MOST = 16 << 20  # inputs.json of 1000 pictures has some 100 KiB
_TOO_LARGE = 1e11  # steps, or seconds since 1970, of a file that somebody has tampered with
_WAITS_S = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)


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


def surely_read_state(path: Path) -> RunState:
    """The same; a virus scanner or a network drive may keep the file for a moment. Raises StorageError."""
    for wait_s in _WAITS_S:
        try:
            return read_state(path)
        except OSError:
            time.sleep(wait_s)
    try:
        return read_state(path)
    except OSError as error:
        raise StorageError(f"{path.name} is to be read from {path.parent}", str(error.strerror or error),
                           "Check that the drive is there and that the file may be read.") from error


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if it is missing, or holds none. Raises OSError if it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8") if path.stat().st_size <= _OBJECT_BYTES_AT_MOST else ""
        value = json.loads(text, object_pairs_hook=_with_printable_texts)
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _with_printable_texts(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {printable(name): printable(value) if isinstance(value, str) else value for name, value in pairs}
