"""The whole tab: Train, Choose, Runs."""

from __future__ import annotations

from functools import partial
from typing import Any

import gradio as gr

from .. import needs
from ..service import Service
from . import choose_panel, fields, html, runs_panel, train_panel, watch_panel
from .compat import blocks, hidden, leave_out_of_saved_defaults, on, on_script
from .sentences import Sentences
from .timeline import config_of

TITLE = "Dreambooth"


def build(service: Service, *, css: str = "", script: str = "", warning: str = "") -> Any:
    """gr.Blocks with everything wired. `script` is for hosts that do not load javascript/ by themselves."""
    sentences = Sentences(service)
    with blocks(TITLE, css) as tab:
        missing = "\n".join(line for line in (needs.advice(), warning) if line)
        if missing:
            gr.HTML(value=html.note(missing, "fault"), elem_id="dreambooth_missing")
        with gr.Tabs(elem_id="dreambooth_tabs"):
            with gr.Tab("Train", elem_id="dreambooth_tab_train"), gr.Row():
                with gr.Column(scale=6, min_width=380, elem_id="dreambooth_left"):
                    form = train_panel.build(service, sentences)
                with gr.Column(scale=5, min_width=330, elem_id="dreambooth_right"):
                    watch = watch_panel.build(service)
            with gr.Tab("Choose", elem_id="dreambooth_tab_choose"):
                choose_panel.build(service, watch)
            with gr.Tab("Runs", elem_id="dreambooth_tab_runs"):
                runs_panel.build(service, form, watch)
        train_panel.wire(form, watch)
        # The page's script clicks it once when the page is there: what a job or another page has changed meanwhile.
        opened = hidden(gr.Button, "dreambooth_opened", value="opened")
        on_script(opened, fields.with_values(form.widgets, partial(_opened, form)), list(form.widgets.values()),
                  [*form.widgets.values(), *form.told, form.presets.name])
        if script:
            on(tab.load, None, js=f"() => {{ {script} }}")
    leave_out_of_saved_defaults(tab.blocks.values())
    return tab


def _opened(form: train_panel.TrainPanel, values: dict[str, Any]) -> list[Any]:
    """The form as it should stand: the running run's settings, else as it is, on what the host has loaded now."""
    asked_with = values["base"]
    titles, loaded = train_panel.checkpoint_titles(form.service)
    if loaded:  # the form is as it was built; another checkpoint may have been loaded since
        values["base"] = loaded
    job = form.service.jobs.running
    config = config_of(watch_panel.run_of(form.service, job)) if job is not None else None
    if config is not None:
        values = train_panel.values_of_run(form.service, config)
    # What is as the page has it is not sent: by now somebody may have chosen another one.
    base = gr.update(choices=titles, **({} if values["base"] == asked_with else {"value": values["base"] or None}))
    shown = dict(zip(form.widgets, fields.updates(form.widgets, values if config else {}), strict=True)) | {"base": base}
    return [*shown.values(), *train_panel.told_of(form, values), form.presets.listed()]
