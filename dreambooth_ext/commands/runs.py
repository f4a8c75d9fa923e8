"""The commands that train: runs and what belongs to them."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

from .. import recipe
from ..compare import publishable_snapshots, snapshot_folder
from ..errors import ResumeError
from ..files import expanded, gib
from ..progress import Progress
from ..run_folder import WORKED_ON, list_runs, resume_command
from ..words import counted, duration
from .command import Command, declare_run, declare_settings, host_of, require_where_it_began, run_of, say, settings_of
from .flags import add_config_flags, given


def train(parsed: argparse.Namespace, progress: Progress) -> None:
    config = settings_of(parsed)
    parsed.resume_name, parsed.runs_dir = None, config.runs_dir
    progress.listen(lambda report: _offer_resume(parsed, config.output_name, config.learning_rate, report.phase))
    _finished(parsed, recipe.train(config, host_of(config), progress))


def resume(parsed: argparse.Namespace, progress: Progress) -> None:
    run = run_of(parsed)
    require_where_it_began(run, "resume")
    rate = parsed.learning_rate or run.config().learning_rate
    progress.listen(lambda report: _offer_resume(parsed, parsed.run, rate, report.phase))
    _finished(parsed, recipe.resume(run, host_of(run.config()), progress, snapshot=parsed.snapshot, steps=parsed.steps,
                                    learning_rate=parsed.learning_rate))


def publish(parsed: argparse.Namespace, progress: Progress) -> None:
    run = run_of(parsed)
    require_where_it_began(run, "publish")
    config = run.config()
    changes = {name: given(parsed, name, getattr(config, name)) for name in _PUBLISH_OPTIONS}
    config = replace(config, **changes).validate()
    host = host_of(config)
    snapshot = expanded(parsed.snapshot) if parsed.snapshot else None
    if snapshot and len(snapshot.parts) == 1:
        snapshot = snapshot_folder(run, parsed.snapshot)
    kept = publishable_snapshots(run)
    if kept and not snapshot and not recipe.is_publishable(run.diffusers_dir):
        raise ResumeError(f"{run.path.name} is to be published", "it has no finished model yet",
                          f"Publish one of its snapshots: --snapshot {kept[-1]}. Or finish it first: "
                          + resume_command(run.path.name, str(run.path.parent)))
    paths = recipe.publish(run, progress, snapshot=snapshot, name=parsed.name, config=config)
    host.select(paths[0])
    files = [str(path) for path in paths]
    say(parsed, f"{'Written' if config.lora_rank else 'Selected'}: {', '.join(files)}", published=files)


def runs(parsed: argparse.Namespace, progress: Progress) -> None:
    rows = [run.described() for run in list_runs(expanded(parsed.runs_dir))]
    if parsed.json:
        for row in rows:
            print(json.dumps(row))
        return
    if not rows:
        print(f"There are no runs in {parsed.runs_dir}.")
    for row in rows:
        message = row["message"].partition("\n")[0]
        print(f"{row['name']:<24} {row['state']:<12} step {row['step']} of {row['steps']}, "
              f"{gib(row['size_bytes'])}, {', '.join(row['prompts'])} {message}".rstrip())


def demo(parsed: argparse.Namespace, progress: Progress) -> None:
    from ..demo import run_demo

    result = run_demo(expanded(parsed.out), progress, seed=parsed.seed, compare=not parsed.quick)
    say(parsed, result.table() + f"\nLook at {result.sheet} ({duration(result.seconds)})", **result.figures())


def _finished(parsed: argparse.Namespace, finished: recipe.Finished) -> None:
    if not finished.published:  # another process than the first: that one tells
        return
    files, config = [str(path) for path in finished.published], finished.run.config()
    is_selected = config.auto_select and not config.lora_rank
    say(parsed, f"Finished {counted(finished.steps, 'step')} in {duration(finished.seconds)}. "
        f"{'Selected' if is_selected else 'Written'}: {', '.join(files)}",
        run=str(finished.run.path), steps=finished.steps, seconds=round(finished.seconds, 1), published=files)


def _offer_resume(parsed: argparse.Namespace, name: str, learning_rate: float, phase: str) -> None:
    """From now on cli.py tells how to go on with the run, if it ends early."""
    if phase in WORKED_ON:
        parsed.resume_name, parsed.resume_rate = name, learning_rate


_PUBLISH_OPTIONS = ("publish_format", "publish_dtype", "models_dir", "vae")


def _declare_resume(parser: argparse.ArgumentParser) -> None:
    declare_run(parser)
    parser.add_argument("--snapshot", default="", metavar="NAME",
                        help="go back to it first, such as step-000200; what came after it is removed from the run")
    parser.add_argument("--steps", type=int, metavar="N", help="steps in all, if they are to be others than before")
    parser.add_argument("--learning-rate", type=float, metavar="RATE",
                        help="another one than before, such as a lower one where the loss became NaN")


def _declare_publish(parser: argparse.ArgumentParser) -> None:
    declare_run(parser)
    parser.add_argument("--snapshot", metavar="NAME", help="one of its snapshots, such as step-000200, instead of the result")
    parser.add_argument("--name", default="", help="file name without ending (default: the run's)")
    add_config_flags(parser, _PUBLISH_OPTIONS)


def _declare_runs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs-dir", default="runs", metavar="DIR", help="folder of the runs (default: runs)")


def _declare_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", default="demo", metavar="DIR", help="folder for everything (default: demo)")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--quick", action="store_true", help="without the comparison run that keeps no class")


COMMANDS: dict[str, Command] = {
    "train": (train, "Pictures in, a finished and selected model out.", declare_settings),
    "resume": (resume, "Continue a run: where it was interrupted, or from one of its snapshots.", _declare_resume),
    "publish": (publish, "Convert a run's result into model files.", _declare_publish),
    "runs": (runs, "List the runs there are.", _declare_runs),
    "demo": (demo, "Learn a new subject on the playground base and show what came of it.", _declare_demo),
}
