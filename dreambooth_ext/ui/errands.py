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
        self._errands: list[tuple[str, Callable[..., list[Any]], Sequence[Any]]] = []
        self._said = said
        self._doing = gr.HTML(value="", elem_id=doing_id, elem_classes=["dreambooth-said"])
        # Each page's own, changed in place: an answer that is under way sees there whether it is still the one that is wanted.
        self._page = gr.State({})
        self._outputs = [*outputs, said, self._doing]
        on_script(hidden(gr.Button, poll_id, value="errand"), self._answer, [self._page], self._outputs)

    def on(self, event: Any, doing: str, make: Callable[..., list[Any]], inputs: Sequence[Any], changes: Sequence[Any]) -> None:
        """`make`, given what the inputs hold, returns the values of those outputs that it `changes`."""
        number = len(self._errands)
        self._errands.append((doing, make, changes))
        on(event, lambda page, *raw: self._begin(page, number, *raw), [self._page, *inputs], self._outputs)

    def _begin(self, page: dict[str, Any], number: int, *raw: Any) -> dict[Any, Any]:
        page["wish"] = [number, time.time_ns(), *raw]
        return self._answer(page)

    def _answer(self, page: dict[str, Any]) -> dict[Any, Any]:
        wish = page.get("wish")
        if not wish:
            return {self._doing: ""}
        number, _, *raw = wish
        doing, make, changes = self._errands[number]
        answer = self._lookups.ask(repr(wish), None, lambda progress: make(*raw), lane=doing)
        if page.get("wish") is not wish:  # another run's, perhaps, and its own answer is on its way
            return {self._doing: gr.update()}
        if not answer.ready:
            return {self._doing: html.pending(doing)}
        page["wish"] = None
        if answer.error is not None:
            return {self._said: html.note(str(answer.error), "fault"), self._doing: ""}
        return {**dict(zip(changes, answer.value, strict=True)), self._doing: ""}
