"""All runs: look at one, resume, publish again, take the settings of one, report, explain, delete; the queue on top."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from ..errors import DreamboothError
from ..outbox import OUTBOX
from ..service import Service
from . import fields, html
from .compat import hidden, on, on_script
from .errands import Errands
from .run_cards import PENDING, follow, proposal, run_list, runs_html
from .train_panel import TrainPanel, values_of_run
from .watch_panel import WatchPanel, status_html

BUTTONS = {
    "open": "Open", "resume": "Resume", "publish": "Publish again", "clone": "Use its settings", "folder": "Open its folder",
    "report": "Save its report", "explain": "Explain this failure ...", "delete": "Delete ...",
}
PLACES = {"up": -1, "down": 1}


def build(service: Service, form: TrainPanel, watch: WatchPanel) -> None:
    """Lay the list out and wire its buttons. The page's script asks for the runs: the WebUI's start waits for none."""
    with gr.Row():
        chosen = gr.Dropdown(label="Run", choices=[], interactive=True, elem_id="dreambooth_run",
                             info="A click on a card chooses it, too.")
        again = gr.Button("Refresh", elem_id="dreambooth_runs_refresh", scale=0, size="sm")
    with gr.Row(elem_classes=["dreambooth-buttons"]):
        buttons = {name: gr.Button(text, elem_id=f"dreambooth_run_{name}" if name in ("open", "folder") else f"dreambooth_{name}",
                                   size="sm", **({"variant": "stop"} if name == "delete" else {}))
                   for name, text in BUTTONS.items()}
    confirm, question, doomed, really, never = _confirmation()
    newest = gr.State(None)
    asked, choices, make = _explanation_choices()
    made = gr.File(label="Your file", visible=False, interactive=False, elem_id="dreambooth_made")
    said = gr.HTML(value="", elem_id="dreambooth_runs_said", elem_classes=["dreambooth-said"])
    opened = gr.HTML(value="", elem_id="dreambooth_run_opened", elem_classes=["dreambooth-said"])
    listed = gr.HTML(value=html.note("Looking at the runs ..."), elem_id="dreambooth_runs")
    errands = Errands("dreambooth_runs_doing", "dreambooth_runs_errand", said, [listed, opened, made])
    poll, act = (hidden(gr.Button, f"dreambooth_runs_{name}", value=name) for name in ("poll", "act"))
    wish, proposed = (hidden(gr.Textbox, f"dreambooth_runs_{name}", label=label)
                      for name, label in (("wish", "wish"), ("proposed", "run to be chosen")))

    for attach, button in ((on, again.click), (on_script, poll)):
        follow(attach(button, lambda name, newest: _refreshed(service, name, newest), [chosen, newest],
                      [chosen, proposed, listed, newest]), proposed, chosen)
    on_script(act, lambda name, wish: _fulfil(service, name or "", wish or ""), [chosen, wish],
            [chosen, listed, said, watch.status])
    for name, start in (("resume", service.resume), ("publish", service.publish)):
        on(buttons[name].click, lambda run, start=start: _act(service, lambda: start(run or "")), [chosen], [said, watch.status])
    on(buttons["clone"].click, lambda name: _clone(service, form, name or ""), [chosen], [*form.widgets.values(), said])
    on(buttons["folder"].click, lambda name: _show_folder(service, name or ""), [chosen], [said])
    on(buttons["explain"].click, lambda: gr.update(visible=True), [], [asked])
    on(buttons["delete"].click, lambda name: [gr.update(visible=True), _asked_about(name or ""), name or ""], [chosen],
       [confirm, question, doomed])
    for button in (never, really):
        on(button.click, lambda: gr.update(visible=False), [], [confirm])

    errands.on(buttons["open"].click, "Opening the run", lambda name: _open(service, name), [chosen], [opened, said])
    errands.on(buttons["report"].click, "Writing the report", lambda name: _report(service, name or ""), [chosen], [made, said])
    errands.on(make.click, "Making the zip", lambda name, *told: _explanation(service, name or "", *told), [chosen, *choices],
               [made, said])
    errands.on(really.click, "Deleting the run", lambda name: _delete(service, name or ""), [doomed], [said, listed, opened])


def _confirmation() -> tuple[Any, Any, Any, Any, Any]:
    """The row, its question, the run that it is about, yes, no. Another run may be chosen by the time of the answer."""
    with gr.Row(visible=False, elem_id="dreambooth_confirm", elem_classes=["dreambooth-asked"]) as row:
        question, doomed = gr.HTML(value=""), gr.State("")
        really = gr.Button("Yes, delete it", elem_id="dreambooth_delete_yes", variant="stop")
        never = gr.Button("No", elem_id="dreambooth_delete_no")
    return row, question, doomed, really, never


def _asked_about(name: str) -> str:
    return html.note(f"{name}: its snapshots, previews and log will be gone. Published models stay.", "warning")


def _explanation_choices() -> tuple[Any, list[Any], Any]:
    with gr.Row(visible=False, elem_id="dreambooth_explain_choices") as row:
        paths = gr.Checkbox(label="with paths of this computer", value=False, elem_id="dreambooth_explain_paths")
        prompts = gr.Checkbox(label="with prompts", value=False, elem_id="dreambooth_explain_prompts")
        make = gr.Button("Make the zip", elem_id="dreambooth_explain_make", size="sm")
    return row, [paths, prompts], make


def _refreshed(service: Service, chosen: str | None, newest: str | None = None) -> list[Any]:
    """The runs there are now; where no other one was chosen, the newest is what the buttons are about."""
    listed, proposed, name, newest = proposal(service, chosen, newest)
    return [listed, proposed, runs_html(service, name), newest]


def _fulfil(service: Service, chosen: str, wish: str) -> list[Any]:
    """What a click inside the list asks for: pick:RUN, up:JOB, down:JOB, out:JOB."""
    verb, _, value = wish.partition(":")
    said: Any = ""
    listed = run_list(service, chosen)
    if verb == "pick" and value in service.run_names():
        chosen, listed = value, gr.update(choices=service.run_names(), value=value)
    elif verb in PLACES:
        service.move(value, PLACES[verb])
    elif verb == "out":
        job = service.jobs.find(value)
        if job is not None and job.state == "queued" and service.stop(value, "this tab"):
            said = html.note(f"{job.name} is out of the queue.", "good")
    return [listed, runs_html(service, chosen), said, status_html(service)]


def _act(service: Service, start: Callable[[], Any]) -> list[str]:
    try:
        job = start()
    except DreamboothError as error:
        return [html.note(str(error), "fault"), status_html(service)]
    return [html.note(f"{job.name}: started; the Train tab shows how it goes.", "good"), status_html(service)]


def _open(service: Service, name: str | None) -> list[str]:
    """The run's report, on the page itself. A frame keeps its style apart, and lets no script run."""
    from ..report import report_html

    try:
        page = report_html(service.run(name or ""))
    except DreamboothError as error:
        return ["", html.note(str(error), "fault")]
    title = html.escaped(f"{name}: report")
    return [f'<p class="dreambooth-note"></p><iframe class="dreambooth-opened" sandbox title="{title}" '
            f'srcdoc="{html.escaped(page)}"></iframe>', ""]


def _show_folder(service: Service, name: str) -> str:
    try:
        return html.note(f"{service.open_folder(name)} is open on the computer that trains.", "good")
    except DreamboothError as error:
        return html.note(str(error), "fault")


def _file(make: Callable[[Path], Path]) -> list[Any]:
    """A file of a run, alone in a folder from which gradio may serve it, and what it is."""
    try:
        path = make(OUTBOX.folder())
    except DreamboothError as error:
        return [gr.update(visible=False), html.note(str(error), "fault")]
    return [gr.update(value=str(path), visible=True), html.note(f"{path.name}: click on its size to save it.", "good")]


def _report(service: Service, name: str) -> list[Any]:
    return _file(lambda folder: service.report(name, folder))


def _explanation(service: Service, name: str, with_paths: bool = False, with_prompts: bool = False) -> list[Any]:
    """Paths and prompts are left out unless wished for, so that it can be shown to others."""
    return _file(lambda folder: service.explain(name, folder, with_paths=with_paths is True,
                                                with_prompts=with_prompts is True))


def _delete(service: Service, name: str) -> list[Any]:
    """What came of it, and the runs that are left: the page asks for them once more, and then chooses another one if need be."""
    try:
        service.delete(name)
    except DreamboothError as error:
        return [html.note(str(error), "fault"), gr.update(), gr.update()]
    return [html.note(f"{name} is deleted.", "good"), runs_html(service) + PENDING, ""]


def _clone(service: Service, form: TrainPanel, name: str) -> list[Any]:
    try:
        config = service.run(name).config()
    except DreamboothError as error:
        return [*fields.updates(form.widgets, {}), html.note(str(error), "fault")]
    values = {**values_of_run(service, config), "output_name": service.free_name(name)}
    said = html.note(f"The Train tab has {name}'s settings now.", "good") + fields.first_alone(len(config.concepts))
    return [*fields.updates(form.widgets, values), said]
