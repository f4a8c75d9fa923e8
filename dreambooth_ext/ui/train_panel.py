"""The left half: model, pictures, class, train, and everything else under Advanced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from ..errors import ConfigError, DreamboothError
from ..options import Option
from ..service import Service
from . import fields, html, watch_panel
from .compat import on, uploads
from .presets_panel import PresetsPanel
from .sentences import Sentences

STEPS = {"model": "Model", "pictures": "Pictures", "class": "Subject and class", "train": "Train"}
GROUPS = {**STEPS, "watch": "Watching"}
BUILT_ELSEWHERE = {"base", "instance_dir"}  # they have widgets of their own shape
TOLD_OF = {"num_class_images", "train_batch_size", "gradient_accumulation_steps"}  # advanced, but in the steps' sentences


@dataclass
class TrainPanel:
    """All widgets by the name of their option, and the places where sentences about them go."""

    service: Service
    sentences: Sentences
    widgets: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    faults: dict[str, Any] = field(default_factory=dict)
    buttons: dict[str, Any] = field(default_factory=dict)
    said: Any = None
    presets: Any = None

    def values(self, raw: tuple[Any, ...]) -> dict[str, Any]:
        return fields.values_of(list(self.widgets), raw)


def build(service: Service, sentences: Sentences) -> TrainPanel:
    """Lay the four steps out; `wire` attaches what they do."""
    panel = TrainPanel(service, sentences)
    with _step(panel, 1, "model"), gr.Row():
        choices, loaded = checkpoint_titles(service)
        panel.widgets["base"] = gr.Dropdown(
            label="Base model", info="Training starts from this checkpoint. It is never written to.", choices=choices,
            value=loaded, allow_custom_value=True, interactive=True, elem_id="dreambooth_base")
        panel.buttons["loaded"] = gr.Button("Use the loaded one", elem_id="dreambooth_use_loaded", scale=0, size="sm")
    with _step(panel, 2, "pictures"):
        panel.widgets["instance_dir"] = gr.Textbox(
            label="Pictures", info="Folder with the pictures to learn from. They are never changed.", max_lines=1,
            elem_id="dreambooth_instance_dir", interactive=True, placeholder="a folder on this computer")
        panel.buttons["upload"] = gr.File(label="or drop pictures here", file_count="multiple",
                                           elem_id="dreambooth_upload", interactive=True)
    with gr.Accordion("Review the pictures", open=False, elem_id="dreambooth_review_fold"):
        panel.buttons["review"] = gr.Button("Look at them", elem_id="dreambooth_review")
        panel.notes["review"] = gr.HTML(value="", elem_id="dreambooth_review_grid")
    with _step(panel, 3, "class"):
        with gr.Row():
            _basic(panel, ["kind", "token", "class_noun"])
        _basic(panel, ["with_prior_preservation"])
    with _step(panel, 4, "train"):
        with gr.Row():
            _basic(panel, ["output_name", "steps"])
        with gr.Row():
            _basic(panel, ["memory_profile", "resolution", "publish_format"])
    _advanced(panel)
    panel.buttons["train"] = gr.Button("Train", variant="primary", elem_id="dreambooth_train",
                                       elem_classes=["dreambooth-big"])
    panel.said = gr.HTML(value="", elem_id="dreambooth_said", elem_classes=["dreambooth-said"])
    return panel


def wire(panel: TrainPanel, watch: watch_panel.WatchPanel) -> None:
    """Attach every handler. Each returns at once; work goes to the background job."""
    inputs = list(panel.widgets.values())
    panel.presets.wire(panel.widgets)
    basics = [name for name in panel.widgets
              if name in BUILT_ELSEWHERE | TOLD_OF or not fields.all_options()[name].advanced]
    told = [panel.notes[step] for step in STEPS] + [panel.faults[step] for step in STEPS]
    for name in basics:
        widget = panel.widgets[name]
        event = widget.blur if isinstance(widget, gr.Textbox) else widget.change
        on(event, lambda *raw: told_of(panel, panel.values(raw)), inputs, told)
    on(panel.buttons["train"].click, lambda *raw: _start(panel, panel.values(raw)), inputs,
       [*(panel.faults[step] for step in STEPS), panel.said, watch.status])
    base = panel.widgets["base"]
    on(panel.buttons["loaded"].click, lambda: _use_loaded(panel.service), [], [base])
    on(panel.buttons["upload"].upload, lambda files: _take_uploads(panel.service, files), [panel.buttons["upload"]],
       [panel.widgets["instance_dir"], panel.faults["pictures"]])
    on(panel.widgets["instance_dir"].change, lambda *raw: told_of(panel, panel.values(raw)), inputs, told)
    on(panel.buttons["review"].click, lambda *raw: _review(panel, panel.values(raw)), inputs, [panel.notes["review"]])


def checkpoint_titles(service: Service) -> tuple[list[str], str | None]:
    """Titles for the list, and the loaded one's."""
    try:
        found = service.host.checkpoints()
    except DreamboothError:
        return [], None
    return [checkpoint.title for checkpoint in found], next((c.title for c in found if c.loaded), None)


def told_of(panel: TrainPanel, values: Mapping[str, Any]) -> list[str]:
    """What can be said of the settings so far: one note for each step, then its faults, of filled fields only."""
    notes = {"model": panel.sentences.model(values), "pictures": panel.sentences.pictures(values),
             "class": panel.sentences.concept(values), "train": panel.sentences.steps(values)}
    faults = [fault for fault in _faults(panel, values) if not _is_about_empty(fault, values)]
    return [notes[step] for step in STEPS] + [html.faults(fields.faults_of_group(faults, step)) for step in STEPS]


def _faults(panel: TrainPanel, values: Mapping[str, Any]) -> list[str]:
    try:
        return panel.service.settings(values).faults()
    except ConfigError as error:
        return list(error.faults)
    except DreamboothError as error:
        return [f"{error.asked}: {error.why}"]


def _is_about_empty(fault: str, values: Mapping[str, Any]) -> bool:
    """A field that nobody has filled in yet is no mistake until Train is pressed."""
    option = next((option for option in fields.all_options().values() if fault.startswith(option.flag + ":")), None)
    return option is not None and values.get(option.name) in (None, "", ())


def _start(panel: TrainPanel, values: Mapping[str, Any]) -> list[str]:
    status = watch_panel.status_html
    try:
        job = panel.service.start(values)
    except ConfigError as error:
        grouped = [html.faults(fields.faults_of_group(error.faults, step)) for step in STEPS]
        count = "1 thing has" if len(error.faults) == 1 else f"{len(error.faults)} things have"
        told = html.note(f"{count} to be put right first; look for the red lines above.", "fault")
        return [*grouped, told, status(panel.service)]
    except DreamboothError as error:
        return ["", "", "", "", html.note(str(error), "fault"), status(panel.service)]
    running = panel.service.jobs.running
    waits = running is not None and running.id != job.id
    said = f"{job.name} waits until {running.name} is done." if waits and running else f"{job.name} has started."
    return ["", "", "", "", html.note(said, "good"), status(panel.service)]


def _use_loaded(service: Service) -> Any:
    titles, loaded = checkpoint_titles(service)
    return gr.update(choices=titles, **({"value": loaded} if loaded else {}))


def _take_uploads(service: Service, files: Any) -> tuple[Any, str]:
    try:
        folder = service.keep_uploads(uploads(files))
    except DreamboothError as error:
        return gr.update(), html.faults([str(error)])
    return str(folder), ""


def _review(panel: TrainPanel, values: Mapping[str, Any]) -> str:
    try:
        return panel.sentences.review(values)
    except DreamboothError as error:
        return html.note(str(error), "fault")


class _step:
    """A titled block with its own note and its own faults."""

    def __init__(self, panel: TrainPanel, number: int, name: str) -> None:
        self._panel, self._name, self._number = panel, name, number
        self._group = gr.Group(elem_id=f"dreambooth_step_{name}", elem_classes=["dreambooth-step"])

    def __enter__(self) -> None:
        self._group.__enter__()
        title = html.escaped(STEPS[self._name])
        gr.HTML(value=f'<h3><span class="dreambooth-number">{self._number}</span> {title}</h3>')

    def __exit__(self, *error: Any) -> None:
        panel, name = self._panel, self._name
        panel.notes[name] = gr.HTML(value="", elem_id=f"dreambooth_note_{name}", elem_classes=["dreambooth-said"])
        panel.faults[name] = gr.HTML(value="", elem_id=f"dreambooth_faults_{name}", elem_classes=["dreambooth-said"])
        self._group.__exit__(*error)


def _basic(panel: TrainPanel, names: list[str]) -> None:
    options = fields.all_options()
    for name in names:
        panel.widgets[name] = fields.widget(options[name])


def _advanced(panel: TrainPanel) -> None:
    """Everything else, in groups, from the options' metadata alone."""
    with gr.Accordion("Advanced", open=False, elem_id="dreambooth_advanced"):
        panel.presets = PresetsPanel(panel.service)
        gr.Textbox(label="Search options", max_lines=1, elem_id="dreambooth_search", interactive=True,
                   placeholder="a word of a name or of its help")
        for group, title in GROUPS.items():
            rest = [option for option in fields.all_options().values()
                    if (option.group or "train") == group and option.name not in panel.widgets]
            if rest:
                gr.HTML(value=f"<h4>{html.escaped(title)}</h4>", elem_classes=["dreambooth-group-title"])
                _grid(panel, rest)


def _grid(panel: TrainPanel, options: list[Option]) -> None:
    with gr.Row(elem_classes=["dreambooth-grid"]):
        for option in options:
            panel.widgets[option.name] = fields.widget(option, **_host_folder(panel.service, option.name))


def _host_folder(service: Service, name: str) -> dict[str, Any]:
    """An empty folder means the host's own; its path shows faintly in the empty field."""
    folders = {"models_dir": service.host.models_dir, "runs_dir": service.host.runs_dir}
    return {"value": "", "placeholder": str(folders[name])} if name in folders else {}
