"""What each command of the command line does: read its flags, call the recipe, say what came of it."""

from . import memory, runs
from .command import Command

COMMANDS: dict[str, Command] = {**runs.COMMANDS, **memory.COMMANDS}
