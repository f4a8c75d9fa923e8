"""Which snapshot is the best one: the same prompts and seeds by base and snapshots, measured; one click publishes one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from ..comparison import Wishes, read_comparison, step_of_snapshot
from ..errors import DreamboothError
from ..lookups import Lookups
from ..options import options_of
from ..run_folder import RunFolder
from ..service import Service
from . import fields, html
from .compare_grid import grid_html, is_comparing, mark_of
from .compat import hidden, on, on_script
from .run_cards import follow, proposal
from .watch_panel import WatchPanel, status_html

PATIENCE_S, KEPT = 0.1, 8  # a grid that is drawn by then comes at once; one has some megabytes
DRAWING = "Drawing the pictures"
WISHES = {option.name: option for option in options_of(Wishes)}


def build(service: Service, watch: WatchPanel) -> None:
    """Lay the grid out and wire its buttons. The page's script asks for the runs and the grid, as in Runs."""
    with gr.Row():
        chosen = gr.Dropdown(label="Run", choices=[], interactive=True, elem_id="dreambooth_choose_run")
        again = gr.Button("Refresh", elem_id="dreambooth_choose_refresh", scale=0, size="sm")
    wishes, compare, stop = _wishes()
    said = gr.HTML(value="", elem_id="dreambooth_choose_said", elem_classes=["dreambooth-said"])
    drawing = gr.HTML(value="", elem_id="dreambooth_choose_drawing", elem_classes=["dreambooth-said"])
    grid = gr.HTML(value=html.note("Looking at the runs ..."), elem_id="dreambooth_choose_grid")
    with gr.Row():
        snapshot = gr.Dropdown(label="Snapshot", choices=[], interactive=True, elem_id="dreambooth_choose_snapshot")
        publish = gr.Button("Publish" if service.host.name == "standalone" else "Publish and open in txt2img",
                            variant="primary", elem_id="dreambooth_choose_publish")
        back = gr.Button("Go on training from here ...", elem_id="dreambooth_choose_back")
    with gr.Group(visible=False, elem_id="dreambooth_back_confirm") as confirm:
        gr.HTML(value=html.note("What came after this snapshot will be gone from the run: later snapshots, previews and "
                                "figures. Published models stay.", "warning"))
        with gr.Row(elem_classes=["dreambooth-asked"]):
            steps = gr.Textbox(label="Steps in all", info="Empty: as many as the run was to have.", max_lines=1,
                               elem_id="dreambooth_back_steps")
            rate = gr.Textbox(label="Learning rate from here", info="Empty: as it was. After NaN, a lower one.", max_lines=1,
                              elem_id="dreambooth_back_rate")
            really = gr.Button("Yes, go back and train on", elem_id="dreambooth_back_yes", variant="stop")
            never = gr.Button("No", elem_id="dreambooth_back_no")
    cell = hidden(gr.Textbox, "dreambooth_choose_cell", label="chosen snapshot")
    act, poll = (hidden(gr.Button, f"dreambooth_choose_{name}", value=name) for name in ("act", "poll"))
    # What the page shows is kept by the page itself: an answer that comes late may have put the run before there again.
    seen, newest = hidden(gr.Textbox, "dreambooth_choose_seen", label="what is shown"), gr.State(None)
    shown, drawings = [grid, drawing, snapshot, seen], Lookups(PATIENCE_S, KEPT)

    proposed = hidden(gr.Textbox, "dreambooth_choose_proposed", label="run to be shown")
    follow(on_script(again, lambda name, newest, seen, which: _refreshed(service, drawings, name, newest, seen, which),
                     [chosen, newest, seen, snapshot], [chosen, proposed, newest, *shown]), proposed, chosen)
    on(chosen.change, lambda name, seen, which: _shown(service, drawings, name, seen, which), [chosen, seen, snapshot], shown)
    on_script(poll, lambda name, seen, which: [*_shown(service, drawings, name or _first(service), seen, which),
                                               _news(service, name or _first(service))],
              [chosen, seen, snapshot], [*shown, said])
    on(compare.click, lambda name, *raw: _compare(service, name or _first(service), raw), [chosen, *wishes],
       [said, watch.status])
    # As for training's Stop: the page names the job that it shows.
    which = hidden(gr.Textbox, "dreambooth_compare_stop_which", label="comparison to stop")
    on(stop.click, lambda job_id, name: _stop(service, job_id or "", name or _first(service)), [which, chosen],
       [said, watch.status], js="(job, name) => [(window.dreamboothPage.status() || {}).job || 'none', name]")
    on(publish.click, lambda name, which: _publish(service, name or _first(service), which), [chosen, snapshot],
       [said, watch.status])
    on_script(act, lambda name, which: _publish_cell(service, name or _first(service), which), [chosen, cell],
              [said, watch.status])
    on(back.click, lambda: gr.update(visible=True), [], [confirm])
    on(never.click, lambda: gr.update(visible=False), [], [confirm])
    on(really.click, lambda name, which, *how: _go_back(service, name or _first(service), which, *how),
       [chosen, snapshot, steps, rate], [said, confirm, watch.status])


def _wishes() -> tuple[list[Any], Any, Any]:
    """(widgets in the order of WISHES, the button that compares, the one that stops it)."""
    widgets: dict[str, Any] = {}

    def add(name: str, **changes: Any) -> None:
        widgets[name] = fields.widget(WISHES[name], elem_id=f"dreambooth_compare_{name}", **changes)

    with gr.Row(elem_classes=["dreambooth-compare"]):
        with gr.Column(scale=5, min_width=320):
            add("prompts", lines=3)
        with gr.Column(scale=2, min_width=180):
            add("count")
            compare = gr.Button("Compare", variant="primary", elem_id="dreambooth_compare")
            stop = gr.Button("Stop", size="sm", elem_id="dreambooth_compare_stop")
    with gr.Accordion("More about the comparison", open=False, elem_id="dreambooth_compare_more"), \
            gr.Row(elem_classes=["dreambooth-grid"]):
        for name in WISHES:
            if name not in widgets:
                add(name)
    return [widgets[name] for name in WISHES], compare, stop


def _refreshed(service: Service, drawings: Lookups, name: str | None, newest: str | None, seen: str | None,
               which: str | None) -> list[Any]:
    listed, proposed, name, newest = proposal(service, name, newest)
    return [listed, proposed, newest, *_shown(service, drawings, name, seen, which)]


def _shown(service: Service, drawings: Lookups, name: str | None, shown: str | None, chosen: str | None) -> list[Any]:
    """The grid, whether it is being drawn, and the list of snapshots, unless the page has them already. `shown` is [run, its
    mark, snapshot we proposed], as JSON: another one was chosen by a person, and stays chosen while it is there.
    """
    seen = _seen(shown)
    run = _run(service, name or "")
    mark = mark_of(service, run) if run else ""
    if seen[:2] == [name, mark]:
        return [gr.update(), "", gr.update(), gr.update()]
    answer = drawings.ask("grid", (name, repr(mark)), lambda progress: grid_html(service, name or ""))
    if answer.ready:
        grid = answer.value if answer.error is None else html.note(str(answer.error), "fault")
    else:  # the page asks again, and keeps what it has of the same run
        grid, mark = gr.update() if seen[0] == name else "", None
    found = _snapshots(service, name or "")
    proposed = _preferred(run, found)
    is_own_choice = seen[0] == name and chosen in found and chosen != seen[2]
    return [grid, "" if answer.ready else html.pending(DRAWING),
            gr.update(choices=found, value=chosen if is_own_choice else proposed), json.dumps([name, mark, proposed])]


def _seen(shown: str | None) -> list[Any]:
    """The page may say anything."""
    try:
        seen = json.loads(shown or "")
    except (ValueError, RecursionError):
        seen = None
    return seen if isinstance(seen, list) and len(seen) == 3 else ["", None, None]


def _news(service: Service, name: str) -> Any:
    """How far the comparison of this run is, or how it ended."""
    job = service.shown_job()
    if job is None or job.name != name or not is_comparing(job):
        return gr.update()
    if job.state == "running":
        return html.note(f"{job.last.done} of {job.last.total} pictures are rendered.")
    told = {"failed": (job.message, "fault"), "cancelled": ("Stopped; what was rendered is kept.", "warning")}
    return html.note(*told.get(job.state, ("", "note")))


def _compare(service: Service, name: str, raw: tuple[Any, ...]) -> list[str]:
    values = fields.values_from(WISHES, raw)
    return _told(service, "Choose a run first.", name,
                 lambda: f"Comparing the snapshots of {service.compare(name, values).name} ...")


def _stop(service: Service, job_id: str, name: str) -> list[str]:
    """Stop the comparison that the page shows: another may have begun since, or be of another run than the chosen one."""
    job = service.jobs.running
    if job is None or not is_comparing(job):
        said = "No comparison is running."
    elif job.id != job_id:
        said = f"Nothing was stopped: what this page showed has ended, and {job.name} is being compared since."
    elif job.name != name:
        said = f"Nothing was stopped: {job.name} is being compared, and {name} is chosen. Choose {job.name} to stop it."
    else:
        service.stop(job.id, "this tab")
        said = "Stopping; what was rendered is kept."
    return [html.note(said), status_html(service)]


def _publish(service: Service, name: str, snapshot: str | None) -> list[str]:
    def publish() -> str:
        model = f"{service.run(name).config().output_name}-step{step_of_snapshot(Path(snapshot or '').name)}"
        return f"Publishing {snapshot} of {service.publish(name, snapshot=snapshot or '', as_name=model).name} ..."

    return _told(service, "Choose a run and one of its snapshots first.", name and snapshot, publish)


def _publish_cell(service: Service, name: str, cell: str | None) -> list[str]:
    """`cell` is run/snapshot, of what was clicked on: until another run's grid is drawn, the page has the former one's."""
    run, _, snapshot = (cell or "").rpartition("/")
    if name and run != name:
        return [html.note(f"Nothing is published: the picture is of {run}, and {name} is chosen by now. Choose {run} again, or "
                          f"wait for the pictures of {name}.", "fault"), status_html(service)]
    return _publish(service, name, snapshot)


def _go_back(service: Service, name: str, snapshot: str | None, count: str, rate: str = "") -> list[Any]:
    def go_back() -> str:
        steps, learning_rate = fields.number(count), fields.number(rate, float)
        job = service.resume(name, snapshot=snapshot or "", steps=steps, learning_rate=learning_rate)
        return f"{job.name} goes on from {snapshot}; the Train tab shows how."

    said, status = _told(service, "Choose a run and one of its snapshots first.", name and snapshot, go_back)
    return [said, gr.update(visible=False), status]


def _told(service: Service, missing: str, given: Any, act: Callable[[], str]) -> list[str]:
    """[what came of it, the job's state]"""
    try:
        said = html.note(act(), "good") if given else html.note(missing, "fault")
    except DreamboothError as error:
        said = html.note(str(error), "fault")
    return [said, status_html(service)]


def _run(service: Service, name: str) -> RunFolder | None:
    try:
        return service.run(name)
    except DreamboothError:
        return None


def _snapshots(service: Service, name: str) -> list[str]:
    run = _run(service, name)
    return service.snapshots(run) if run else []


def _preferred(run: RunFolder | None, found: list[str]) -> str | None:
    """The best snapshot, or the last one where none was found to be the best."""
    compared = read_comparison(run) if run else None
    best = compared.best if compared else None
    return best.name if best and best.name in found else found[-1] if found else None


def _first(service: Service) -> str:
    return next(iter(service.run_names()), "")
