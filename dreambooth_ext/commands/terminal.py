"""Progress on a terminal: bars for a person, plain lines for a log, one JSON object a line for a program."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TextIO

from ..progress import Report
from ..words import duration

LINE_INTERVAL_S = 5.0  # between two plain lines of one phase
BYTES_FROM = 1_000_000  # so large a total is no count of steps or pictures


def listener(as_json: bool, stream: TextIO | None = None) -> Callable[[Report], None]:
    """The listener that suits where the output goes."""
    stream = stream or (sys.stdout if as_json else sys.stderr)
    tell = JsonLines(stream) if as_json else Bars(stream) if stream.isatty() else PlainLines(stream)

    def listen(report: Report) -> None:
        try:
            tell(report)
        except OSError:  # whoever read it has gone, a pipe or a terminal, or its disk is full; the work goes on
            silence(stream)

    return listen


def silence(stream: TextIO) -> None:
    """What is written from now on goes nowhere, and breaks nothing."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class JsonLines:
    """One object a line: phase, done, total, text, figures. Of bytes, which come by the thousand, one for each percent."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._told: tuple[str, str, str] | None = None

    def __call__(self, report: Report) -> None:
        if report.total >= BYTES_FROM:
            told = (report.phase, report.text, _count(report))
            if told == self._told:
                return
            self._told = told
        value: dict[str, Any] = {"phase": report.phase, "done": report.done, "total": report.total, "text": report.text}
        print(json.dumps({**value, **{"figures": dict(report.figures)}}), file=self._stream, flush=True)


class PlainLines:
    """A line at the start and end of a phase, and now and then between."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last_s = 0.0

    def __call__(self, report: Report) -> None:
        now = time.monotonic()
        at_an_end = report.done in (0, report.total)
        if report.phase == "log":
            print(report.text, file=self._stream, flush=True)
        elif at_an_end or now - self._last_s >= LINE_INTERVAL_S:
            words = [report.phase, _count(report), said(report)]
            if any(words[1:]):  # else it says only that something begins, which the next line does, too
                self._last_s = now
                print(" ".join(filter(None, words)), file=self._stream, flush=True)


class Bars:
    """A bar for each phase, with tqdm."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._phase, self._bar = "", None  # type: tuple[str, Any]

    def __call__(self, report: Report) -> None:
        from tqdm import tqdm

        if report.phase == "log":
            tqdm.write(report.text, file=self._stream)
            return
        if report.phase != self._phase or (self._bar is not None and report.total != self._bar.total):
            self.close()
            if not report.total:
                return
            self._phase = report.phase
            are_bytes = report.total >= BYTES_FROM
            self._bar = tqdm(total=report.total, desc=report.phase, file=self._stream, dynamic_ncols=True,
                             unit="B" if are_bytes else "it", unit_scale=are_bytes)
        if self._bar is not None:
            self._bar.set_postfix_str(said(report), refresh=False)
            self._bar.update(report.done - self._bar.n)
            if report.done >= report.total:
                self.close()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()
        self._bar, self._phase = None, ""


def _count(report: Report) -> str:
    if report.total < BYTES_FROM:
        return f"{report.done}/{report.total}" if report.total else ""
    return f"{100 * report.done // report.total} %"


def said(report: Report) -> str:
    """The report's text and figures in a few words."""
    words = [report.text] if report.text else []
    words += [_figure(name, value) for name, value in report.figures.items() if value is not None]
    return ", ".join(word for word in words if word)


def _figure(name: str, value: Any) -> str:
    if name in _FIGURES:
        return _FIGURES[name](value)
    name = name.replace("_", " ")
    return f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"


_FIGURES: dict[str, Callable[[Any], str]] = {
    "loss": lambda value: f"loss {value:.4f}",
    "steps_per_s": lambda value: f"{value:.2f} steps/s",
    "images_per_s": lambda value: f"{value:.1f} images/s",
    "seconds_left": lambda value: f"{duration(value)} left",
    "memory_gib": lambda value: f"{value:.1f} GiB",
}
