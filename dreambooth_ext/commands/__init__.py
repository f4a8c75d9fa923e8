"""What each command of the command line does: read its flags, call the recipe, say what came of it."""

from . import memory, models, pictures, runs, webui
from .command import Command

COMMANDS: dict[str, Command] = {
    **runs.COMMANDS, **pictures.COMMANDS, **models.COMMANDS, **memory.COMMANDS, **webui.COMMANDS,
}
