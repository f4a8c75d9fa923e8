"""What each command of the command line does: read its flags, call the recipe, say what came of it."""

from . import care, memory, models, pictures, runs, settings, webui
from .command import Command

COMMANDS: dict[str, Command] = {
    **runs.COMMANDS, **care.COMMANDS, **settings.COMMANDS,
    **pictures.COMMANDS, **models.COMMANDS, **memory.COMMANDS, **webui.COMMANDS,
}
