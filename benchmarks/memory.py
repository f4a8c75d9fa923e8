"""Anonymous memory of this process (Linux): what it cannot give back without writing it anywhere."""

from __future__ import annotations

import threading
from pathlib import Path


class AnonymousMemory:
    """Its peak inside the block, above what it was at the beginning, in bytes."""

    def __enter__(self) -> AnonymousMemory:
        self.before = self.peak = anonymous_bytes()
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.peak = max(self.peak, anonymous_bytes())

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._watcher.join()

    @property
    def added(self) -> int:
        return self.peak - self.before


def anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
