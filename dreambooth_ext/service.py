"""What the tab and the API ask for: start, stop, resume, publish, delete. Everything slow becomes a job.

What does the work is imported by the first who asks for it: the WebUI's start does not wait for it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import desktop, uploads
from .check import check, require_new_model
from .comparison import Wishes, read_comparison
from .config import PATHS, TrainConfig
from .errors import Cancelled, ConfigError, DreamboothError, HostError, ResumeError, RunBusy, StorageError
from .files import NAME_AT_MOST, require_inside, require_safe_name
from .gpu import require_device
from .host import Host, on_device_of
from .jobs import JOBS, TOO_LATE, Job, Jobs
from .progress import Progress
from .run_folder import RunFolder, list_runs, require_run_name
from .watchdog import watched
from .words import printable

LOG_LINES = 60  # of a run, in its details


class Work:
    """A job's work on one run; `discard` deletes the run if the job is cancelled, unless the work `only_reads` it."""

    def __init__(self, run: RunFolder, do: Callable[[Progress], Any], *, only_reads: bool = False) -> None:
        self.run, self.do, self.only_reads, self.discard = run, do, only_reads, False

    def __call__(self, progress: Progress) -> Any:
        try:
            return self.do(progress)
        except Cancelled as stopped:
            if self.discard and not self.only_reads:
                with suppress(StorageError):  # it stays in the list of runs, and can be deleted there
                    self.run.delete()
                    raise Cancelled("its run is deleted, as asked") from stopped
            raise

    @property
    def too_late(self) -> str:
        """What is told if it was finished before it heard of the stop."""
        kept = " The run is kept, and its model: delete the one in Runs, the other in its folder."
        return TOO_LATE + (kept if self.discard and not self.only_reads else "")


class Service:
    """`roots`: the only folders that may be named, where the WebUI is open to others; None where it is not.

    `preset` names what a new form starts from.
    """

    def __init__(
        self, host: Host, roots: Sequence[Path] | None = None, jobs: Jobs = JOBS, *, open_txt2img: bool = False,
        preset: str = "",
    ) -> None:
        self.host, self.jobs, self.open_txt2img, self.preset = host, jobs, open_txt2img, preset
        self._roots = None if roots is None else [*roots, host.models_dir, host.lora_dir, host.runs_dir]

    @property
    def is_shared(self) -> bool:
        """True where people other than this computer's owner may use the page."""
        return self._roots is not None

    # ---- settings

    def settings(self, values: Mapping[str, Any]) -> TrainConfig:
        """Settings from the tab's or the API's values, with the host's folders. Raises ConfigError, UnsafePath."""
        config = TrainConfig.from_dict(values).require_usable()
        defaults = TrainConfig()
        if config.models_dir in ("", defaults.models_dir):
            folder = self.host.lora_dir if config.lora_rank else self.host.models_dir
            config = replace(config, models_dir=str(folder))
        if config.runs_dir in ("", defaults.runs_dir):
            config = replace(config, runs_dir=str(self.host.runs_dir))
        config = replace(config, base=self.file_of(config.base))
        return self._confined(config)

    def file_of(self, base: str) -> str:
        """The file of a checkpoint that is named by its title, its file name or its path."""
        for checkpoint in self.host.checkpoints():
            if base in (checkpoint.title, checkpoint.path.name, str(checkpoint.path)):
                return str(checkpoint.path)
        return base

    def _confined(self, config: TrainConfig) -> TrainConfig:
        if self._roots is None:
            return config
        listed = {str(checkpoint.path) for checkpoint in self.host.checkpoints()}
        for owner in (config, *config.concepts):
            for name in PATHS:
                path = getattr(owner, name, "")
                if path and path not in listed:
                    require_inside(Path(path).expanduser(), self._roots)
        return config

    def require_allowed(self, path: Path) -> Path:
        """`path`, if people who use a shared WebUI may name it. Raises UnsafePath."""
        return path if self._roots is None else require_inside(path.expanduser(), self._roots)

    # ---- runs

    def start(self, values: Mapping[str, Any]) -> Job:
        """Queue a training run. Raises ConfigError with every fault that the settings alone show."""
        from . import recipe

        config = self.settings(values).validate()
        run = self.require_free_name(config)
        return self._train(run, lambda progress: recipe.train(config, self.host, progress))

    def require_free_name(self, config: TrainConfig) -> RunFolder:
        """The run that these settings would make. Raises ConfigError if there is one of its name, or a model."""
        run = RunFolder.for_config(config)
        namesake = run.namesake() or self._queued(run)
        if namesake is not None:
            raise ConfigError([f"--output-name: a run named {namesake.path.name} is there already"],
                              "Choose another name, or continue that run in the list of runs.")
        require_new_model(config)
        return run

    def resume(self, name: str, snapshot: str = "", steps: int | None = None, learning_rate: float | None = None) -> Job:
        """Go on with a run: from one of its snapshots, if named, to other `steps` and at another rate, if given. What comes after
        that snapshot is removed, but for published files. Raises ResumeError, ConfigError, RunBusy.
        """
        from . import recipe, rollback

        run = self.run(name)
        self._confined(run.config())
        rollback.require_another_way(run, learning_rate)
        if not snapshot and steps is None and learning_rate is None:
            return self._train(run, lambda progress: recipe.resume(run, self.host, progress))
        if self._queued(run):
            raise RunBusy(f"{name} is to go on from {snapshot or 'its last snapshot'}", "it is running or waiting",
                          "Stop it first.")
        rollback.require_possible(run, snapshot, steps, learning_rate)
        return self._train(run, lambda progress: recipe.resume(run, self.host, progress, snapshot=snapshot, steps=steps,
                                                               learning_rate=learning_rate))

    def faults(self, values: Mapping[str, Any]) -> list[str]:
        """Everything that would keep `start` from starting these settings, files included; empty if nothing would."""
        try:
            config = self.settings(values).validate()
            check(on_device_of(self.host, config))
            require_new_model(config)
        except ConfigError as error:
            return list(error.faults)
        except DreamboothError as error:
            return [f"{error.asked}: {error.why}"]
        return []

    def estimate(self, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What each memory profile needs of the device."""
        from . import recipe

        config = on_device_of(self.host, self.settings(values))
        require_device(config.device)
        return [row.to_dict() for row in recipe.estimate(config)]

    def compare(self, name: str, wishes: Mapping[str, Any] | None = None) -> Job:
        """Render and measure a run's snapshots side by side. Raises ConfigError, ResumeError."""
        from .compare import compare, plan

        run = self.run(name)
        self._confined(run.config())
        wanted = Wishes.from_dict(wishes or {})
        plan(run, wanted, self.host)
        return self._use(run, lambda progress: compare(run, self.host, progress, wanted))

    def publish(
        self, name: str, *, snapshot: str = "", as_name: str = "", changes: Mapping[str, Any] | None = None
    ) -> Job:
        """Write a run's result, or one of its snapshots, into the models folder and select it."""
        from . import recipe
        from .compare import snapshot_folder

        run = self.run(name)
        config = self._confined(replace(run.config(), **dict(changes or {})).validate())
        if as_name:
            require_safe_name(as_name, "the model's name")
        folder = snapshot_folder(run, snapshot) if snapshot else None

        def work(progress: Progress) -> list[Path]:
            with watched(progress), self.host.job(run.path.name, progress):
                paths = recipe.publish(run, progress, snapshot=folder, name=as_name, config=config)
                self.host.select(paths[0])
            progress.report(1, 1)
            return paths

        return self._use(run, work)

    def delete(self, name: str) -> None:
        """Remove a run's folder with all that is in it; published models stay. Raises RunBusy."""
        run = self._found(name)
        if self._queued(run):
            raise RunBusy(f"{name} is to be deleted", "it is running or waiting", "Stop it first.")
        run.delete()

    def stop(self, job_id: str, by: str, *, discard: bool = False) -> bool:
        """Stop a job, keeping what it has learnt unless `discard`. False if there is no such job to stop."""
        job = self.jobs.find(job_id)
        if job is not None and isinstance(job.work, Work):
            job.work.discard = discard
        return self.jobs.stop(job_id, by)

    def move(self, job_id: str, places: int) -> bool:
        """Let a waiting job change places with those around it; -1 is one place sooner. False if it waits no more."""
        return self.jobs.move(job_id, places)

    def request(self, wish: str) -> bool:
        """Ask the running job for a "preview" or a "snapshot" at its next step."""
        job = self.jobs.running
        if job is None:
            return False
        job.progress.request(wish)
        return True

    def runs(self) -> list[dict[str, Any]]:
        """All runs of the host's folder, newest first; one that cannot be read says so."""
        return [run.described() for run in self.run_folders()]

    def run_folders(self) -> list[RunFolder]:
        """The same, unread."""
        return list_runs(self.host.runs_dir)

    def run_names(self) -> list[str]:
        return [printable(run.path.name) for run in self.run_folders()]

    def run(self, name: str) -> RunFolder:
        """Raises ResumeError if there is no such run, UnsafePath if `name` is not a mere name, or a folder in it a link."""
        run = self._found(name)
        run.require_own(folders_alone=True)
        return run

    def _found(self, name: str) -> RunFolder:
        run = RunFolder(self.host.runs_dir / require_run_name(name, "the run"))
        self.require_allowed(run.path)  # a folder of that name may be a link to elsewhere
        if not run.exists:
            raise ResumeError(f"{name} is to be opened", "there is no such run", "Choose one from the list of runs.")
        return run

    def free_name(self, name: str) -> str:
        """name-2, name-3, ...: the first that no run and no model has, in whatever case."""
        taken = {run.path.name.lower() for run in list_runs(self.host.runs_dir)}
        for folder in (self.host.models_dir, self.host.lora_dir):
            taken |= {path.stem.lower() for path in (folder.iterdir() if folder.is_dir() else ())}
        stem = name[: NAME_AT_MOST - len("-9999")]
        return next(f"{stem}-{number}" for number in range(2, 10_000) if f"{stem}-{number}".lower() not in taken)

    def details(self, name: str) -> dict[str, Any]:
        """What is known of one run: its row in the list, its last figures, its snapshots, its previews, and the end of its log."""
        run = self.run(name)
        metrics = run.metrics()
        return {**run.described(), "figures": metrics[-1] if metrics else {}, "snapshots": self.snapshots(run),
                "previews": [printable(path.name) for path in run.previews()], "comparison": self.comparison(name),
                "log": run.log_text().splitlines()[-LOG_LINES:]}

    def comparison(self, name: str) -> dict[str, Any] | None:
        """What Choose shows of a run: prompts, seeds, measures, the best one and why; None before any was made."""
        found = read_comparison(self.run(name))
        return found.to_dict() if found else None

    def cloned(self, name: str) -> dict[str, Any]:
        """A run's settings for a new one, under a name that is free."""
        return {**self.run(name).config().to_dict(), "output_name": self.free_name(name)}

    def report(self, name: str, folder: Path) -> Path:
        """A run's report, written anew and copied into `folder`."""
        from .report import write_report

        run = self.run(name)
        return Path(shutil.copy(write_report(run), folder / f"{run.path.name}-report.html"))

    def explain(self, name: str, folder: Path, *, with_paths: bool = False, with_prompts: bool = False) -> Path:
        """One zip about a failure. Whoever uses a shared WebUI is not told the paths of its computer."""
        from .report import explain_failure

        run = self.run(name)
        return explain_failure(run, folder / f"{run.path.name}-failure.zip", with_prompts=with_prompts,
                               with_paths=with_paths and not self.is_shared)

    @property
    def presets_dir(self) -> Path:
        return self.host.runs_dir / "presets"

    def open_folder(self, name: str) -> Path:
        """Show a run's folder in the file manager of the computer that trains. Raises HostError."""
        run = self.run(name)
        if self.is_shared:
            raise HostError(f"{name}'s folder is to be opened", "this WebUI is shared, and it would open on another's screen",
                            "It stands among the runs, on the computer that trains.")
        desktop.open_folder(run.path)
        return run.path

    @staticmethod
    def snapshots(run: RunFolder) -> list[str]:
        """Names of the snapshots that can be published, oldest first."""
        from .compare import publishable_snapshots

        return publishable_snapshots(run)

    def keep_uploads(self, files: Sequence[str], into: str = "") -> Path:
        """Copy uploaded pictures to those of `into`, if that is a folder of earlier uploads, else into a new one beside the runs.

        Returns the folder that they are in. Raises ConfigError, StorageError.
        """
        own, former = self.host.runs_dir / "uploads", Path(into)
        fresh = own / time.strftime("%Y-%m-%d-%H%M%S")
        if not into or former.parent != own or not former.is_dir() or former.is_symlink():
            return uploads.keep(files, fresh)
        if self.is_shared:  # it may be somebody else's
            return uploads.keep(files, fresh, former)
        return uploads.add(files, former)

    # ---- what is going on

    def status(self) -> dict[str, Any]:
        """The running job, those that wait and the last one that ended: plain values only."""
        jobs = [job.status() for job in self.jobs.all()]
        return {
            "running": next((job for job in jobs if job["state"] == "running"), None),
            "queue": [job for job in jobs if job["state"] == "queued"],
            "last": next((job for job in jobs if job["ended_s"]), None),
        }

    def shown_job(self) -> Job | None:
        """The job that a page should show: the running one, else the one that ended last."""
        jobs = self.jobs.all()
        return next((job for job in jobs if job.state == "running"), jobs[0] if jobs else None)

    def _train(self, run: RunFolder, do: Callable[[Progress], Any]) -> Job:
        """Queue what trains a run, once."""
        return self.jobs.start(Job(run.path.name, Work(run, do), run.path))

    def _use(self, run: RunFolder, do: Callable[[Progress], Any]) -> Job:
        """Queue what makes something of a run, which stays as it is."""
        return self.jobs.start(Job(run.path.name, Work(run, do, only_reads=True)))

    def _queued(self, run: RunFolder) -> RunFolder | None:
        """The run of this name, in whatever case, that is worked on or waits for it."""
        queued = (job.work.run for job in self.jobs.all() if isinstance(job.work, Work))
        return next((other for other in queued if str(other.path).lower() == str(run.path).lower()), None)
