"""Questions that take a while to answer, asked by a page that must not wait: answered in the background, and remembered."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

from .errors import Cancelled, DreamboothError, HostError
from .progress import Progress

PATIENCE_S = 0.03  # what is answered within it needs no second question; a page's handler asks for several, and has 0.2 s in all
ANSWERS_KEPT = 64


@dataclass
class Answer:
    """`value` is None until `ready`; then either it or `error` holds. `done` of `total` says how far it is."""

    topic: str
    find: Callable[[Progress], Any]
    value: Any = None
    error: Exception | None = None
    broke: bool = False  # by a mistake, and not by what was asked about: the next question tries again
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
    """One worker thread a lane, which ends when nothing is asked. Of one topic only the newest question is answered."""

    def __init__(self, patience_s: float = PATIENCE_S, kept: int = ANSWERS_KEPT) -> None:
        self._patience_s, self._kept = patience_s, kept
        self._lock = threading.Lock()
        self._answers: OrderedDict[tuple[str, Hashable], Answer] = OrderedDict()
        self._waiting: dict[str, list[Answer]] = {}
        self._working: set[str] = set()  # lanes

    def ask(self, topic: str, key: Hashable, find: Callable[[Progress], Any], *, lane: str = "quick",
            patient: bool = True) -> Answer:
        """The answer to a question, `ready` or on its way. `key` holds all that the answer depends on.

        A question of the same topic with another key is given up: the page no longer shows what it was asked for.
        What takes much longer than others has a `lane` of its own; who asks for several things is not `patient` with each.
        """
        with self._lock:
            answer = self._answers.get((topic, key))
            if answer is None or answer.broke:
                answer = self._answers[topic, key] = Answer(topic, find)
                self._give_up(topic, answer, self._waiting.setdefault(lane, []))
                if lane not in self._working:
                    self._working.add(lane)
                    threading.Thread(target=self._work, args=[lane], name=f"dreambooth {lane} lookups", daemon=True).start()
            self._answers.move_to_end((topic, key))
            while len(self._answers) > self._kept:
                self._answers.popitem(last=False)
        if patient:
            answer.event.wait(self._patience_s)
        return answer

    def _give_up(self, topic: str, new: Answer, waiting: list[Answer]) -> None:
        """Whatever else of the topic is not answered yet."""
        waiting[:] = [*(other for other in waiting if other.topic != topic), new]
        for key, other in list(self._answers.items()):
            if key[0] == topic and other is not new and not other.ready:
                self._answers.pop(key).progress.cancel()

    def _work(self, lane: str) -> None:
        while True:
            with self._lock:
                if not self._waiting[lane]:
                    self._working.discard(lane)
                    return
                answer = self._waiting[lane].pop()  # the newest one first
            try:
                answer.value = answer.find(answer.progress)
            except Cancelled:
                continue
            except (DreamboothError, ImportError) as error:
                answer.error = error
            except Exception as error:  # noqa: BLE001  a sentence less, and no page that breaks
                answer.broke = True
                answer.error = HostError("Something is to be looked up", f"{type(error).__name__}: {error}",
                                         "Try again; if it stays so, report it with this line.")
            answer.event.set()
