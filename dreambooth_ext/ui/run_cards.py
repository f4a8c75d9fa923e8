"""The runs as cards, and above them what is running and what waits, with buttons to change the order."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ..errors import DreamboothError
from ..run_folder import RunFolder
from ..service import Service
from . import html

PICTURE_PX = 112
_KINDS = {"finished": "good", "failed": "fault", "interrupted": "warning"}


def runs_html(service: Service, chosen: str = "") -> str:
    """The queue, then a card for each run, newest first; `chosen` is marked."""
    rows = service.runs()
    queue = queue_html(service)
    if not rows:
        return queue + html.note("No run yet. The Train tab starts one; it is kept here with its snapshots and can be resumed.")
    cards = "".join(_card(service, row, row["name"] == chosen) for row in rows)
    return f'{queue}<div class="dreambooth-cards" role="group" aria-label="Runs">{cards}</div>'


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


def _card(service: Service, row: dict[str, Any], is_chosen: bool) -> str:
    name, state, message = html.escaped(row["name"]), html.escaped(row["state"]), str(row["message"])
    kind = _KINDS.get(row["state"], "note")
    first = html.escaped(message.partition("\n")[0])
    facts = [html.escaped(", ".join(row["prompts"])), f"on {html.escaped(row['base'])}" if row["base"] else "",
             f"{row['step']} of {row['steps']} steps &middot; {html.size(row['size_bytes'])} &middot; {_when(row['started_s'])}"]
    body = "".join(f"<span>{fact}</span>" for fact in facts if fact)
    if first:
        body += f'<small title="{html.escaped(message)}">{first}</small>'
    picture = _picture(service, row["name"]) or '<span class="dreambooth-no-picture" aria-hidden="true"></span>'
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
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else ""
