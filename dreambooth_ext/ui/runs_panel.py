"""All runs: resume, publish again, take the settings of one, delete."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from ..errors import DreamboothError
from ..report import explain_failure, write_report
from ..run_folder import RunFolder
from ..service import Service
from . import fields, html
from .compat import hidden, on
from .train_panel import TrainPanel
from .watch_panel import WatchPanel, status_html


def build(service: Service, form: TrainPanel, watch: WatchPanel) -> None:
    """Lay the list out and wire its buttons."""
    with gr.Row():
        names = _names(service)
        chosen = gr.Dropdown(label="Run", choices=names, value=names[0] if names else None, interactive=True,
                             elem_id="dreambooth_run")
        again = gr.Button("Refresh", elem_id="dreambooth_runs_refresh", scale=0, size="sm")
    with gr.Row(elem_classes=["dreambooth-buttons"]):
        resume = gr.Button("Resume", elem_id="dreambooth_resume")
        publish = gr.Button("Publish again", elem_id="dreambooth_publish")
        clone = gr.Button("Use its settings", elem_id="dreambooth_clone")
        report = gr.Button("Report", elem_id="dreambooth_report")
        explain = gr.Button("Explain this failure", elem_id="dreambooth_explain")
        delete = gr.Button("Delete ...", elem_id="dreambooth_delete", variant="stop")
    with gr.Row(visible=False, elem_id="dreambooth_confirm") as confirm:
        gr.HTML(value=html.note("Its snapshots, previews and log will be gone. Published models stay.", "warning"))
        really = gr.Button("Yes, delete it", elem_id="dreambooth_delete_yes", variant="stop")
        never = gr.Button("No", elem_id="dreambooth_delete_no")
    made = gr.File(label="Made for you", visible=False, interactive=False, elem_id="dreambooth_made")
    said = gr.HTML(value="", elem_id="dreambooth_runs_said", elem_classes=["dreambooth-said"])
    listed = gr.HTML(value=runs_html(service), elem_id="dreambooth_runs")
    poll = hidden(gr.Button, "dreambooth_runs_poll", value="refresh")

    def relist() -> list[Any]:
        return [gr.update(choices=_names(service)), runs_html(service)]

    for button in (again, poll):
        on(button.click, relist, [], [chosen, listed])
    on(resume.click, lambda name: _act(service, lambda: service.resume(name)), [chosen], [said, watch.status])
    on(publish.click, lambda name: _act(service, lambda: service.publish(name)), [chosen], [said, watch.status])
    on(clone.click, lambda name: _clone(service, form, name), [chosen], [*form.widgets.values(), said])
    on(report.click, lambda name: _file(service, name, _report), [chosen], [made, said])
    on(explain.click, lambda name: _file(service, name, _explanation), [chosen], [made, said])
    on(delete.click, lambda: gr.update(visible=True), [], [confirm])
    on(never.click, lambda: gr.update(visible=False), [], [confirm])
    on(really.click, lambda name: _delete(service, name), [chosen], [said, confirm, chosen, listed])


def runs_html(service: Service) -> str:
    """A table, newest first; the queue stands on top."""
    rows = [[html.escaped(row["name"]), _state(row), f"{row['step']} of {row['steps']}", html.escaped(row["base"]),
             html.escaped(", ".join(row["prompts"])), html.size(row["size_bytes"]), _when(row["started_s"])]
            for row in service.runs()]
    if not rows:
        return html.note("No run yet. The Train tab starts one; it is kept here with its snapshots and can be resumed.")
    return _queue(service) + html.table(("name", "state", "steps", "base", "prompt", "on disk", "started"), rows)


def _queue(service: Service) -> str:
    waiting = [job.name for job in service.jobs.all() if job.state == "queued"]
    return html.note("Waiting in this order: " + ", ".join(waiting)) if waiting else ""


def _state(row: dict[str, Any]) -> str:
    first = str(row["message"]).partition("\n")[0]
    return f'<span title="{html.escaped(row["message"])}">{html.escaped(row["state"])}</span>' + (
        f'<br><small>{html.escaped(first)}</small>' if first else "")


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else ""


def _names(service: Service) -> list[str]:
    return [row["name"] for row in service.runs()]


def _act(service: Service, start: Callable[[], Any]) -> list[str]:
    try:
        job = start()
    except DreamboothError as error:
        return [html.note(str(error), "fault"), status_html(service)]
    return [html.note(f"{job.name}: started; the Train tab shows how it goes.", "good"), status_html(service)]


def _file(service: Service, name: str, make: Callable[[RunFolder, Path], Path]) -> list[Any]:
    """A file of a run, copied to where gradio may serve it from, and what it is."""
    try:
        path = make(service.run(name), Path(tempfile.mkdtemp(prefix="dreambooth-")))
    except DreamboothError as error:
        return [gr.update(visible=False), html.note(str(error), "fault")]
    return [gr.update(value=str(path), visible=True), html.note(f"{path.name}: click on its size to save it.", "good")]


def _report(run: RunFolder, folder: Path) -> Path:
    return Path(shutil.copy(write_report(run), folder / f"{run.path.name}-report.html"))


def _explanation(run: RunFolder, folder: Path) -> Path:
    """Paths and prompts are left out, so that it can be shown to others."""
    return explain_failure(run, folder / f"{run.path.name}-failure.zip")


def _delete(service: Service, name: str) -> list[Any]:
    try:
        service.delete(name)
        said = html.note(f"{name} is deleted.", "good")
    except DreamboothError as error:
        said = html.note(str(error), "fault")
    names = _names(service)
    return [said, gr.update(visible=False), gr.update(choices=names, value=names[0] if names else None),
            runs_html(service)]


def _clone(service: Service, form: TrainPanel, name: str) -> list[Any]:
    try:
        config = service.run(name).config()
    except DreamboothError as error:
        return [*(gr.update() for _ in form.widgets), html.note(str(error), "fault")]
    options = fields.all_options()
    values = []
    for field_name in form.widgets:
        owner: Any = config.concepts[0] if config.concepts and hasattr(config.concepts[0], field_name) else config
        value = getattr(owner, field_name)
        if field_name == "base":
            value = next((c.title for c in service.host.checkpoints() if str(c.path) == value), value)
        if field_name == "output_name":
            value = free_name(service, name)
        values.append(fields.shown(options[field_name], value))
    return [*values, html.note(f"The Train tab has {name}'s settings now.", "good")]


def free_name(service: Service, name: str) -> str:
    """name-2, name-3, ...: the first that no run has."""
    taken = set(_names(service))
    return next(f"{name}-{number}" for number in range(2, 10_000) if f"{name}-{number}" not in taken)
