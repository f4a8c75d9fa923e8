"""The left half: model, pictures, class, train, and everything else under Advanced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gradio as gr

from .. import advice, presets
from ..config import OPTIONS, TrainConfig
from ..errors import ConfigError, DreamboothError
from ..jobs import Job
from ..options import Option
from ..run_folder import RunFolder
from ..service import Service
from . import fields, html, watch_panel
from .class_panel import ClassPanel
from .compat import hidden, on, on_script, uploads
from .presets_panel import PresetsPanel
from .review_panel import ReviewPanel
from .sentences import Sentences

STEPS = {"model": "Model", "pictures": "Pictures", "class": "Subject and class", "train": "Train"}
GROUPS = {**STEPS, "watch": "Watching"}
NEEDED = {"base": "base model", "instance_dir": "pictures", "token": "token", "class_noun": "class", "output_name": "name"}

LOCKED = ('<p class="dreambooth-note"><b>A run is going on.</b> Its settings stand below and stay as they are. '
          '<button class="dreambooth-unlock">Set up the next run</button></p>')


@dataclass
class TrainPanel:
    """All widgets by the name of their option, and the places where sentences about them go."""

    service: Service
    sentences: Sentences
    defaults: Mapping[str, Any] = field(default_factory=dict)
    widgets: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    faults: dict[str, Any] = field(default_factory=dict)
    buttons: dict[str, Any] = field(default_factory=dict)
    said: Any = None
    presets: Any = None
    review: Any = None
    drawn: Any = None

    @property
    def told(self) -> list[Any]:
        """The components that `told_of` fills, in its order."""
        return [*(self.notes[step] for step in STEPS), *(self.faults[step] for step in STEPS), self.notes["memory"],
                self.notes["ready"]]


def build(service: Service, sentences: Sentences) -> TrainPanel:
    """Lay the four steps out; `wire` attaches what they do."""
    defaults, problem = _defaults(service)
    panel = TrainPanel(service, sentences, defaults)
    gr.HTML(value=LOCKED, elem_id="dreambooth_locked")
    gr.HTML(value=html.note(problem, "fault"), elem_id="dreambooth_preset_problem", elem_classes=["dreambooth-said"])
    with _step(panel, 1, "model"), gr.Row():
        choices, loaded = checkpoint_titles(service)
        panel.widgets["base"] = gr.Dropdown(
            label="Base model", info="Training starts from this checkpoint. It is never written to.", choices=choices,
            value=loaded, allow_custom_value=True, interactive=True, elem_id="dreambooth_base",
            elem_classes=["dreambooth-option"])
        panel.buttons["loaded"] = gr.Button("Refresh the list" if service.host.name == "standalone" else "Use the loaded one",
                                            elem_id="dreambooth_use_loaded", scale=0, size="sm")
    with _step(panel, 2, "pictures"):
        panel.widgets["instance_dir"] = gr.Textbox(
            label="Pictures", info="Folder with the pictures to learn from. They are never changed.", max_lines=1,
            elem_id="dreambooth_instance_dir", elem_classes=["dreambooth-option"], interactive=True,
            placeholder="a folder on this computer")
        panel.buttons["upload"] = gr.File(label="or drop pictures here, or paste one (Ctrl+V)", file_count="multiple",
                                           elem_id="dreambooth_upload", interactive=True)
        # Not among the step's faults: the next check of the form would take it away again.
        panel.notes["upload"] = gr.HTML(value="", elem_id="dreambooth_upload_said", elem_classes=["dreambooth-said"])
    panel.review = ReviewPanel(service, sentences)
    with _step(panel, 3, "class"):
        with gr.Row():
            _basic(panel, ["kind", "token", "class_noun"])
        _basic(panel, ["with_prior_preservation"])
    panel.drawn = ClassPanel(service, sentences)
    with _step(panel, 4, "train"):
        with gr.Row():
            _basic(panel, ["output_name", "steps"])
        with gr.Row():
            _basic(panel, ["memory_profile", "resolution", "publish_format"])
        panel.notes["memory"] = gr.HTML(value="", elem_id="dreambooth_note_memory", elem_classes=["dreambooth-said"])
    _advanced(panel)
    panel.notes["ready"] = gr.HTML(value="", elem_id="dreambooth_ready", elem_classes=["dreambooth-said"])
    panel.buttons["train"] = gr.Button("Train", variant="primary", elem_id="dreambooth_train",
                                       elem_classes=["dreambooth-big"])
    panel.said = gr.HTML(value="", elem_id="dreambooth_said", elem_classes=["dreambooth-said"])
    return panel


def wire(panel: TrainPanel, watch: watch_panel.WatchPanel) -> None:
    """Attach every handler. Each returns at once; work goes to the background job."""
    inputs, with_values = list(panel.widgets.values()), partial(fields.with_values, panel.widgets)
    tell = with_values(partial(told_of, panel))
    panel.presets.wire(panel.widgets)
    # The page's script clicks it while a sentence says that something is being found out.
    panel.buttons["tell"] = hidden(gr.Button, "dreambooth_tell", value="tell")
    on_script(panel.buttons["tell"], tell, inputs, panel.told)
    events = [panel.widgets["instance_dir"].change, panel.widgets["base"].change]
    events += [_typed(panel.widgets[name], OPTIONS[name].advanced) for name in panel.widgets]
    for event in events:
        on(event, tell, inputs, panel.told)
    on(panel.buttons["train"].click, with_values(partial(_start, panel)), inputs,
       [*(panel.faults[step] for step in STEPS), panel.said, watch.status, panel.notes["ready"]])
    base, folder = panel.widgets["base"], panel.widgets["instance_dir"]
    on(panel.buttons["loaded"].click, lambda: _use_loaded(panel.service), [], [base])
    kept = on(panel.buttons["upload"].upload, with_values(partial(_take_uploads, panel)),
              [panel.buttons["upload"], *inputs], [folder, panel.notes["upload"], panel.buttons["upload"], *panel.told])
    on(kept.then, None, js="() => { window.dreamboothPage.putAway(); return []; }")
    panel.review.wire(panel.widgets)
    panel.drawn.wire(panel.widgets)


def _typed(widget: Any, advanced: bool) -> Any:
    """When somebody has changed a field. Of the advanced ones only what a person did counts, not what a preset did."""
    if isinstance(widget, gr.Textbox):
        return widget.blur
    return widget.input if advanced and hasattr(widget, "input") else widget.change


def _defaults(service: Service) -> tuple[dict[str, Any], str]:
    """What a new form starts from, by the host's settings too, and why it cannot."""
    if not service.preset:
        return {}, ""
    try:
        return presets.load(service.preset, service.presets_dir), ""
    except DreamboothError as error:
        return {}, f"The preset that new forms start from ({service.preset}) cannot be used. {error}"


def _widget(panel: TrainPanel, option: Option, **changes: Any) -> Any:
    default = {"value": fields.shown(option, panel.defaults[option.name])} if option.name in panel.defaults else {}
    return fields.widget(option, **{**default, **changes})


def checkpoint_titles(service: Service) -> tuple[list[str], str | None]:
    """Titles for the list, and the one to start from: the loaded one, or the base that it was trained from; a lone one."""
    try:
        found = service.host.checkpoints()
    except DreamboothError:
        return [], None
    loaded = next((c for c in found if c.loaded), found[0] if len(found) == 1 else None)
    if loaded is not None:  # what a run has just made is seldom what the next one is to start from
        before = advice.base_of(service.host.runs_dir, loaded.path)
        loaded = next((c for c in found if c.path == before), loaded)
    return [checkpoint.title for checkpoint in found], loaded.title if loaded else None


def told_of(panel: TrainPanel, values: Mapping[str, Any]) -> list[str]:
    """What can be said of the settings so far, for `panel.told`: a note for each step, then its faults, of filled fields only;
    then what memory it takes, and what is lacking."""
    say = panel.sentences
    notes = {"model": say.model(values), "pictures": say.pictures(values), "class": say.concept(values),
             "train": say.steps(values) + say.lora(values)}
    faults = [fault for fault in _faults(panel, values) if not _is_about_empty(fault, values)]
    return [*(notes[step] for step in STEPS), *(fields.faults_of_group(faults, step) for step in STEPS), say.memory(values),
            _ready(panel.service, values, faults, say.unusable(values))]


def _ready(service: Service, values: Mapping[str, Any], faults: list[str], unusable: list[str]) -> str:
    """What stands between these settings and a run, in one line."""
    under_way = next((job for job in service.jobs.all() if job.name == values.get("output_name") and not job.ended_s), None)
    if under_way is not None:
        return _of_job(service, under_way)
    lacking = [label for name, label in NEEDED.items() if not values.get(name)]
    wrong = [*unusable, *(option.label if option else "a setting" for option in map(fields.option_of, faults))]
    if wrong:
        return html.note(f"To be put right: {', '.join(dict.fromkeys(wrong))}.", "warning")
    if lacking:
        return html.note(f"Still needed: {', '.join(lacking)}.")
    try:
        service.require_free_name(service.settings(values))
    except ConfigError as error:
        why = "; ".join(fault.partition(": ")[2] or fault for fault in error.faults)
        is_done = any(job.name == values["output_name"] and job.state == "finished" for job in service.jobs.all())
        return html.note(f"Name: {why}. {error.instead}", "note" if is_done else "warning")  # nothing is wrong after a run
    except DreamboothError as error:
        return html.note(str(error), "fault")
    return html.note("Ready.", "good")


def _of_job(service: Service, job: Job) -> str:
    """What is going on with a run that has not ended."""
    running = service.jobs.running
    if running is not None and running.id != job.id:
        return html.note(f"{job.name} waits until {running.name} is done.", "good")
    return html.note(f"{job.name} is being worked on.", "good")


def _faults(panel: TrainPanel, values: Mapping[str, Any]) -> list[str]:
    try:
        return panel.service.settings(values).faults()
    except ConfigError as error:
        wrong = {option.name for option in map(fields.option_of, error.faults) if option}
        # The others are judged as well: what is wrong is to be seen at once, and not one after the other.
        rest = {name: value for name, value in values.items() if name not in wrong}
        return [*error.faults, *(_faults(panel, rest) if wrong & set(values) else [])]
    except DreamboothError as error:
        return [f"{error.asked}: {error.why}"]


def _is_about_empty(fault: str, values: Mapping[str, Any]) -> bool:
    """A field that nobody has filled in yet is no mistake until Train is pressed."""
    option = fields.option_of(fault)
    return option is not None and values.get(option.name) in (None, "", ())


def _start(panel: TrainPanel, values: Mapping[str, Any]) -> list[Any]:
    status, clean = watch_panel.status_html, ["" for _ in STEPS]
    try:
        job = panel.service.start(values)
    except ConfigError as error:
        empty = [fault for fault in error.faults if _is_about_empty(fault, values)]
        others = [fault for fault in error.faults if fault not in empty]
        count = "1 thing has" if len(error.faults) == 1 else f"{len(error.faults)} things have"
        told = html.note(f"{count} to be put right first; look for the red lines.", "fault")
        # Not among the steps' faults: an answer of `told_of`, asked for before, would take them away again.
        told += "".join(fields.faults_of_group(empty, step) for step in STEPS)
        return [*(fields.faults_of_group(others, step) for step in STEPS), told, status(panel.service), gr.update()]
    except DreamboothError as error:
        return [*clean, html.note(str(error), "fault"), status(panel.service), gr.update()]
    return [*clean, "", status(panel.service), _of_job(panel.service, job)]


def values_of_run(service: Service, config: TrainConfig) -> dict[str, Any]:
    """A run's settings by the names of the form's fields; its base by its title, where the host lists it."""
    values = {name: value for owner in (config, *config.concepts[:1]) for name, value in vars(owner).items()
              if name in OPTIONS}
    if values.get("choices") == str(RunFolder.for_config(config).choices_path(0)):
        values["choices"] = ""  # Review writes into the file that the form names, and this one is the run's
    titles = {str(checkpoint.path): checkpoint.title for checkpoint in service.host.checkpoints()}
    return {**values, "base": titles.get(config.base, config.base)}


def _use_loaded(service: Service) -> Any:
    titles, loaded = checkpoint_titles(service)
    return gr.update(choices=titles, **({"value": loaded} if loaded else {}))


def _take_uploads(panel: TrainPanel, files: Any, values: Mapping[str, Any]) -> list[Any]:
    """The folder that they are in now, why they were refused, an empty field for the next ones; then what `told_of` says.

    It is said here, for more pictures in the same folder change no field.
    """
    emptied = gr.update(value=None)
    try:
        into = str(panel.service.keep_uploads(uploads(files), values["instance_dir"]))
    except DreamboothError as error:
        return [gr.update(), html.faults([str(error)]), emptied, *told_of(panel, values)]
    return [into, "", emptied, *told_of(panel, {**values, "instance_dir": into})]


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
    for name in names:
        panel.widgets[name] = _widget(panel, OPTIONS[name])


def _advanced(panel: TrainPanel) -> None:
    """Everything else, in groups, from the options' metadata alone."""
    with gr.Accordion("Advanced", open=False, elem_id="dreambooth_advanced"):
        panel.presets = PresetsPanel(panel.service)
        gr.Textbox(label="Search options", max_lines=1, elem_id="dreambooth_search", interactive=True,
                   placeholder="a word of a name or of its help")
        for group, title in GROUPS.items():
            rest = [option for option in OPTIONS.values()
                    if (option.group or "train") == group and option.name not in panel.widgets]
            if rest:
                gr.HTML(value=f"<h4>{html.escaped(title)}</h4>", elem_classes=["dreambooth-group-title"])
                with gr.Row(elem_classes=["dreambooth-grid"]):
                    for option in rest:
                        panel.widgets[option.name] = _widget(panel, option, **_host_folder(panel.service, option.name))


def _host_folder(service: Service, name: str) -> dict[str, Any]:
    """An empty folder means the host's own; its path shows faintly in the empty field."""
    folders = {"models_dir": service.host.models_dir, "runs_dir": service.host.runs_dir}
    return {"value": "", "placeholder": str(folders[name])} if name in folders else {}
