"""A run's snapshots side by side: the same prompts and seeds by each, how near they came, and which one is best.

    RUN/comparison/comparison.json      what was asked, and the measures
    RUN/comparison/base/00-1.png        prompt 0, seed 1; one folder for the base and for each snapshot
    RUN/comparison/base/00-1.jpg        the same, small
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .config import TrainConfig
from .errors import ConfigError, StorageError
from .files import remove_folder, surely_read, write_json
from .options import faults_of, from_mapping, option
from .run_folder import RunFolder

BASE = "base"
SUBJECT, CLASS = "subject", "class"  # what a prompt shows: whether it names the token
PROMPTS_AT_MOST = 99  # their numbers have two digits in the pictures' names
FILE = "comparison.json"
HARDLY_DIFFER = 0.05  # of nearness less drift: nobody would see less
SNAPSHOT = re.compile(r"step-(\d{6,12})")


@dataclass(frozen=True)
class Wishes:
    """What is to be compared, and how."""

    prompts: tuple[str, ...] = option(
        (), "Prompts", "What to render. Those with the token show the subject, the others the class. Empty: the instance prompt, "
        "the same in a scene, and the class prompt.")
    snapshots: tuple[str, ...] = option(
        (), "Snapshots", "Names of those to compare, such as step-000200. Empty: all that are kept.")
    count: int = option(4, "Pictures of each", "So many seeds for each prompt: more make the figures surer.", minimum=1, maximum=64)
    seed: int = option(1, "First seed", "The same seeds for every snapshot and for the base.", minimum=0, maximum=2**32 - 65)
    render_steps: int = option(20, "Steps of each", "DDIM steps of each picture.", minimum=1, maximum=150)
    guidance_scale: float | None = option(None, "CFG", "Guidance scale. Empty: that of the run's previews.", minimum=1, maximum=30)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Wishes:
        """Raises ConfigError with every fault."""
        taken, faults = from_mapping(cls, values)
        faults = faults or faults_of(cls(**taken))
        if not faults and len(taken.get("prompts", ())) > PROMPTS_AT_MOST:
            faults = [f"--prompts: {len(taken['prompts'])} are too many; {PROMPTS_AT_MOST} are the most"]
        if faults:
            raise ConfigError(faults, "Nothing was rendered. Put it right, and try again.")
        return cls(**taken)


@dataclass(frozen=True)
class Column:
    """The base or a snapshot, and its measures (likeness.py); None where there is nothing to measure by.

    `error`: the standard error, over seeds and prompts, of how far its value is behind the largest.
    """

    name: str
    step: int
    nearness: float | None = None
    drift: float | None = None
    error: float | None = None

    @property
    def value(self) -> float | None:
        """What a snapshot is chosen by."""
        return None if self.nearness is None else self.nearness - (self.drift or 0.0)


@dataclass(frozen=True)
class Comparison:
    """What stands in comparison.json; `columns` begins with the base."""

    prompts: tuple[str, ...]
    kinds: tuple[str, ...]  # SUBJECT or CLASS, one for each prompt
    seeds: tuple[int, ...]
    render_steps: int
    guidance_scale: float
    side: int  # px
    columns: tuple[Column, ...] = ()
    host: str = ""

    @property
    def best(self) -> Column | None:
        """The earliest of those that hardly differ from the one of most value: not more than other seeds would make them.

        What few seeds cannot tell apart may be a snapshot that has learnt next to nothing: it has half of that value at least.
        """
        valued = [(column.value, column) for column in self.columns if column.name != BASE and column.value is not None]
        most = max((value for value, _ in valued), default=None)
        if most is None:
            return None
        half = most / 2 if most > 0 else -math.inf
        return next(column for value, column in valued
                    if value >= most - HARDLY_DIFFER or value >= max(most - (column.error or 0.0), half))

    @property
    def why(self) -> str:
        """One or two sentences about the choice."""
        best = self.best
        if best is None:
            return ""
        told = f"Step {best.step}: {_measures(best)}."
        later = [column for column in self.columns if column.step > best.step and column.value is not None]
        alike = [column for column in later if (column.value or 0) >= (best.value or 0) - max(HARDLY_DIFFER, column.error or 0)]
        is_far = (best.nearness or 0.0) < 0.5
        if later and len(alike) == len(later):
            return told + " What came later hardly differs, " + (
                "and is nearer to the base than to the subject, too: a higher learning rate may help." if is_far
                else "so the earliest will do.")
        if later:
            told += f" Going on to step {later[-1].step} made it {_measures(later[-1])}."
        if is_far:
            told += " It is still nearer to the base than to the subject: more steps may help."
        return told

    def path(self, run: RunFolder, column: str, prompt: int, seed: int) -> Path:
        return folder_of(run) / column / f"{prompt:02d}-{seed}.png"

    def shown(self, run: RunFolder, column: str, prompt: int, seed: int) -> Path:
        """The small copy for a page, which must not wait for many large pictures; else the picture itself."""
        path = self.path(run, column, prompt, seed)
        small = small_of(path)
        return small if small.is_file() else path

    def asks_the_same(self, other: Comparison) -> bool:
        """True if pictures of one can stand in for those of the other."""
        return all(getattr(self, name) == getattr(other, name)
                   for name in ("prompts", "render_steps", "guidance_scale", "side", "host"))

    def write(self, run: RunFolder) -> None:
        write_json(folder_of(run) / FILE, {"version": 1, **asdict(self)})

    def to_dict(self) -> dict[str, Any]:
        best = self.best
        return {**asdict(self), "best": best.name if best else "", "why": self.why}


def small_of(picture: Path) -> Path:
    return picture.with_suffix(".jpg")


def folder_of(run: RunFolder) -> Path:
    return run.path / "comparison"


def read_comparison(run: RunFolder) -> Comparison | None:
    """The run's last comparison; None if there is none, or its file, which may come from anywhere, makes no sense, or cannot be
    read at the moment."""
    try:
        return _read(folder_of(run) / FILE)
    except OSError:
        return None


def known_comparison(run: RunFolder) -> Comparison | None:
    """The same for whoever removes what it does not name. Raises StorageError where it cannot be read."""
    return surely_read(folder_of(run) / FILE, _read)


def _read(path: Path) -> Comparison | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        columns = tuple(_column(entry) for entry in values["columns"])
        found = Comparison(
            _texts(values["prompts"]), _texts(values["kinds"]), tuple(_whole(seed) for seed in values["seeds"]),
            _whole(values["render_steps"]), float(values["guidance_scale"]), _whole(values["side"]), columns,
            str(values.get("host", "")))
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        return None
    sane = len(found.kinds) == len(found.prompts) and set(found.kinds) <= {SUBJECT, CLASS} and 0 < len(found.seeds) <= 64
    return found if sane and len(found.prompts) <= PROMPTS_AT_MOST else None


def prompts_for(config: TrainConfig, wished: Sequence[str] = ()) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(prompts, what each shows) to compare by: those wished for, else some that tell likeness and drift."""
    prompts = [text.strip() for text in wished if text.strip()]
    if not prompts:
        for concept in config.concepts:
            instance = concept.shown_text
            scene = "a mountain landscape" if concept.kind == "style" else "on a beach"
            prompts += [instance, f"{instance} {scene}", concept.class_texts[0]]
    prompts = list(dict.fromkeys(prompts))
    return tuple(prompts), tuple(SUBJECT if _names_subject(config, text) else CLASS for text in prompts)


def percent(share: float) -> str:
    """0.123 -> "12 %"; never "-0 %"."""
    return f"{round(100 * share)} %"


def step_of_snapshot(name: str) -> int:
    """step-000200: 200; 0 for what is no snapshot's name."""
    match = SNAPSHOT.fullmatch(name)
    return int(match[1]) if match else 0


def _names_subject(config: TrainConfig, prompt: str) -> bool:
    words = re.findall(r"[^\s,.;:()]+", prompt.lower())
    for concept in config.concepts:
        token = concept.token.lower().strip()
        if token and all(word in words for word in token.split()):
            return True
        if concept.instance_prompt and not token and concept.instance_prompt.lower() in prompt.lower():
            return True
    return False


def _measures(column: Column) -> str:
    near = column.nearness or 0.0
    text = f"{percent(near)} of the way from the base to the subject" if near > 0 else "no nearer to the subject than the base"
    return text + (f", with {percent(column.drift)} drift of the class" if column.drift is not None else "")


def _column(entry: Mapping[str, Any]) -> Column:
    name = str(entry["name"])
    if name != BASE and not SNAPSHOT.fullmatch(name):
        raise ValueError(name)
    return Column(name, _whole(entry["step"]), _measure(entry.get("nearness")), _measure(entry.get("drift")),
                  _measure(entry.get("error")))


def _measure(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 10**12:
        raise ValueError(value)
    return value


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(values)
    return tuple(values)


def forget_after(run: RunFolder, step: int) -> None:
    """Drop the columns of snapshots after `step`, which are no more. Raises StorageError."""
    found = known_comparison(run)
    for folder in folder_of(run).glob("step-*"):
        if step_of_snapshot(folder.name) > step and not folder.is_symlink():
            forget_pictures(folder)
    if found is not None:
        replace(found, columns=tuple(column for column in found.columns if column.step <= step)).write(run)


def forget_pictures(folder: Path) -> None:
    """All of a folder's, or StorageError: one that stays would be taken for what is rendered in its place."""
    remove_folder(folder)
    if folder.exists():
        raise StorageError(f"the pictures in {folder} are to give way to others", "they cannot be removed",
                           "Close what shows them, and try again.")
