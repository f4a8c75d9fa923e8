"""The commands that look after runs: compare, show, ask, settings, report, explain, open, delete, queue."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from .. import recipe
from ..compare import compare as compare_snapshots
from ..comparison import Comparison, Wishes, percent
from ..config import TrainConfig
from ..errors import Cancelled, ConfigError, DreamboothError, ResumeError, RunBusy
from ..files import expanded, gib
from ..hosts.standalone import StandaloneHost
from ..jobs import Jobs
from ..progress import Progress
from ..run_folder import RunFolder, resume_command
from ..service import Service
from .command import Command, declare_run, host_of, require_where_it_began, run_of, say, show_object
from .flags import add_flags_of, given_of

WISHES = ("preview", "snapshot", "stop", "discard")
STOPS_WITHIN_S = 600.0  # one step, and a snapshot to be written


def compare(parsed: argparse.Namespace, progress: Progress) -> None:
    run = run_of(parsed)
    require_where_it_began(run, "compare")
    wishes = Wishes.from_dict(given_of(parsed, Wishes))
    found = compare_snapshots(run, host_of(run.config()), progress, wishes)
    say(parsed, _table(found), **found.to_dict())


def show(parsed: argparse.Namespace, progress: Progress) -> None:
    run = run_of(parsed)
    known = _service(run).details(run.path.name)
    figures = ", ".join(f"{name} {value:.4g}" for name, value in known["figures"].items())
    lines = [f"{known['name']}: {known['state']}, step {known['step']} of {known['steps']}, on {known['base']}, "
             f"{gib(known['size_bytes'])}", *([known["message"]] if known["message"] else []), *([figures] if figures else []),
             "snapshots: " + (", ".join(known["snapshots"]) or "none")]
    lines += [known["comparison"]["why"]] if known["comparison"] and known["comparison"]["why"] else []
    say(parsed, "\n".join([*lines, *(f"  {line}" for line in known["log"][-10:])]), **known)


def ask(parsed: argparse.Namespace, progress: Progress) -> None:
    """Whatever process works on the run: a WebUI, another terminal."""
    run = run_of(parsed)
    if not run.is_held():
        command = resume_command(run.path.name, str(run.path.parent))
        instead = f"Go on with it: {command}"
        if parsed.wish == "discard":
            instead = f"Delete it: {command.replace(' resume ', ' delete ', 1)}"
        raise ResumeError(f"{parsed.wish} is asked of {run.path.name}", "no process works on it now", instead)
    run.ask("stop" if parsed.wish == "discard" else parsed.wish)
    if parsed.wish == "discard":
        _delete_once_stopped(run, progress)
    told = {"discard": "stopped and deleted", "stop": "asked to stop after this step, and to keep what it has learnt"}
    say(parsed, f"{run.path.name}: {told.get(parsed.wish, f'a {parsed.wish} comes with its next step')}.", asked=parsed.wish)


def _delete_once_stopped(run: RunFolder, progress: Progress) -> None:
    """Whoever thinks better of it meanwhile, and stops waiting, keeps the run."""
    end = time.monotonic() + STOPS_WITHIN_S
    while run.is_held():
        if time.monotonic() > end:
            raise RunBusy(f"{run.path.name} is to be discarded", "it has not stopped yet", "Delete it once it has.")
        progress.wait(0.2)
    progress.check()
    if run.known_state().state == "finished":
        raise ResumeError(f"{run.path.name} is to be discarded", "it was finished before it could be stopped, and is kept",
                          "`delete` removes the run; the model that it published is a file of its own.")
    _service(run).delete(run.path.name)


def settings(parsed: argparse.Namespace, progress: Progress) -> None:
    run = run_of(parsed)
    show_object(parsed, _service(run).cloned(run.path.name))


def report(parsed: argparse.Namespace, progress: Progress) -> None:
    from ..report import write_report

    path = write_report(run_of(parsed), with_paths=parsed.with_paths)
    say(parsed, f"Wrote {path}", written=str(path))


def explain(parsed: argparse.Namespace, progress: Progress) -> None:
    from ..report import explain_failure

    run = run_of(parsed)
    path = expanded(parsed.out or f"{run.path.name}-failure.zip")
    if path.suffix != ".zip":
        raise ConfigError([f"--out: {path.name} does not end in .zip"])
    explain_failure(run, path, with_paths=parsed.with_paths, with_prompts=parsed.with_prompts)
    say(parsed, f"Wrote {path}: look into it before you show it to others.", written=str(path))


def open_folder(parsed: argparse.Namespace, progress: Progress) -> None:
    run = run_of(parsed)
    folder = _service(run).open_folder(run.path.name)
    say(parsed, f"{folder} is open.", opened=str(folder))


def delete(parsed: argparse.Namespace, progress: Progress) -> None:
    run = run_of(parsed)
    if not parsed.yes:
        if not sys.stdin.isatty():
            raise ConfigError([f"--yes: {run.path.name} is deleted only if this is given"], "Nothing was deleted.")
        answer = input(f"Delete {run.path} with its snapshots, previews and log? Published models stay. [y/N] ")
        if answer.lower() not in ("y", "yes"):
            say(parsed, "Nothing was deleted.", deleted=False)
            return
    _service(run).delete(run.path.name)
    say(parsed, f"{run.path.name} is deleted.", deleted=True)


def queue(parsed: argparse.Namespace, progress: Progress) -> None:
    """Each as `train --config FILE`: all are judged before the first one starts, and one that fails keeps none from its turn."""
    configs = _judged(parsed.files)
    names = [(config.runs_dir, config.output_name) for config in configs]
    faults = [f"{file}: a run named {name[1]} is there already" for file, name in zip(parsed.files, names, strict=True)
              if RunFolder(expanded(name[0]) / name[1]).namesake()]
    alike = [(folder, name.lower()) for folder, name in names]  # Rex and rex are one folder to Windows and macOS
    faults += [f"--output-name: {name[1]} stands in two files" for place, name in enumerate(names) if alike[place] in alike[:place]]
    if faults:
        raise ConfigError(faults)
    failed: dict[str, str] = {}
    for number, config in enumerate(configs, start=1):
        progress.log(f"Run {number} of {len(configs)}: {config.output_name}")
        try:
            recipe.train(config, host_of(config), progress)
        except (Cancelled, KeyboardInterrupt):
            parsed.resume_name, parsed.runs_dir = config.output_name, config.runs_dir
            if parsed.files[number:]:
                progress.log(f"Not begun: {', '.join(parsed.files[number:])}")
            raise
        except DreamboothError as error:
            failed[config.output_name] = str(error)
            progress.log(f"{config.output_name}: {error}")
        except Exception as error:  # noqa: BLE001  a drive that is gone, say: the next one may be on another
            failed[config.output_name] = f"{type(error).__name__}: {error}"
            progress.log(f"{config.output_name}: {traceback.format_exc()}")
    done = len(configs) - len(failed)
    say(parsed, f"{done} of {len(configs)} runs are finished.", finished=done, failed=failed)
    if failed:
        raise ResumeError(f"{len(configs)} runs were to be worked off", f"{', '.join(failed)} failed", "The others are finished.")


def _judged(files: Sequence[str]) -> list[TrainConfig]:
    """The settings of each. Raises ConfigError with the faults of all, each with the file that it is in."""
    configs, faults = [], []
    for file in files:
        try:
            configs.append(TrainConfig.read(expanded(file)).validate())
        except ConfigError as error:
            faults += [fault if Path(file).name in fault else f"{file}: {fault}" for fault in error.faults]
    if faults:
        raise ConfigError(faults)
    return configs


def _service(run: RunFolder) -> Service:
    """For what needs no models, and so no settings of the run, which may be damaged."""
    return Service(StandaloneHost(run.path.parent, run.path.parent), jobs=Jobs())


def _table(found: Comparison) -> str:
    def share(value: float | None) -> str:
        return "" if value is None else percent(value)

    lines = [f"{'':14}{'nearness':>10}{'drift':>8}"]
    lines += [f"{column.name:14}{share(column.nearness):>10}{share(column.drift):>8}" + (" best" if column == found.best else "")
              for column in found.columns]
    return "\n".join([*lines, found.why])


def _declare_compare(parser: argparse.ArgumentParser) -> None:
    declare_run(parser)
    add_flags_of(parser, Wishes)


def _declare_ask(parser: argparse.ArgumentParser) -> None:
    declare_run(parser)
    parser.add_argument("wish", choices=WISHES, help="discard stops it and deletes the run")


def _declare_report(parser: argparse.ArgumentParser) -> None:
    declare_run(parser)
    parser.add_argument("--with-paths", action="store_true", help="name folders of this computer")


def _declare_explain(parser: argparse.ArgumentParser) -> None:
    _declare_report(parser)
    parser.add_argument("--with-prompts", action="store_true", help="tell token, class and prompts")
    parser.add_argument("--out", metavar="FILE", help="the zip to write (default: RUN-failure.zip)")


def _declare_delete(parser: argparse.ArgumentParser) -> None:
    declare_run(parser)
    parser.add_argument("--yes", action="store_true", help="do not ask")


def _declare_queue(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="settings as JSON, as --config takes them, in order")


COMMANDS: dict[str, Command] = {
    "compare": (compare, "Render a run's snapshots side by side, measure them, and say which is best.", _declare_compare),
    "show": (show, "Say where a run stands.", declare_run),
    "ask": (ask, "Ask a run that is going on, in whatever process, for a preview or snapshot, or to stop.", _declare_ask),
    "settings": (settings, "Print a run's settings, for --config of a new one.", declare_run),
    "report": (report, "Write a run's report.html.", _declare_report),
    "explain": (explain, "Write a zip that explains a failure, without paths and prompts.", _declare_explain),
    "open": (open_folder, "Open a run's folder in the file manager.", declare_run),
    "delete": (delete, "Delete a run; published models stay.", _declare_delete),
    "queue": (queue, "Train several runs, one after the other.", _declare_queue),
}
