"""The computer's own file manager."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from .errors import StorageError


def open_folder(folder: Path) -> None:
    """Show a folder to whoever sits at this computer. Raises StorageError if there is no way to."""
    if not folder.is_dir():
        raise StorageError(f"{folder} is to be opened", "there is no such folder any more", "Look into the folder of all runs.")
    if sys.platform == "win32":
        try:
            os.startfile(folder)
        except OSError as error:
            raise _refused(folder, str(error.strerror or error)) from error
        return
    opener = shutil.which("open" if sys.platform == "darwin" else "xdg-open")
    if opener is None or (sys.platform != "darwin" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))):
        raise _refused(folder, "this computer has no file manager that could show it")
    try:
        subprocess.Popen([opener, str(folder)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                         start_new_session=True)
    except OSError as error:
        raise _refused(folder, str(error.strerror or error)) from error


def _refused(folder: Path, why: str) -> StorageError:
    return StorageError("The folder is to be opened", why, f"It is {folder}")
