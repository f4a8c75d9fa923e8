"""What a command is, and how it tells its result."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from ..progress import Progress

# What it does, one line of help, and the declaration of its flags.
Command = tuple[Callable[[argparse.Namespace, Progress], None], str, Callable[[argparse.ArgumentParser], None]]


def say(parsed: argparse.Namespace, text: str, **values: Any) -> None:
    """The command's result: a sentence for a person, an object for a program."""
    print(json.dumps(values) if parsed.json else text, flush=True)
