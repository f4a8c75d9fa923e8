"""First come, first served; not re-entrant; no timeout."""

import collections
import threading


class FIFOLock:
    def __init__(self):
        self._guard = threading.Lock()
        self._held = False
        self._line = collections.deque()

    def acquire(self, blocking=True):
        with self._guard:
            if not self._held:
                self._held = True
                return True
            if not blocking:
                return False
            turn = threading.Event()
            self._line.append(turn)
        turn.wait()
        return True

    def release(self):
        with self._guard:
            if self._line:
                self._line.popleft().set()
            else:
                self._held = False

    def __enter__(self):
        return self.acquire()

    def __exit__(self, *_):
        self.release()
