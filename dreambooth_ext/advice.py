"""What can be said of settings that are still being filled in: one plain sentence for each step."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Collection, Hashable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import DreamboothError
from .files import gib
from .run_folder import RunFolder, list_runs
from .words import counted

if TYPE_CHECKING:
    from .dataset.verdict import Audit, PictureAudit

FEW_PICTURES = 5  # fewer than the paper used
UNREADABLE_NAMED = 5

WHAT_MAKES_A_GOOD_SET = (
    "Name a folder of 5 to 75 pictures. Sharp ones, of one subject or style, with varied backgrounds; close-ups and "
    "half-body rather than full-body. No watermarks, no cut-off limbs, no motion blur.")


# What the audit found, in one or two words.
WORDS = {"size": "too small", "blur": "blurred", "noise": "noisy", "blockiness": "blocky", "dark": "too dark",
         "bright": "too bright", "letterbox": "with bars", "mark": "with a mark", "overlay": "with writing",
         "duplicate": "duplicate", "near duplicate": "near duplicate", "fringe": "with a fringe",
         "transparency": "transparent", "cut off": "cut off", "style": "of another style", "animation": "animated"}


@dataclass(frozen=True)
class BaseFacts:
    """What the names and shapes in a checkpoint file tell."""

    family: str
    resolution: int  # px
    size_bytes: int
    has_vae: bool
    heeds_clip_skip: bool  # whether the WebUI's CLIP skip acts on it

    def __str__(self) -> str:
        return f"{self.family}, {self.resolution} px, {gib(self.size_bytes)}"


def about_base(path: Path) -> BaseFacts:
    """By names and shapes alone, so that it is quick. Raises CheckpointError."""
    status = path.stat() if path.is_file() else None
    return _about_base(path, status.st_mtime_ns if status else 0)


@lru_cache(maxsize=64)
def _about_base(path: Path, mtime_ns: int) -> BaseFacts:
    from .models.checkpoint_file import open_checkpoint
    from .models.family import SD1
    from .models.load import recognise, resolution_of
    from .models.vae_file import has_vae

    with open_checkpoint(path) as file:
        family, sidecar, _ = recognise(file, vae=False)
        return BaseFacts(family.name, resolution_of(family, sidecar), path.stat().st_size, has_vae(file), family.key == SD1.key)


def base_of(runs_dir: Path, model: Path) -> Path | None:
    """The base of the run that has published a model, or one of its snapshots as such; None if none of these runs has."""
    of_snapshot = re.fullmatch(r"(.+)-step\d+", model.stem)  # as Choose names it
    for run in list_runs(runs_dir):
        if str(model) in run.state().published or (of_snapshot and of_snapshot[1] == run.path.name):
            try:
                return Path(run.config().base)
            except DreamboothError:
                continue
    return None


def folder_key(folder: Path) -> Hashable:
    """Changes whenever a picture of the folder, or a caption, comes, goes or is written anew; without pictures whenever
    anything comes or goes. Raises PictureError.
    """
    from .dataset.pictures import list_pictures

    found = []
    for path in list_pictures(folder):
        with suppress(OSError):
            status = path.stat()
            found.append((path.name, status.st_size, status.st_mtime_ns))
    if not found:
        with suppress(OSError):
            found.append(("", 0, folder.stat().st_mtime_ns))  # what it holds instead is told
    return str(folder), tuple(found)


def word_for(picture: PictureAudit) -> str:
    """The verdict on a picture in a word or two."""
    worst = next((verdict for verdict in picture.verdicts if verdict.advice == picture.advice != "keep"), None)
    return WORDS.get(worst.check, worst.check) if worst else "good"


def about_pictures(audit: Audit, dropped: Collection[str] = ()) -> str:
    """How many pictures there are, and how many of them to look at; then what would make a better set of them."""
    kept = [picture for picture in audit.pictures if picture.name not in dropped]
    counts = Counter(word_for(picture) for picture in kept)
    good = counts.pop("good", 0)
    parts = [f"{good} good", *(f"{count} {word}" for word, count in counts.most_common())]
    line = f"{counted(len(audit.pictures), 'picture')}: {', '.join(parts)}{_left_out(audit, dropped)}."
    if len(kept) < FEW_PICTURES <= len(audit.pictures):  # else that is among the advice on them all
        line += " A handful more would help."
    return "\n".join([line, *audit.together.advice])


def about_unreadable(audit: Audit, dropped: Collection[str] = ()) -> str:
    """Why pictures cannot be used that are not left out, and what to do; empty if there are none."""
    found = [f"{name} cannot be used: {why}." for name, why in audit.unreadable if name not in dropped]
    more = len(found) - UNREADABLE_NAMED
    rest = [f"{more} more cannot be used."] if more > 0 else []
    return "\n".join([*found[:UNREADABLE_NAMED], *rest, "Leave it out in Review, or save it anew." if len(found) == 1 else
                      "Leave them out in Review, or save them anew."]) if found else ""


def _left_out(audit: Audit, dropped: Collection[str]) -> str:
    count = sum(picture.name in dropped for picture in audit.pictures)
    return f", {count} left out by you" if count else ""


def seconds_a_step(runs_dir: Path, base: Path, resolution: int | None) -> float | None:
    """Median of the newest run of this base and size that has taken steps; None if there is none."""
    for run in list_runs(runs_dir):
        try:
            config = run.config()
        except DreamboothError:
            continue
        if Path(config.base).name == base.name and resolution in (None, config.resolution) and run.metrics_path.is_file():
            pace = _pace_of(run.path, run.metrics_path.stat().st_mtime_ns)
            if pace is not None:
                return pace
    return None


@lru_cache(maxsize=64)
def _pace_of(folder: Path, mtime_ns: int) -> float | None:
    """Long runs have many lines: each version of them is read once."""
    times = [entry["seconds"] for entry in RunFolder(folder).metrics()[-50:] if isinstance(entry.get("seconds"), (int, float))]
    return statistics.median(times) if times else None
