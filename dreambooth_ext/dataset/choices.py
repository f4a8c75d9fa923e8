"""What the user decided about each picture: keep, fix or drop; remembered in a file that the user names."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import PictureError
from ..files import write_json
from .crop import Box
from .manifest import sha256_of
from .pictures import require_own_file
from .verdict import ADVICE, Audit

LARGEST_BYTES = 64 << 20
_CHOOSING = threading.Lock()


@dataclass(frozen=True)
class Choice:
    """`box` is the part to keep, in pixels of the upright original, for "fix"; `sha256` the content it was chosen for."""

    choice: str
    sha256: str = ""
    box: Box | None = None


def choices_file(runs_dir: Path, folder: Path) -> Path:
    """Where what was chosen of a folder's pictures is remembered: beside the runs, so that the folder itself stays as it is."""
    words = re.sub(r"[^A-Za-z0-9]+", "-", folder.name).strip("-")[:40] or "pictures"
    key = hashlib.sha256(str(folder.expanduser().resolve()).encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return runs_dir / "choices" / f"{words}-{key}.json"


def remembered(path: Path) -> dict[str, Choice]:
    """As `read_choices`, or nothing where nothing was chosen yet. Raises PictureError if the file cannot be read."""
    return read_choices(path) if os.path.exists(path) else {}


def choose(path: Path, name: str, choice: Choice | None) -> dict[str, Choice]:
    """Remember one choice, or forget it (None); returns all of the file. Raises PictureError, StorageError."""
    with _CHOOSING:  # a page's clicks are answered side by side
        found = remembered(path)
        if choice is None:
            found.pop(name, None)
        else:
            found[name] = choice
        write_json(path, {"version": 1, "pictures": {each: _entry(chosen) for each, chosen in found.items()}})
    return found


def _entry(chosen: Choice) -> dict[str, object]:
    entry: dict[str, object] = {"choice": chosen.choice, "sha256": chosen.sha256}
    return {**entry, "box": list(chosen.box)} if chosen.box else entry


def read_choices(path: Path) -> dict[str, Choice]:
    """Choices by file name. Raises PictureError if the file cannot be read, naming the entry that is wrong."""
    def refuse(why: str) -> PictureError:
        return PictureError(f"The choices in {path.name} are to be read", why,
                            "Correct it, or delete it and write it anew with `audit DIR --choices FILE`.")

    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise refuse("it is far too large")
        values = json.loads(path.read_text(encoding="utf-8-sig"))
        entries = values["pictures"].items()
    except OSError as error:
        raise refuse(str(error.strerror)) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise refuse("it is no list of choices") from error
    found = {}
    for name, entry in entries:
        choice = entry.get("choice") if isinstance(entry, dict) else None
        if choice not in ADVICE:
            raise refuse(f"{name!r} is to be one of {', '.join(ADVICE)}, not {choice!r}")
        box = entry.get("box")
        if box is not None and not is_box(box):
            raise refuse(f"the box of {name!r} is not [left, top, right, bottom] in whole pixels")
        found[name] = Choice(choice, str(entry.get("sha256", "")), tuple(box) if box else None)
    return found


def is_box(value: object) -> bool:
    """True for [left, top, right, bottom] in whole pixels."""
    if not (isinstance(value, list) and len(value) == 4 and all(type(edge) is int for edge in value)):
        return False
    left, top, right, bottom = value
    return 0 <= left < right and 0 <= top < bottom


def choice_for(name: str, sha256: str, choices: Mapping[str, Choice]) -> str | None:
    """The user's choice, unless the picture's content is another one since."""
    chosen = choices.get(name)
    return chosen.choice if chosen and chosen.sha256 in ("", sha256) else None


def write_choices(path: Path, audit: Audit, former: Mapping[str, Choice]) -> None:
    """Write what was chosen, and for every other picture what the audit advises, for the user to change.

    Raises StorageError.
    """
    pictures = {}
    for picture in audit.pictures:
        chosen = former.get(picture.name) if picture.choice else None
        box = chosen.box if chosen else picture.kept_box
        entry = _entry(Choice(picture.choice or picture.advice, picture.sha256, box))
        pictures[picture.name] = {**entry, "why": [verdict.reason for verdict in picture.verdicts]}
    write_json(path, {"version": 1, "pictures": pictures})


def orders_of(path: str, folder: Path) -> tuple[set[str], dict[str, Box]]:
    """`orders` of a file; nothing is left out or cut if there is none (""). Raises PictureError."""
    return orders(read_choices(Path(path).expanduser()), folder) if path else (set(), {})


def orders(choices: Mapping[str, Choice], folder: Path) -> tuple[set[str], dict[str, Box]]:
    """For `prepare`: the names to leave out, and the parts to crop within.

    A choice is of a content: it does not count for another picture that has come under the same name since.
    """
    valid = {name: chosen for name, chosen in choices.items() if chosen.choice != "keep" and _is_of(chosen, folder / name)}
    return ({name for name, chosen in valid.items() if chosen.choice == "drop"},
            {name: chosen.box for name, chosen in valid.items() if chosen.choice == "fix" and chosen.box})


def _is_of(chosen: Choice, picture: Path) -> bool:
    if not chosen.sha256:
        return True
    try:
        require_own_file(picture)
        return sha256_of(picture) == chosen.sha256
    except (PictureError, OSError):
        return False
