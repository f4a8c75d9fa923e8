"""What each command of the command line does: read its flags, call the recipe, say what came of it."""

from . import memory, models, runs, webui
from .command import Command

COMMANDS: dict[str, Command] = {**runs.COMMANDS, **models.COMMANDS, **memory.COMMANDS, **webui.COMMANDS}
