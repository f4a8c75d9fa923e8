"""Folders for files that are made to be downloaded: whoever sends one says when it starts, and nobody when it is through."""

from __future__ import annotations

import tempfile
import threading
from collections import deque
from pathlib import Path


class Outbox:
    """New folders of the system's temporary one, from which every gradio may serve; the newest `kept` stay, none after exit."""

    def __init__(self, kept: int = 8) -> None:
        self._kept, self._lock = kept, threading.Lock()
        self._folders: deque[tempfile.TemporaryDirectory[str]] = deque()

    def folder(self) -> Path:
        """An empty folder. The one that was asked for `kept` times ago is removed."""
        with self._lock:
            self._folders.append(tempfile.TemporaryDirectory(prefix="dreambooth-", ignore_cleanup_errors=True))
            while len(self._folders) > self._kept:
                self._folders.popleft().cleanup()
            return Path(self._folders[-1].name)


OUTBOX = Outbox()
