"""What a run leaves on disk, and where.

    RUN/config.json          the settings, as validated; written last and deleted last: what has none is no run
    RUN/state.json           where the run stands: state, step, steps, message, times
    RUN/inputs.json          sha256 of the base and of each picture: a resume compares them
    RUN/choices-0.json       what was chosen of the pictures of concept 0, if anything was
    RUN/audit.json           what was found of the pictures before they were prepared
    RUN/dataset/             prepared pictures, and manifest.json
    RUN/checkpoints/         step-000100/, one folder a snapshot
    RUN/previews/            step-000100-0.png, one file a prompt
    RUN/metrics.jsonl        one line a step
    RUN/log.txt
    RUN/stop.wish            what another process asks of the one that works: stop, preview, snapshot
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
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from .config import TrainConfig
from .errors import ConfigError, ResumeError, RunBusy, StorageError, UnsafePath
from .files import (
    append_line,
    is_link,
    make_folder,
    once_let_go,
    require_safe_name,
    size_of,
    storage_error,
    surely_read,
    sync_folder,
    write_atomically,
    write_json,
)
from .metrics import entry_of, last_step
from .run_state import RunState, read_state, read_texts
from .words import printable

BESIDE_RUNS = ("class-images", "presets", "uploads", "choices", "prepared", "token-check")  # in the runs' folder, and no runs
_STATE, _INPUTS = "state.json", "inputs.json"
WORKED_ON = ("preparing", "class images", "training", "publishing")  # states of a run that a process holds
_LOG_BYTES_SHOWN = 1 << 20
_LINE_BYTES_AT_MOST = 1 << 16
_WISHES = ("preview", "snapshot", "stop")
_BEFORE_CONFIG = re.compile(r"\.lock|(inputs|state|choices-\d+)\.json|\..*\.partial|.*\.wish")  # what a killed start has left


class RunFolder:
    """One run's folder. Creating the object touches nothing on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.dataset_dir = path / "dataset"
        self.checkpoints_dir = path / "checkpoints"
        self.previews_dir = path / "previews"
        self.audit_path = path / "audit.json"
        self.metrics_path = path / "metrics.jsonl"
        self.log_path = path / "log.txt"
        self.diffusers_dir = path / "diffusers"

    @classmethod
    def for_config(cls, config: TrainConfig) -> RunFolder:
        return cls(Path(config.runs_dir).expanduser() / require_run_name(config.output_name, "--output-name"))

    def choices_path(self, concept: int) -> Path:
        """What was chosen of a concept's pictures when the run began."""
        return self.path / f"choices-{concept}.json"

    @property
    def exists(self) -> bool:
        return os.path.isfile(self.path / "config.json")

    def create(self, config: TrainConfig, inputs: Mapping[str, str] | None = None) -> None:
        """Make it a run. Raises StorageError, and then it is none."""
        self.write_inputs(dict(inputs or {}))
        self.write_state(RunState(started_s=time.time()))
        write_json(self.path / "config.json", config.to_dict())

    def namesake(self) -> RunFolder | None:
        """The run that has this name, in whatever case: to Windows and macOS, Rex and rex are one folder, and one model file."""
        if self.exists:
            return self
        try:
            found = [RunFolder(path) for path in self.path.parent.iterdir() if path.name.lower() == self.path.name.lower()]
        except OSError:  # no folder of runs yet
            return None
        return next((run for run in found if run.exists), None)

    def require_free(self) -> None:
        """Raise ConfigError if a run has this name, or the folder holds files of somebody else's."""
        run = self.namesake()
        if run is not None:
            raise ConfigError([f"--output-name: a run named {run.path.name} is there already ({run.state().state})"],
                              f"Choose another name, or continue it: {resume_command(run.path.name, str(run.path.parent))}")
        found = self.path.iterdir() if self.path.is_dir() else ()
        others = sorted(path.name for path in found if not _BEFORE_CONFIG.fullmatch(path.name))
        if others:
            raise ConfigError([f"--output-name: {self.path} holds files that are no run's: {', '.join(others[:5])}"],
                              "Choose another name, or another folder of runs.")

    def require_there(self) -> None:
        """Raise StorageError if the folder is gone: else it would be made anew, in the place of a drive that is not there."""
        if not self.path.is_dir():
            raise StorageError(f"{self.path.name} is to be written to {self.path.parent}", "the run's folder is gone",
                               "Put the drive back, or the folder if it was moved.")

    def require_own(self, *, folders_alone: bool = False) -> None:
        """Raise UnsafePath if anything in the folder is a link: what is read, written or deleted there would be elsewhere."""
        for place, folders, names in os.walk(self.path):
            for name in folders if folders_alone else (*folders, *names):
                path = Path(place, name)
                if is_link(path):
                    raise UnsafePath(f"{self.path.name} is to be worked on",
                                     f"{path.relative_to(self.path).as_posix()} in it is a link to elsewhere",
                                     "Put the files themselves in its place; a run may be moved to another disk as a whole.")

    def delete(self) -> None:
        """Remove the run with all that is in it; killed half-way, it can be deleted again. Raises RunBusy, StorageError."""
        if is_link(self.path):
            raise UnsafePath(f"{self.path.name} is to be deleted", "its folder is a link to elsewhere", "Remove the link yourself.")
        lock = self.path / ".lock"
        with self.lock():
            try:
                for path in sorted(self.path.iterdir(), key=lambda path: path.name == "config.json"):
                    if path.is_dir() and not is_link(path):
                        once_let_go(partial(_remove_tree, path))
                    elif path != lock:
                        once_let_go(partial(path.unlink, missing_ok=True))
            except OSError as error:
                raise StorageError(f"{self.path.name} is to be deleted", str(error.strerror or error),
                                   "Close what uses its files, and try again.") from error
            if os.name != "nt":  # which removes no open file
                lock.unlink()
        with suppress(OSError):  # somebody may have begun a run of that name at once: its lock is no longer ours
            if os.name == "nt":
                lock.unlink(missing_ok=True)
            self.path.rmdir()

    def config(self) -> TrainConfig:
        """Raises ResumeError if there is no run here, ConfigError if its settings cannot be read or are none of ours."""
        if not self.exists:
            raise ResumeError(f"{self.path} is to be opened", "no run was ever started there",
                              "`python -m dreambooth_ext runs` lists the runs there are.")
        config = TrainConfig.read(self.path / "config.json").require_usable()
        own = [self.choices_path(index) for index in range(len(config.concepts))]  # which a moved folder has with it
        here = Path(config.runs_dir).expanduser() == self.path.parent
        return replace(config, runs_dir=config.runs_dir if here else str(self.path.parent),
                       concepts=tuple(replace(each, choices=str(path)) if each.choices and path.is_file() else each
                                      for each, path in zip(config.concepts, own, strict=True)))

    def state(self) -> RunState:
        """The last state written; a fresh one if the file is missing or damaged, or cannot be read at the moment."""
        try:
            return read_state(self.path / _STATE)
        except OSError:
            return RunState()

    def known_state(self) -> RunState:
        """The same for whoever writes it anew: a fresh one would take away what is there. Raises StorageError where it cannot
        be read, for some seconds."""
        return surely_read(self.path / _STATE, read_state)

    def kept_step(self) -> int:
        """From which it would go on: that of its last whole snapshot; 0 if it has none, or none can be seen."""
        try:
            return max((step_in(path.parent.name) or 0 for path in self.checkpoints_dir.glob("step-*/state.pt")), default=0)
        except OSError:
            return 0

    def write_state(self, state: RunState) -> None:
        write_json(self.path / _STATE, dict(asdict(state), updated_s=time.time()))

    def described(self) -> dict[str, Any]:
        """The run as the list of runs shows it."""
        return {**self.summary(), "size_bytes": size_of(self.path)}

    def summary(self) -> dict[str, Any]:
        """The same without its size, for which all its files are looked at; one that cannot be read says so in its message."""
        base, prompts, state = "", [], self._state_by_now()
        try:
            config = self.config()
            base, prompts = Path(config.base).name, [concept.instance_text for concept in config.concepts]
        except (ConfigError, ResumeError) as error:
            state = replace(state, message=error.why)
        return {"name": printable(self.path.name), "base": base, "prompts": prompts, **asdict(state)}

    def _state_by_now(self) -> RunState:
        """The state file is written when the state changes: since then steps were taken, or the process was killed."""
        state = self.state()
        if state.state in WORKED_ON and not self.is_held():
            state = self.state()  # it may have ended between the two looks
            if state.state in WORKED_ON:
                return replace(state, state="interrupted", step=self.kept_step() or state.step,
                               message="it ended without a word, and can be resumed")
        if state.state == "training":
            return replace(state, step=last_step(self.metrics_path) or state.step)
        return state

    def inputs(self) -> dict[str, str]:
        """Hashes by name; empty if the file is missing or damaged, and then nothing matches, or cannot be read at the moment."""
        try:
            return read_texts(self.path / _INPUTS)
        except OSError:
            return {}

    def known_inputs(self) -> dict[str, str]:
        """The same for whoever compares with them, or writes them down. Raises StorageError where they cannot be read."""
        return surely_read(self.path / _INPUTS, read_texts)

    def write_inputs(self, hashes: dict[str, str]) -> None:
        write_json(self.path / _INPUTS, hashes)

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
        """All whole lines, one for each step: the last one written counts. None where they cannot be read."""
        try:
            return self._metrics()
        except OSError:
            return []

    def _metrics(self) -> list[dict[str, Any]]:
        lines: dict[int, dict[str, Any]] = {}
        for line in _lines_of(self.metrics_path) if self.metrics_path.exists() else ():
            entry = entry_of(line)
            if entry is not None:
                lines[entry["step"]] = entry
        return [lines[step] for step in sorted(lines)]

    def truncate_metrics(self, step: int) -> None:
        """Drop the lines after `step`: a resumed run writes them again. Raises StorageError."""
        try:
            kept = [entry for entry in self._metrics() if entry["step"] <= step]
        except OSError as error:
            raise storage_error(self.metrics_path, error) from error
        with write_atomically(self.metrics_path, "w") as stream:
            stream.writelines(json.dumps(entry) + "\n" for entry in kept)

    def log_text(self) -> str:
        """The end of the log; empty where it is a link, or cannot be read."""
        try:
            with self.log_path.open("rb") as stream:
                stream.seek(max(0, stream.seek(0, os.SEEK_END) - _LOG_BYTES_SHOWN))
                return "" if is_link(self.log_path) else stream.read().decode("utf-8", "replace")
        except OSError:
            return ""

    def prepared(self) -> list[Path]:
        """The prepared pictures; none where the folder is a link."""
        folder = self.dataset_dir
        return [] if is_link(folder) else sorted(path for path in folder.rglob("*.png") if not is_link(path))

    def previews(self) -> list[Path]:
        """In order of steps; none where the folder is a link."""
        folder = self.previews_dir
        return [] if is_link(folder) else sorted(path for path in folder.glob("step-*.png") if not is_link(path))

    def log(self, text: str) -> None:
        with suppress(OSError), self.log_path.open("a", encoding="utf-8", errors="backslashreplace") as stream:
            # No run ends for want of its log.
            stream.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def ask(self, wish: str) -> None:
        """Leave a wish ("stop", "preview", "snapshot") for whatever process works on this run. Raises StorageError."""
        try:
            self._wish_path(wish).touch()
        except OSError as error:
            raise storage_error(self._wish_path(wish), error) from error

    def take_wishes(self) -> list[str]:
        """The wishes that were left since the last call. A file that is there is the whole wish: none is lost while it is taken."""
        taken = []
        for wish in _WISHES:
            with suppress(OSError):
                self._wish_path(wish).unlink()
                taken.append(wish)
        return taken

    def _wish_path(self, wish: str) -> Path:
        return self.path / f"{wish}.wish"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process; the operating system frees it when the process dies. Raises RunBusy, StorageError."""
        from . import file_lock

        path = self.path / ".lock"
        try:
            make_folder(self.path)
            stream = path.open("a+b")
        except OSError as error:
            raise storage_error(path, error) from error
        with stream:
            try:
                file_lock.take(stream.fileno())
                removed = not path.exists() or not os.path.samestat(path.stat(), os.fstat(stream.fileno()))
            except OSError as error:
                raise _busy(self.path) from error
            if removed:  # by whoever has just deleted the run
                raise _busy(self.path)
            self.take_wishes()  # of a former process, which did not come to them
            yield

    def is_held(self) -> bool:
        """Whether a process works on the run: one that was killed holds nothing. True where that cannot be told."""
        from .file_lock import is_held

        return is_held(self.path / ".lock")


def _remove_tree(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)


def _busy(path: Path) -> RunBusy:
    return RunBusy(f"{path.name} is to be worked on", "another process works in its folder",
                   "Wait for it, stop it, or choose another name.")


def _lines_of(path: Path) -> Iterator[str]:
    """Lines of a text file; those that are far too long come in pieces."""
    with path.open("rb") as stream:
        while line := stream.readline(_LINE_BYTES_AT_MOST):
            yield line.decode("utf-8", "replace")


def step_in(name: str) -> int | None:
    """The step that the name of a snapshot or preview tells: 100 for step-000100 and step-000100-0.png; else None."""
    found = re.match(r"step-(\d{6,9})\b", name)
    return int(found.group(1)) if found else None


def resume_command(name: str, runs_dir: str = "", learning_rate: str = "") -> str:
    """What to type to go on with a run; name and folder may hold spaces."""
    words = [name, *(["--runs-dir", runs_dir] if runs_dir not in ("", "runs") else []),
             *(["--learning-rate", learning_rate] if learning_rate else [])]
    return " ".join(["python -m dreambooth_ext resume", *(f'"{word}"' if " " in word else word for word in words)])


def require_run_name(name: str, what: str) -> str:
    """Return `name` if it can name a run, else raise UnsafePath."""
    if require_safe_name(name, what).lower() in BESIDE_RUNS:
        raise UnsafePath(f"{what} is to be {name!r}", "the folder of that name, beside the runs, holds something else",
                         "Choose another name.")
    return name


def list_runs(runs_dir: Path) -> list[RunFolder]:
    """All runs below `runs_dir`, newest first; none where it cannot be read."""
    try:
        found = [RunFolder(path) for path in runs_dir.iterdir()
                 if path.name.lower() not in BESIDE_RUNS and not path.name.startswith(".")]
        runs = [run for run in found if run.exists]
    except OSError:
        return []
    return sorted(runs, key=lambda run: run.state().started_s, reverse=True)
