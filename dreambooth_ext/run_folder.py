"""What a run leaves on disk, and where.

    RUN/config.json          the settings, as validated
    RUN/state.json           where the run stands: state, step, steps, message, times
    RUN/inputs.json          sha256 of the base and of each picture: a resume compares them
    RUN/dataset/             prepared pictures, and manifest.json
    RUN/checkpoints/         step-000100/, one folder a snapshot
    RUN/previews/            step-000100-0.png, one file a prompt
    RUN/metrics.jsonl        one line a step
    RUN/log.txt
    RUN/wishes.txt           what another process asks of the one that works: stop, preview, snapshot
    RUN/took.json            seconds by phase, and memory
    RUN/comparison/          the snapshots side by side, see comparison.py
    RUN/report.html          written whenever the work on the run ends
    RUN/tensorboard/         where TensorBoard is installed
    RUN/diffusers/           the result, for DiffusionPipeline.from_pretrained
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .config import TrainConfig
from .errors import ResumeError, RunBusy
from .files import append_line, make_folder, require_safe_name, storage_error, sync_folder, write_json

STATES = ("new", "preparing", "class images", "training", "publishing", "finished", "interrupted", "failed")


@dataclass(frozen=True)
class RunState:
    """Where a run stands. Times are seconds since 1970."""

    state: str = "new"
    step: int = 0
    steps: int = 0
    message: str = ""
    started_s: float = 0.0
    updated_s: float = 0.0
    published: tuple[str, ...] = ()


_STATE: dict[str, Any] = {"state": str, "step": int, "steps": int, "message": str, "started_s": (int, float),
                          "updated_s": (int, float)}
_TOO_LARGE = 1e11  # steps, or seconds since 1970, of a file that somebody has tampered with


class RunFolder:
    """One run's folder. Creating the object touches nothing on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.dataset_dir = path / "dataset"
        self.checkpoints_dir = path / "checkpoints"
        self.previews_dir = path / "previews"
        self.metrics_path = path / "metrics.jsonl"
        self.log_path = path / "log.txt"
        self.diffusers_dir = path / "diffusers"

    @classmethod
    def for_config(cls, config: TrainConfig) -> RunFolder:
        return cls(Path(config.runs_dir).expanduser() / require_safe_name(config.output_name, "--output-name"))

    @property
    def exists(self) -> bool:
        return (self.path / "config.json").is_file()

    def create(self, config: TrainConfig) -> None:
        make_folder(self.path)
        write_json(self.path / "config.json", config.to_dict())
        self.write_state(RunState(started_s=time.time()))

    def config(self) -> TrainConfig:
        """Raises ResumeError if there is no run here, ConfigError if its settings cannot be read or are none of ours."""
        if not self.exists:
            raise ResumeError(f"{self.path} is to be opened", "no run was ever started there",
                              "`python -m dreambooth_ext runs` lists the runs there are.")
        return TrainConfig.read(self.path / "config.json").require_usable()

    def state(self) -> RunState:
        """The last state written; a fresh one if the file is missing or damaged."""
        values = self._object("state.json")
        published = values.get("published", ())
        given = {name: value for name, value in values.items()
                 if name in _STATE and isinstance(value, _STATE[name]) and not isinstance(value, bool)}
        if not all(abs(value) < _TOO_LARGE for value in given.values() if isinstance(value, (int, float))):
            return RunState()  # also what is no number: a comparison with it is false
        names = tuple(published) if isinstance(published, list) and all(isinstance(name, str) for name in published) else ()
        return RunState(**given, published=names)

    def write_state(self, state: RunState) -> None:
        write_json(self.path / "state.json", dict(asdict(state), updated_s=time.time()))

    def inputs(self) -> dict[str, str]:
        """Hashes by name; empty if the file is missing or damaged, and then nothing matches."""
        return {name: value for name, value in self._object("inputs.json").items() if isinstance(value, str)}

    def write_inputs(self, hashes: dict[str, str]) -> None:
        write_json(self.path / "inputs.json", hashes)

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Append one line. A line cut off by a crash is dropped by `metrics`. Raises StorageError."""
        append_line(self.metrics_path, json.dumps(line))

    def sync_metrics(self) -> None:
        """What was appended so far survives a power cut from now on. Raises StorageError."""
        try:
            if self.metrics_path.exists():
                with self.metrics_path.open("rb+") as stream:
                    os.fsync(stream.fileno())
                sync_folder(self.path)
        except OSError as error:
            raise storage_error(self.metrics_path, error) from error

    def metrics(self) -> list[dict[str, Any]]:
        """All whole lines, one for each step: the last one written counts."""
        lines: dict[int, dict[str, Any]] = {}
        try:
            text = self.metrics_path.read_text(encoding="utf-8")
        except OSError:
            return []
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                step = entry["step"]
                numbers = {name: value for name, value in entry.items() if isinstance(value, (int, float))}
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                continue
            if isinstance(step, int) and 0 <= step < _TOO_LARGE:
                lines[step] = numbers
        return [lines[step] for step in sorted(lines)]

    def truncate_metrics(self, step: int) -> None:
        """Drop the lines after `step`: a resumed run writes them again."""
        from .files import write_atomically

        kept = [entry for entry in self.metrics() if entry["step"] <= step]
        with write_atomically(self.metrics_path, "w") as stream:
            stream.writelines(json.dumps(entry) + "\n" for entry in kept)

    def _object(self, name: str) -> dict[str, Any]:
        """A JSON object of this folder, which may come from anywhere; empty if it is none."""
        try:
            value = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}

    def log(self, text: str) -> None:
        with suppress(OSError), self.log_path.open("a", encoding="utf-8") as stream:  # no run ends for want of its log
            stream.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def last_log_lines(self, count: int) -> list[str]:
        try:
            return self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-count:]
        except OSError:
            return []

    def ask(self, wish: str) -> None:
        """Leave a wish ("stop", "preview", "snapshot") for whatever process works on this run. Raises StorageError."""
        append_line(self._wishes_path, wish)

    def take_wishes(self) -> list[str]:
        """The wishes that were left since the last call, oldest first."""
        try:
            wishes = self._wishes_path.read_text(encoding="utf-8").split()
            self._wishes_path.unlink()
        except OSError:
            return []
        return wishes

    @property
    def _wishes_path(self) -> Path:
        return self.path / "wishes.txt"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process; the operating system frees it when the process dies. Raises RunBusy."""
        make_folder(self.path)
        with (self.path / ".lock").open("a+b") as stream:
            try:
                _lock(stream.fileno())
            except OSError as error:
                raise RunBusy(f"{self.path.name} is to be worked on", "another process works in its folder",
                              "Wait for it, stop it, or choose another name.") from error
            yield


def _lock(handle: int) -> None:
    if os.name == "nt":
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def step_in(name: str) -> int | None:
    """The step that the name of a snapshot or preview tells: 100 for step-000100 and step-000100-0.png; else None."""
    found = re.match(r"step-(\d{6,9})\b", name)
    return int(found.group(1)) if found else None


def list_runs(runs_dir: Path) -> list[RunFolder]:
    """All runs below `runs_dir`, newest first."""
    if not runs_dir.is_dir():
        return []
    runs = [RunFolder(path) for path in runs_dir.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return sorted((run for run in runs if run.exists), key=lambda run: run.state().started_s, reverse=True)
