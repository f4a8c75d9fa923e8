"""What each command of the command line does: read its flags, call the recipe, say what came of it."""

from . import captions, care, class_images, memory, models, pictures, render, runs, settings, webui
from .command import Command

COMMANDS: dict[str, Command] = {
    **runs.COMMANDS, **care.COMMANDS, **settings.COMMANDS,
    **pictures.COMMANDS, **captions.COMMANDS, **class_images.COMMANDS, **render.COMMANDS, **models.COMMANDS, **memory.COMMANDS,
    **webui.COMMANDS,
}
