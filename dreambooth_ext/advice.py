"""What can be said of settings that are still being filled in: one plain sentence for each step."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from .config import STEPS_PER_PICTURE
from .errors import DreamboothError
from .run_folder import list_runs

FEW_PICTURES = 5  # fewer than the paper used

WHAT_MAKES_A_GOOD_SET = (
    "Name a folder of 5 to 75 pictures. Sharp ones, of one subject or style, with varied backgrounds; close-ups and "
    "half-body rather than full-body. No watermarks, no cut-off limbs, no motion blur.")


@dataclass(frozen=True)
class Verdict:
    """One picture as the audit sees it; without problems it is good."""

    path: Path
    problems: tuple[str, ...]


def about_base(path: Path) -> str:
    """Family, picture size, what it predicts, and the file's size; by names and shapes alone, so that it is quick.

    Raises CheckpointError.
    """
    status = path.stat() if path.is_file() else None
    return _about_base(path, status.st_mtime_ns if status else 0)


@lru_cache(maxsize=64)
def _about_base(path: Path, mtime_ns: int) -> str:
    from .files import gib
    from .models.checkpoint_file import open_checkpoint
    from .models.load import recognise, resolution_of

    with open_checkpoint(path) as file:
        family, sidecar, _ = recognise(file)
    side = resolution_of(family, sidecar, sidecar.prediction_type if sidecar and sidecar.prediction_type else "epsilon")
    return f"{family.name}, {side} px, {gib(path.stat().st_size)}."


def count_pictures(folder: Path) -> int:
    """Raises PictureError."""
    from .dataset.pictures import list_pictures

    return len(list_pictures(folder))


def about_pictures(folder: Path) -> str:
    """How many pictures there are, and how many of them to look at. Raises PictureError."""
    verdicts = review(folder)
    if not verdicts:
        return "There are no pictures in it."
    counts = Counter(problem for verdict in verdicts for problem in verdict.problems[:1])
    good = sum(not verdict.problems for verdict in verdicts)
    parts = [f"{good} good", *(f"{count} {problem}" for problem, count in counts.most_common())]
    few = " A handful more would help." if len(verdicts) < FEW_PICTURES else ""
    return f"{_pictures(len(verdicts))}: {', '.join(parts)}.{few}"


def review(folder: Path) -> list[Verdict]:
    """Every picture with what is wrong with it. Raises PictureError."""
    from .dataset.pictures import list_pictures

    return [_verdict(path, _changed_ns(path)) for path in list_pictures(folder)]


def _changed_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:  # gone since, or a link to nowhere: looking at it says so
        return 0


@lru_cache(maxsize=1024)
def _verdict(path: Path, mtime_ns: int) -> Verdict:
    from .dataset.pictures import reason_against

    reason = reason_against(path)
    return Verdict(path, (reason,) if reason else ())


def class_images_wanted(given: int | None, pictures: int, steps: int | None) -> tuple[int, str]:
    """How many class images, and the sum in words."""
    from .dataset.class_images import class_image_count

    return class_image_count(given, pictures, steps or STEPS_PER_PICTURE * pictures)


def seconds_a_step(runs_dir: Path, base: Path, resolution: int | None) -> float | None:
    """Median of the newest run of this base and size that has taken steps; None if there is none."""
    for run in list_runs(runs_dir):
        try:
            config = run.config()
        except DreamboothError:
            continue
        times = [entry["seconds"] for entry in run.metrics()[-50:] if isinstance(entry.get("seconds"), (int, float))]
        if times and Path(config.base).name == base.name and resolution in (None, config.resolution):
            return statistics.median(times)
    return None


def about_token(token: str) -> str:
    """Why another token may be better; empty if this one is fine."""
    from .dataset.captions import token_advice
    from .models.tokenizer import token_pieces

    return token_advice(token, token_pieces)


def _pictures(count: int) -> str:
    return "1 picture" if count == 1 else f"{count} pictures"
