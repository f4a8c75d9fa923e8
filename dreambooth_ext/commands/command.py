"""What a command is, and how it tells its result."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..config import TrainConfig
from ..errors import ResumeError
from ..files import require_safe_name
from ..host import Host
from ..hosts.standalone import StandaloneHost
from ..progress import Progress
from ..run_folder import RunFolder

# What it does, one line of help, and the declaration of its flags.
Command = tuple[Callable[[argparse.Namespace, Progress], None], str, Callable[[argparse.ArgumentParser], None]]


def say(parsed: argparse.Namespace, text: str, **values: Any) -> None:
    """The command's result: a sentence for a person, an object for a program."""
    print(json.dumps(values) if parsed.json else text, flush=True)


def host_of(config: TrainConfig) -> Host:
    """Ourselves, with the folders of these settings."""
    models_dir, runs_dir = Path(config.models_dir).expanduser(), Path(config.runs_dir).expanduser()
    return StandaloneHost(models_dir, runs_dir, device=config.device, batch_size=config.class_batch_size)


def run_of(parsed: argparse.Namespace) -> RunFolder:
    """The run that is named, or whose folder is given. Raises ResumeError if there is none."""
    path = Path(parsed.run).expanduser()
    if len(path.parts) == 1:
        path = Path(parsed.runs_dir).expanduser() / require_safe_name(parsed.run, "the run's name")
    run = RunFolder(path)
    if not run.exists:
        raise ResumeError(f"{parsed.run} is to be opened", f"there is no such run in {path.parent}",
                          "`python -m dreambooth_ext runs` lists the runs there are.")
    return run
