"""Questions that take a while to answer, asked by a page that must not wait: answered in the background, and remembered."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

from .errors import Cancelled, DreamboothError, HostError
from .progress import Progress

PATIENCE_S = 0.08  # what is answered within it needs no second question; a page's handler has 0.2 s in all
ANSWERS_KEPT = 64


@dataclass
class Answer:
    """`value` is None until `ready`; then either it or `error` holds. `done` of `total` says how far it is."""

    topic: str
    find: Callable[[Progress], Any]
    value: Any = None
    error: Exception | None = None
    done: int = 0
    total: int = 0
    progress: Progress = field(default_factory=Progress)
    event: threading.Event = field(default_factory=threading.Event)

    @property
    def ready(self) -> bool:
        return self.event.is_set()

    def __post_init__(self) -> None:
        self.progress.listen(lambda report: self._note(report.done, report.total))

    def _note(self, done: int, total: int) -> None:
        self.done, self.total = done, total


class Lookups:
    """One worker thread, which ends when nothing is asked. Of one topic only the newest question is answered."""

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._answers: OrderedDict[tuple[str, Hashable], Answer] = OrderedDict()
        self._waiting: list[Answer] = []
        self._worker: threading.Thread | None = None

    def ask(self, topic: str, key: Hashable, find: Callable[[Progress], Any]) -> Answer:
        """The answer to a question, `ready` or on its way. `key` holds all that the answer depends on.

        A question of the same topic with another key is given up: the page no longer shows what it was asked for.
        """
        with self._lock:
            answer = self._answers.get((topic, key))
            if answer is None:
                answer = self._answers[topic, key] = Answer(topic, find)
                self._give_up(topic)
                self._waiting.append(answer)
                if self._worker is None:
                    self._worker = threading.Thread(target=self._work, name="dreambooth lookups", daemon=True)
                    self._worker.start()
            self._answers.move_to_end((topic, key))
            while len(self._answers) > ANSWERS_KEPT:
                self._answers.popitem(last=False)
        answer.event.wait(self._patience_s)
        return answer

    def _give_up(self, topic: str) -> None:
        self._waiting = [other for other in self._waiting if other.topic != topic]
        given_up = [key for key, other in self._answers.items() if key[0] == topic and not other.ready]
        for key in given_up[:-1]:  # the last one is the new question itself
            self._answers.pop(key).progress.cancel()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._worker = None
                    return
                answer = self._waiting.pop()  # the newest one first
            try:
                answer.value = answer.find(answer.progress)
            except Cancelled:
                continue
            except (DreamboothError, ImportError) as error:
                answer.error = error
            except Exception as error:  # noqa: BLE001  a sentence less, and no page that breaks
                answer.error = HostError("Something is to be looked up", f"{type(error).__name__}: {error}",
                                         "Try again; if it stays so, report it with this line.")
            answer.event.set()
