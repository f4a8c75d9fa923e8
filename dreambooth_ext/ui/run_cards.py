"""The runs as cards, and above them what is running and what waits, with buttons to change the order."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import gradio as gr

from ..errors import DreamboothError
from ..files import gib, size_of
from ..run_folder import RunFolder
from ..service import Service
from . import html
from .compat import on

PICTURE_PX = 112
PATIENCE_S, AT_ONCE_S = 0.05, 0.001
LAST_KEPT = 2048  # pictures and sizes; a picture has some KB
PENDING = '<span class="dreambooth-pending"></span>'  # the page's script asks again
_KINDS = {"finished": "good", "failed": "fault", "interrupted": "warning"}


def run_list(service: Service, chosen: str | None) -> Any:
    """A list of runs, brought up to date. What is chosen is left to the page, where it may be another one by now; only one
    that is gone gives way to the newest.
    """
    return following(service, chosen, None)[0]


def following(service: Service, chosen: str | None, newest: str | None) -> tuple[Any, str, str | None]:
    """The list, what is chosen in it, and the newest run, which stands chosen until a person chooses another one.

    `newest`: the one of the last time. If it is chosen still, a run that has come since takes its place: who goes to Choose
    after training is to find what was trained, and not the run before.
    """
    names = service.run_names()
    now = next(iter(names), None)
    if chosen in names and chosen not in (newest, now):
        return gr.update(choices=names), chosen or "", newest
    return gr.update(choices=names, **({} if chosen == now and now else {"value": now})), now or "", now


def follow(answered: Any, proposed: Any, chosen: Any) -> None:
    """Choose what `proposal` says, by the page itself: whoever has chosen another run since it asked keeps that one."""
    on(answered.then, None, [proposed, chosen], [chosen],
       js="(proposed, chosen) => window.dreamboothPage.fill(proposed, '', chosen || '', chosen)")


def proposal(service: Service, chosen: str | None, newest: str | None) -> tuple[Any, str, str, str | None]:
    """As `following`, but the list leaves what is chosen alone, and the second says what is to be chosen instead.

    Without any run there is nothing to choose: the list is emptied, as gradio 6 refuses whatever is sent with a run that is gone.
    """
    listed, name, newest = following(service, chosen, newest)
    if not name:
        return listed, "", name, newest
    said = {"folder": "", "name": chosen or "", "values": [listed.pop("value", None)]}
    return listed, json.dumps(said), name, newest


def runs_html(service: Service, chosen: str = "", patience_s: float = PATIENCE_S) -> str:
    """The queue, then a card for each run, newest first; `chosen` is marked, until the page's script looks what is chosen now.

    Pictures and sizes that take longer than `patience_s` in all are left for when the page asks again.
    """
    runs = service.run_folders()
    queue = queue_html(service)
    if not runs:
        return queue + html.note("No run yet. The Train tab starts one; it is kept here with its snapshots and can be resumed.")
    slow, cards = _Slow(patience_s), ""
    for run in runs:
        row = run.summary()
        picture, _ = slow.of(run, _picture, service, row["name"])
        size, is_of_now = slow.of(run, _size, run.path, _mark(run))
        cards += _card(row, picture, size if is_of_now else size + PENDING, row["name"] == chosen)
    return f'{queue}<div class="dreambooth-cards" role="group" aria-label="Runs">{cards}</div>'


class _Slow:
    """Things that take long the first time, made while there is time left; what was made before does not count."""

    _last: ClassVar[dict[tuple[str, Path], str]] = {}

    def __init__(self, seconds: float) -> None:
        self._left_s = seconds

    def of(self, run: RunFolder, make: Callable[..., str], *given: Any) -> tuple[str, bool]:
        """What was made, and True; without time for it what was made of this run the last time, "" if nothing was, and False.

        On a busy machine nothing is quick: cards that were there must not become empty each time that the list is drawn.
        """
        key = (make.__name__, run.path)
        if self._left_s <= 0:
            return self._last.get(key, ""), False
        started = time.perf_counter()
        made = make(*given)
        took_s = time.perf_counter() - started
        self._left_s -= took_s if took_s > AT_ONCE_S else 0.0
        if len(self._last) >= LAST_KEPT:
            self._last.clear()
        self._last[key] = made
        return made, True


@lru_cache(maxsize=1024)
def _size(path: Path, mark: tuple[int, ...]) -> str:
    return gib(size_of(path))


def _mark(run: RunFolder) -> tuple[int, ...]:
    """Changes with all that makes a run much larger or smaller."""
    times = []
    for path in (run.path, run.path / "state.json", run.checkpoints_dir, run.previews_dir):
        with suppress(OSError):
            times.append(path.stat().st_mtime_ns)
    return tuple(times)


def queue_html(service: Service) -> str:
    """What is running and what waits, in order; empty if nothing does."""
    jobs = service.jobs.all()
    waiting = [job for job in jobs if job.state == "queued"]
    running = next((job for job in jobs if job.state == "running"), None)
    if not waiting:
        return ""
    lines = [f"<li><b>{html.escaped(running.name)}</b> is being worked on</li>"] if running else []
    for number, job in enumerate(waiting):
        name = html.escaped(job.name)
        buttons = [_act("&uarr;", f"up:{job.id}", f"{name} one place sooner", number == 0),
                   _act("&darr;", f"down:{job.id}", f"{name} one place later", number == len(waiting) - 1),
                   _act("&times;", f"out:{job.id}", f"take {name} out of the queue")]
        lines.append(f"<li>{name} <span>{''.join(buttons)}</span></li>")
    return f'<ol class="dreambooth-queue" aria-label="Queue">{"".join(lines)}</ol>'


def _act(text: str, wish: str, label: str, disabled: bool = False) -> str:
    off = " disabled" if disabled else ""
    return (f'<button class="dreambooth-act" data-into="dreambooth_runs_wish" data-then="dreambooth_runs_act" '
            f'data-value="{html.escaped(wish)}" aria-label="{label}" title="{label}"{off}>{text}</button>')


def _card(row: dict[str, Any], picture: str, size: str, is_chosen: bool) -> str:
    """`picture` is empty while there was no time for it."""
    name, state, message = html.escaped(row["name"]), html.escaped(row["state"]), str(row["message"])
    kind = _KINDS.get(row["state"], "note")
    first = html.escaped(message.partition("\n")[0])
    facts = [html.escaped(", ".join(row["prompts"])), f"on {html.escaped(row['base'])}" if row["base"] else "",
             f"{row['step']} of {row['steps']} steps &middot; {size} &middot; {_when(row['started_s'])}"]
    body = "".join(f"<span>{fact}</span>" for fact in facts if fact)
    if first:
        body += f'<small title="{html.escaped(message)}">{first}</small>'
    picture = picture or '<span class="dreambooth-no-picture" aria-hidden="true"></span>'
    return (f'<button class="dreambooth-act dreambooth-card" data-into="dreambooth_runs_wish" data-then="dreambooth_runs_act" '
            f'data-value="pick:{name}" aria-pressed="{"true" if is_chosen else "false"}">{picture}'
            f'<span class="dreambooth-card-text"><b>{name}</b> <em class="dreambooth-{kind}">{state}</em>{body}</span></button>')


def _picture(service: Service, name: str) -> str:
    """The latest preview of the first prompt, else a picture that it learns from."""
    try:
        run = service.run(name)
    except DreamboothError:
        return ""
    for paths in (_previews(run), run.prepared()[:1]):
        shown = html.picture(paths[-1], f"picture of {name}", PICTURE_PX) if paths else ""
        if shown:
            return shown
    return ""


def _previews(run: RunFolder) -> list[Path]:
    return [path for path in run.previews() if path.stem.endswith("-0")]


def _when(seconds: float) -> str:
    return time.strftime("<time>%Y-%m-%d %H:%M</time>", time.localtime(seconds)) if seconds else ""
