"""What is happening: bar, figures, curve, previews, log, and the buttons that act on the running job."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from .. import desktop
from ..errors import DreamboothError
from ..jobs import KEPT, Job
from ..lookups import PATIENCE_S, Lookups
from ..metrics import MetricsTail
from ..plot import curve
from ..run_folder import RunFolder
from ..service import Service, Work
from ..words import as_webui_reads
from . import html
from .compat import hidden, on, on_script
from .timeline import config_of, enlarged_html, previews, timeline_html

LOG_LINES_SHOWN = 60
SAMPLE_RESOLUTION = 512  # the guide's sample settings are for models of this size


@dataclass
class WatchPanel:
    """The right half. `poll` is clicked by the page's script, once a second while a job runs."""

    status: Any
    curve: Any
    previews: Any
    log: Any
    poll: Any
    seen: Any

    @property
    def outputs(self) -> list[Any]:
        return [self.status, self.curve, self.previews, self.log, self.seen]


def build(service: Service) -> WatchPanel:
    """Lay the panel out and wire its buttons."""
    status = gr.HTML(value=status_html(service), elem_id="dreambooth_status")
    buttons = _buttons()
    with gr.Row(visible=False, elem_id="dreambooth_discard_confirm", elem_classes=["dreambooth-asked"]) as asked:
        question, which_job = gr.HTML(value=""), gr.State("")
        really = gr.Button("Yes, discard it", elem_id="dreambooth_discard_yes", variant="stop")
        never = gr.Button("No", elem_id="dreambooth_discard_no")
    plot = gr.HTML(value="", elem_id="dreambooth_curve")
    shown = gr.HTML(value="", elem_id="dreambooth_previews")
    enlarged = gr.HTML(value="", elem_id="dreambooth_enlarged")
    with gr.Accordion("Log", open=False, elem_id="dreambooth_log_fold"):
        log = gr.HTML(value="", elem_id="dreambooth_log")
    with gr.Row(elem_classes=["dreambooth-wishes"]):
        gr.Checkbox(label="Play a sound when a run ends", value=False, elem_id="dreambooth_sound", interactive=True)
        if service.host.name != "standalone":
            gr.Checkbox(label="Open txt2img with the guide's sample settings: Euler a, 50 steps, CFG 7, 512x768", value=False,
                        elem_id="dreambooth_sample_settings", interactive=True)
    panel = WatchPanel(status, plot, shown, log, hidden(gr.Button, "dreambooth_poll", value="refresh"), gr.State({}))
    watcher = Watcher()
    on_script(panel.poll, lambda seen: refresh(service, seen, watcher), [panel.seen], panel.outputs)
    # The page names the job that it shows: whoever presses the button means that one, even if another has begun since.
    shown_id = hidden(gr.Textbox, "dreambooth_stop_which", label="job to stop")
    on(buttons["stop"].click, lambda job_id: _stop(service, job_id or ""), [shown_id], [status],
       js="() => [(window.dreamboothPage.status() || {}).job || 'none']")
    acts = {"preview": lambda: _request(service, "preview"),
            "snapshot": lambda: _request(service, "snapshot"), "folder": lambda: _open_folder(service)}
    for name, act in acts.items():
        on(buttons[name].click, act, [], [status])
    on(buttons["discard"].click, lambda: _ask_to_discard(service), [], [status, asked, question, which_job])
    on(really.click, lambda job_id: [_stop(service, job_id, discard=True), gr.update(visible=False)], [which_job], [status, asked])
    on(never.click, lambda: gr.update(visible=False), [], [asked])
    # The page's script names the preview that was clicked on.
    which = hidden(gr.Textbox, "dreambooth_enlarge_which", label="preview to enlarge")
    look = hidden(gr.Button, "dreambooth_enlarge", value="enlarge")
    on_script(look, lambda which: _enlarged(service, which or ""), [which], [enlarged])
    return panel


def _buttons() -> dict[str, Any]:
    labels = {"preview": "Preview now", "snapshot": "Snapshot now", "folder": "Open the folder", "stop": "Stop and keep",
              "discard": "Stop and discard ..."}
    with gr.Row(elem_classes=["dreambooth-buttons"]):
        return {name: gr.Button(label, elem_id=f"dreambooth_{name}", size="sm",
                                variant="stop" if name == "discard" else "secondary") for name, label in labels.items()}


def _enlarged(service: Service, which: str) -> str:
    """`which` is RUN/name, of the run that the page showed when it was clicked; empty, or of a run that is gone: nothing."""
    name, _, file = which.rpartition("/")
    try:
        return enlarged_html(service.run(name), file) if name else ""
    except DreamboothError:
        return ""


class Watcher:
    """What pages ask for again and again: a run's figures are read as they grow, its previews made small in the background."""

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        self._tail, self._lock, self._lookups = MetricsTail(), threading.Lock(), Lookups(patience_s)

    def curve(self, run: RunFolder | None, mark: Any) -> str | None:
        """None until it is drawn: of a long run that takes a while the first time."""
        if run is None:
            return ""
        answer = self._lookups.ask("curve", (str(run.path), repr(mark)), lambda progress: self._drawn(run), lane="curve")
        return answer.value if answer.ready else None

    def _drawn(self, run: RunFolder) -> str:
        with self._lock:
            metrics = self._tail.read(run.metrics_path)
        points, fixed = ([(entry["step"], entry[name]) for entry in metrics if name in entry]
                         for name in ("loss", "validation_loss"))
        return f'<div class="dreambooth-scroll">{curve(points, validation=fixed)}</div>'

    def timeline(self, run: RunFolder | None, marks: Any) -> str | None:
        """None until it is made."""
        answer = self._lookups.ask("timeline", (str(run and run.path), repr(marks)), lambda progress: timeline_html(run))
        return answer.value if answer.ready else None


def refresh(service: Service, seen: dict[str, Any], watcher: Watcher) -> list[Any]:
    """What the page does not show yet; unchanged parts are left alone, so that nothing flickers."""
    job = service.shown_job()
    run = run_of(service, job)
    marks = {"curve": _mark(run.metrics_path) if run else None,
             "previews": [_mark(path) for path in previews(run)],
             "log": [job.id, len(job.log), job.log[-1] if job.log else ""] if job else None}
    parts = {"curve": lambda: watcher.curve(run, marks["curve"]), "previews": lambda: watcher.timeline(run, marks["previews"]),
             "log": lambda: _log(job)}
    changed: list[Any] = []
    for name, make in parts.items():
        made = make() if seen.get(name) != marks[name] else None
        if made is None:
            marks[name] = seen.get(name)  # it is as it was, or asked for again
        changed.append(gr.update() if made is None else made)
    return [status_html(service), *changed, marks]


def status_html(service: Service, said: str = "") -> str:
    """State, bar and figures; the script reads the attributes of the outer element."""
    job = service.shown_job()
    if job is None:
        body = html.bar(0, "Nothing is running.") + '<p class="dreambooth-figures">&nbsp;</p>' + html.note(
            said or "Progress, loss and previews appear here.")
        return _framed({"state": "idle"}, body)
    status = job.status()
    share = status["done"] / status["total"] if status["total"] else 0.0
    body = html.bar(1.0 if status["state"] == "finished" else share, _label(status)) + html.figures(status)
    body += html.note(said) + _outcome(job, status, service.host.lora_dir, _goes_on(run_of(service, job), status))
    waiting = [other for other in service.jobs.all() if other.state == "queued"]
    if waiting:
        body += html.note("Waiting: " + ", ".join(other.name for other in waiting))
    data = {**_for_script(job, run_of(service, job)), "waiting": " ".join(other.id for other in waiting)}
    if "published" in data:
        data["open"] = "yes" if service.open_txt2img and data["select"] == "yes" else "no"
        if service.host.name != "standalone":
            body += '<p><button class="dreambooth-open-txt2img">Open in txt2img</button></p>'
    return _framed(data, body)


def run_of(service: Service, job: Job | None) -> RunFolder | None:
    """The run that a job works on, which it may be about to begin; None of other jobs."""
    if job is None or isinstance(job.key, str):  # a word, such as "captions", which a run may be called too
        return None
    run = RunFolder(service.host.runs_dir / job.name)
    return run if isinstance(job.work, Work) or run.exists else None


def _framed(data: dict[str, str], body: str) -> str:
    attributes = " ".join(f'data-{name}="{html.escaped(value, quote=True)}"' for name, value in data.items())
    return f'<div class="dreambooth-status" {attributes} aria-live="polite">{body}</div>'


def _for_script(job: Job, run: RunFolder | None) -> dict[str, str]:
    """What the page's script needs: whether to poll on, and what to hand over to txt2img at the end."""
    data = {"state": job.state, "job": job.id, "name": job.name, "phase": job.last.phase}
    if isinstance(job.work, Work):  # a run; other jobs do not mind what is typed meanwhile
        data["lock"] = "yes"
    published = _published(job)
    config = config_of(run)
    if published and config is not None:
        data["published"] = published[0].name
        data["prompt"] = as_webui_reads(config.concepts[0].shown_text)
        data["select"] = "yes" if config.auto_select else "no"
        data["side"] = str(config.resolution or "")
        data["samples"] = "yes" if config.resolution == SAMPLE_RESOLUTION and not config.lora_rank else "no"
        if config.lora_rank:
            data["prompt"] += f" <lora:{published[0].stem}:1>"
    return data


def _published(job: Job) -> list[Path]:
    """The model files that a finished job has written, the selected one first; other jobs give other things."""
    paths = getattr(job.result, "published", job.result)
    if job.state != "finished" or not isinstance(paths, (list, tuple)) or not all(isinstance(path, (str, Path)) for path in paths):
        return []
    return [Path(path) for path in paths]


def _label(status: dict[str, Any]) -> str:
    if status["state"] == "queued":
        return f"{status['name']} waits for its turn"
    if status["state"] != "running":
        at = f" at step {status['done']} of {status['total']}" if status["phase"] == "training" and status["total"] else ""
        state = "stopped" if status["state"] == "cancelled" else status["state"]
        return f"{status['name']}: {state}{at if state != 'finished' else ''}"
    phase = status["phase"] or "starting"
    if phase == "publishing":  # counted in bytes
        return f"{status['name']}: writing the model"
    unit = {"training": "step", "class images": "class images", "preparing": "pictures"}.get(status["phase"], phase)
    count = f"{unit} {status['done']} of {status['total']}" if status["total"] else f"{phase} ..."
    return f"{status['name']}: {count}"


def _goes_on(run: RunFolder | None, status: dict[str, Any]) -> str:
    """Where a run that was stopped goes on."""
    is_stopped = status["state"] == "cancelled" and status["message"] == KEPT and status["phase"] != "comparing"
    return "; Resume, in Runs, goes on with it" if is_stopped and run and run.state().state == "interrupted" else ""


def _outcome(job: Job, status: dict[str, Any], lora_dir: Path, goes_on: str) -> str:
    if status["state"] == "running" and job.progress.cancelled:
        return html.note(f"Stopping, as asked by {job.stopped_by or STOPPED_BY_HOST} ...", "warning")
    if status["state"] == "running":
        return html.note(status["text"])
    if status["state"] == "cancelled":
        return html.note(f"Stopped by {job.stopped_by or STOPPED_BY_HOST}: {status['message']}{goes_on}.", "warning")
    if status["state"] == "failed":
        return html.note(status["message"], "fault")
    if status["state"] == "finished":
        published = _published(job)
        names = ", ".join(path.name for path in published)
        folder = "LoRA" if any(lora_dir.resolve() in path.resolve().parents for path in published) else "models"
        warnings = "\n".join(line for line in job.log if NOT_SELECTED in line)
        selected = ", and selected" if any(line.endswith(IS_SELECTED) for line in job.log) else ""
        return html.note(f"{names} is in the {folder} folder{selected}." if names else "Finished.", "good") + html.note(
            "\n".join(filter(None, [status["message"], warnings])), "warning")
    return ""


STOPPED_BY_HOST = "the WebUI's Interrupt"
IS_SELECTED = " is selected."  # how a WebUI tells of its success
NOT_SELECTED = " is to be selected: "  # how a host's refusal begins


def _stop(service: Service, job_id: str, *, discard: bool = False) -> str:
    """Stop the running job, if it is the one that is named: another may have begun since it was shown or asked about."""
    job = service.jobs.running
    if job is not None and job_id != job.id:
        return status_html(service, f"Nothing was stopped: what this page showed has ended, and {job.name} is running since.")
    if job is None or not service.stop(job.id, "this tab", discard=discard):
        return status_html(service, "Nothing is running.")
    return status_html(service)


def _ask_to_discard(service: Service) -> list[Any]:
    """Hours of training are not thrown away by one click."""
    job = service.jobs.running
    if job is None:
        return [status_html(service, "Nothing is running."), gr.update(visible=False), "", ""]
    told = "deleted, with all that it has learnt so far" if _trains(job) else "stopped"
    return [gr.update(), gr.update(visible=True), html.note(f"{job.name} is {told}.", "warning"), job.id]


def _trains(job: Job) -> bool:
    return isinstance(job.work, Work) and not job.work.only_reads


def _request(service: Service, wish: str) -> str:
    taken = service.request(wish)
    return status_html(service, f"A {wish} comes with the next step." if taken else "Nothing is running.")


def _open_folder(service: Service) -> str:
    run = run_of(service, service.shown_job())
    folder = run.path if run is not None and run.path.is_dir() else service.host.runs_dir
    if service.is_shared:  # whoever presses it may sit elsewhere, and is not to learn this computer's paths
        return status_html(service, "The folder can be opened only on the computer itself.")
    try:
        desktop.open_folder(folder)
    except DreamboothError as error:
        return status_html(service, f"{error.why[:1].upper()}{error.why[1:]}. {error.instead}")
    return status_html(service, f"Opened {folder}")


def _log(job: Job | None) -> str:
    lines = list(job.log)[-LOG_LINES_SHOWN:] if job else []
    return '<pre class="dreambooth-log">' + html.escaped("\n".join(lines)) + "</pre>"


def _mark(path: Path) -> Any:
    try:
        status = path.stat()
    except OSError:
        return None
    return [path.name, status.st_mtime_ns, status.st_size]
