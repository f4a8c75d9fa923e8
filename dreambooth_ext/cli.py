"""The command line: python -m dreambooth_ext COMMAND. Exit 0 done, 2 bad input, 1 failed later, 130 interrupted."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from difflib import get_close_matches
from typing import Any, NoReturn

from . import __version__
from .commands import COMMANDS
from .commands.examples import PROGRAM, examples_of
from .commands.flags import like
from .commands.terminal import listener, silence
from .errors import Cancelled, CheckpointError, ConfigError, Diverged, DreamboothError, PictureError, ResumeError, StorageError
from .files import unforeseen
from .progress import Progress
from .run_folder import WORKED_ON, resume_command
from .signals import Interrupter, heard
from .words import half_of

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
BAD_INPUT_ERRORS = (ConfigError, PictureError, CheckpointError, ResumeError, StorageError)


def run(arguments: Sequence[str]) -> int:
    """Run one command; the return value is the process's exit code."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if isinstance(sys.stdout, io.TextIOWrapper):  # a pipe on Windows knows one alphabet, and names may be of another
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        parsed = _parsed(arguments)
    except _Misused as caught:
        _tell(str(caught))
        if "--json" in arguments and not _follows():
            _answer(error=str(caught), faults=[str(caught)])
        return BAD_INPUT
    progress = Progress(*([] if _follows() else [listener(parsed.json)]))
    phases: set[str] = set()  # that the work has come to
    progress.listen(lambda report: phases.add(report.phase))
    try:
        with heard(Interrupter(progress)):
            parsed.command(parsed, progress)
    except (Cancelled, KeyboardInterrupt):
        if not _follows():
            stopped = "Stopped. What was finished is kept." + _how_to_resume(parsed)
            _tell(stopped)
            if parsed.json:
                _answer(stopped=stopped)
        return INTERRUPTED
    except BrokenPipeError:  # what was asked for is done, and nobody reads on
        silence(sys.stdout)
    except (DreamboothError, OSError) as caught:
        told, has_begun = caught if isinstance(caught, DreamboothError) else unforeseen(caught), bool(phases & _WORK_PHASES)
        _tell(str(told) + (_how_to_resume(parsed, slower=isinstance(told, Diverged)) if has_begun else ""))
        if parsed.json and not _follows():
            _answer(error=str(told), faults=list(told.faults))  # as the HTTP API does
        return BAD_INPUT if isinstance(told, BAD_INPUT_ERRORS) and not has_begun else FAILED
    return DONE


_WORK_PHASES = {*WORKED_ON, "rendering", "comparing"}


def _follows() -> bool:
    """True in all processes of `accelerate launch` but the first, which speaks for them."""
    return os.environ.get("RANK", "0") != "0"


def _tell(text: str) -> None:
    with suppress(OSError):  # of a terminal that was closed
        print(text, file=sys.stderr, flush=True)


def _answer(**values: Any) -> None:
    """The last line of --json, where the command could not give it."""
    with suppress(OSError):
        print(json.dumps(values), flush=True)


def _how_to_resume(parsed: argparse.Namespace, slower: bool = False) -> str:
    name = getattr(parsed, "resume_name", None)
    if not name:
        return ""
    rate = half_of(parsed.resume_rate) if slower else ""
    return f"\nGo on with: {resume_command(name, getattr(parsed, 'runs_dir', ''), rate)}"


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """Refuses what no command knows, naming what may be meant."""
    top = parser()
    if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        meant = _is_meant(get_close_matches(arguments[0], COMMANDS, 1))
        raise _Misused(f"There is no command {arguments[0]}.{meant} `{top.prog} --help` lists all.")
    parsed, unknown = top.parse_known_args(arguments)
    if unknown:
        flags = [flag for flag in unknown if flag.startswith("--")]
        meant = _is_meant([found for flag in flags for found in like(flag, parsed.flags)])
        what = f"there is no {' '.join(unknown)}" if flags else f"nothing can be done with {' '.join(unknown)}"
        raise _Misused(f"{parsed.command_name}: {what}.{meant} `{top.prog} {parsed.command_name} --help` lists all.")
    return parsed


def _is_meant(found: Sequence[str]) -> str:
    return f" Is {', '.join(found)} meant?" if found else ""


class _Misused(Exception):
    """Flags or commands that there are none of, or without what they need."""


class _Parser(argparse.ArgumentParser):
    """What it refuses, it hands over: where --json was asked for, the answer is an object as well."""

    def error(self, message: str) -> NoReturn:
        raise _Misused(f"{self.format_usage()}{self.prog}: error: {message}")


class _Help(argparse.HelpFormatter):
    """Examples stay on their lines, to be copied."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith("example") else super()._fill_text(text, width, indent)


def parser() -> argparse.ArgumentParser:
    """All commands with all their flags."""
    top = _Parser(prog=PROGRAM, description="Teach Stable Diffusion a new subject or style.",
                  epilog=f"`{PROGRAM} COMMAND --help` tells its flags, with examples.")
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(dest="command_name", required=True, metavar="COMMAND")
    for name, (command, help_text, declare) in COMMANDS.items():
        sub = commands.add_parser(name, help=help_text, description=help_text, epilog=examples_of(name), formatter_class=_Help)
        sub.add_argument("--json", action="store_true", help="print one JSON object a line")
        declare(sub)
        sub.set_defaults(command=command, flags=list(sub._option_string_actions))
    return top
