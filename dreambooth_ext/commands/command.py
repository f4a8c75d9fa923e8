"""What a command is, how it reads what it is about (settings, a run), and how it tells its result."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import presets
from ..config import TrainConfig
from ..errors import ConfigError, ResumeError
from ..files import expanded, require_safe_name
from ..host import Host
from ..hosts.standalone import StandaloneHost
from ..progress import Progress
from ..run_folder import RunFolder
from .flags import add_all_config_flags, config_from_flags, given

# What it does, one line of help, and the declaration of its flags.
Command = tuple[Callable[[argparse.Namespace, Progress], None], str, Callable[[argparse.ArgumentParser], None]]


def say(parsed: argparse.Namespace, text: str, **values: Any) -> None:
    """The command's result: a sentence for a person, an object for a program."""
    print(json.dumps(values) if parsed.json else text, flush=True)


def show_object(parsed: argparse.Namespace, value: Any) -> None:
    """An object that is the result by itself: on one line for a program, on several for a person, or for a file."""
    print(json.dumps(value, indent=None if parsed.json else 2), flush=True)


def declare_settings(parser: argparse.ArgumentParser) -> None:
    """The flags of `settings_of`, all of them."""
    parser.usage = "%(prog)s --base FILE --instance-dir DIR --token TEXT --class-noun TEXT --output-name TEXT [any flag below]"
    declare_origin(parser)
    add_all_config_flags(parser)


def declare_origin(parser: argparse.ArgumentParser) -> None:
    """Those flags of `settings_of` that name where settings come from."""
    parser.add_argument("--preset", metavar="NAME", help="start from this preset; `presets` lists them")
    parser.add_argument("--config", metavar="FILE", help="settings as JSON; flags override them")


def settings_of(parsed: argparse.Namespace) -> TrainConfig:
    """Settings of a preset or a file, if one is named, overridden by flags. Raises ConfigError, UnsafePath."""
    if not parsed.preset:
        return config_from_flags(parsed)
    if parsed.config:
        raise ConfigError(["--preset: --config is given as well"], "Give one of the two, and the rest as flags.")
    runs_dir = given(parsed, "runs_dir", TrainConfig().runs_dir)
    return config_from_flags(parsed, presets.load(parsed.preset, presets_dir(runs_dir)))


def presets_dir(runs_dir: str) -> Path:
    """Where the tab keeps them, too."""
    return expanded(runs_dir) / "presets"


def declare_run(parser: argparse.ArgumentParser) -> None:
    """The flags of `run_of`."""
    parser.add_argument("run", help="name of the run, or its folder")
    parser.add_argument("--runs-dir", default="runs", metavar="DIR", help="folder of the runs (default: runs)")


def host_of(config: TrainConfig) -> Host:
    """Ourselves, with the folders of these settings."""
    models_dir, runs_dir = expanded(config.models_dir), expanded(config.runs_dir)
    return StandaloneHost(models_dir, runs_dir, device=config.device, batch_size=config.class_batch_size)


def run_of(parsed: argparse.Namespace) -> RunFolder:
    """The run that is named, or whose folder is given. Raises ResumeError if there is none."""
    path = expanded(parsed.run)
    if len(path.parts) == 1:
        path = expanded(parsed.runs_dir) / require_safe_name(parsed.run, "the run's name")
    run = RunFolder(path)
    if not run.exists:
        raise ResumeError(f"{parsed.run} is to be opened", f"there is no such run in {path.parent}",
                          "`python -m dreambooth_ext runs` lists the runs there are.")
    return run


def require_where_it_began(run: RunFolder, command: str) -> None:
    """Raise ResumeError where a run's paths hold in the folder that it was begun in and not in this one, naming that folder.

    What was given without a leading slash would be missing, or the model written to another models folder than before.
    """
    config, here = TrainConfig.read(run.path / "config.json").require_usable(), Path.cwd()  # as they were given
    within, above = Path(config.runs_dir).parts, run.path.absolute().parent.parts
    if expanded(config.runs_dir).is_absolute() or above[len(above) - len(within):] != within:
        return  # it does not tell where that was
    began = Path(*above[:len(above) - len(within)])
    given_paths = (config.base, config.vae, config.models_dir, *(each.instance_dir for each in config.concepts))
    paths = [expanded(path) for path in given_paths if path]
    elsewhere = next((path for path in paths if not os.path.exists(here / path) and os.path.exists(began / path)), None)
    if elsewhere is not None:
        raise ResumeError(f"{command} {run.path.name} is asked in {here}",
                          f"its {elsewhere} is in {began}, where the run was begun, and not here",
                          f'Do it there: cd "{began}", then {command} {run.path.name}')
