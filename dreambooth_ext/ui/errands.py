"""What buttons ask for and takes longer than a page may wait: done in the background; the page asks until it is there."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from ..lookups import Lookups
from . import html
from .compat import hidden, on, on_script

PATIENCE_S = 0.1  # what is done by then is shown at once
KEPT = 8  # answers; a report has a megabyte


class Errands:
    """One at a time for each page. The page's script clicks the button `poll_id` while a sentence says what is being done."""

    def __init__(self, doing_id: str, poll_id: str, said: Any, outputs: Sequence[Any]) -> None:
        self._lookups = Lookups(PATIENCE_S, KEPT)
        self._makes: list[tuple[str, Callable[..., dict[Any, Any]]]] = []
        self._said = said
        self._doing = gr.HTML(value="", elem_id=doing_id, elem_classes=["dreambooth-said"])
        self._wish = gr.State(None)
        self._outputs = [*outputs, said, self._doing, self._wish]
        on_script(hidden(gr.Button, poll_id, value="errand"), self._answer, [self._wish], self._outputs)

    def on(self, event: Any, doing: str, make: Callable[..., dict[Any, Any]], inputs: Sequence[Any]) -> None:
        """`make`, given what the inputs hold, returns the values of those outputs that it changes."""
        number = len(self._makes)
        self._makes.append((doing, make))
        on(event, lambda *raw: self._answer([number, time.time_ns(), *raw]), inputs, self._outputs)

    def _answer(self, wish: list[Any] | None) -> dict[Any, Any]:
        if not wish:
            return {self._doing: ""}
        number, _, *raw = wish
        doing, make = self._makes[number]
        answer = self._lookups.ask(repr(wish), None, lambda progress: make(*raw), lane=doing)
        if not answer.ready:
            return {self._doing: html.pending(doing), self._wish: wish}
        found = answer.value if answer.error is None else {self._said: html.note(str(answer.error), "fault")}
        return {**found, self._doing: "", self._wish: None}
