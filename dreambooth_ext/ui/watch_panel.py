"""What is happening: bar, figures, curve, previews, log, and the buttons that act on the running job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from ..config import TrainConfig
from ..errors import DreamboothError
from ..jobs import Job
from ..plot import curve
from ..run_folder import RunFolder
from ..service import Service
from . import html
from .compat import hidden, on

LOG_LINES_SHOWN = 60
PREVIEWS_SHOWN = 60
SAMPLE_RESOLUTION = 512  # the guide's sample settings are for models of this size


@dataclass
class WatchPanel:
    """The right half. `refresh` is clicked by the script, once a second while a job runs."""

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
    with gr.Row(elem_classes=["dreambooth-buttons"]):
        stop = gr.Button("Stop and keep", elem_id="dreambooth_stop", size="sm")
        discard = gr.Button("Stop and discard", elem_id="dreambooth_discard", size="sm", variant="stop")
        preview = gr.Button("Preview now", elem_id="dreambooth_preview", size="sm")
        snapshot = gr.Button("Snapshot now", elem_id="dreambooth_snapshot", size="sm")
    plot = gr.HTML(value=curve([]), elem_id="dreambooth_curve")
    previews = gr.HTML(value="", elem_id="dreambooth_previews")
    with gr.Accordion("Log", open=False, elem_id="dreambooth_log_fold"):
        log = gr.HTML(value="", elem_id="dreambooth_log")
    if service.host.name != "standalone":
        gr.Checkbox(label="Open txt2img with the guide's sample settings: Euler a, 50 steps, CFG 7, 512x768", value=False,
                    elem_id="dreambooth_sample_settings", interactive=True)
    poll = hidden(gr.Button, "dreambooth_poll", value="refresh")
    panel = WatchPanel(status, plot, previews, log, poll, gr.State({}))
    on(poll.click, lambda seen: refresh(service, seen), [panel.seen], panel.outputs)
    for button, act in ((stop, lambda: _stop(service, discard=False)), (discard, lambda: _stop(service, discard=True)),
                        (preview, lambda: _request(service, "preview")),
                        (snapshot, lambda: _request(service, "snapshot"))):
        on(button.click, act, [], [status])
    return panel


def refresh(service: Service, seen: dict[str, Any]) -> list[Any]:
    """What the page does not show yet; unchanged parts are left alone, so that nothing flickers."""
    job = service.shown_job()
    run = run_of(service, job)
    marks = {"curve": _mark(run.metrics_path) if run else None,
             "previews": [_mark(path) for path in _previews(run)] if run else [],
             "log": [job.id, len(job.log), job.log[-1] if job.log else ""] if job else None}
    parts = {"curve": lambda: _curve(run), "previews": lambda: previews_html(run), "log": lambda: _log(job)}
    changed = [make() if seen.get(name) != marks[name] else gr.update() for name, make in parts.items()]
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
    body += html.note(said) + _outcome(job, status)
    waiting = [other.name for other in service.jobs.all() if other.state == "queued"]
    if waiting:
        body += html.note("Waiting: " + ", ".join(waiting))
    data = _for_script(job, run_of(service, job))
    if "published" in data:
        data["open"] = "yes" if service.open_txt2img and data["select"] == "yes" else "no"
        if service.host.name != "standalone":
            body += '<p><button class="dreambooth-open-txt2img">Open in txt2img</button></p>'
    return _framed(data, body)


def run_of(service: Service, job: Job | None) -> RunFolder | None:
    return RunFolder(service.host.runs_dir / job.name) if job is not None else None


def previews_html(run: RunFolder | None) -> str:
    """The latest previews: a row for each prompt, a column for each step, all of the same seed."""
    paths = _previews(run)
    if not paths:
        return ""
    rows: dict[str, list[Path]] = {}
    for path in paths:
        rows.setdefault(path.stem.rpartition("-")[2], []).append(path)
    assert run is not None
    prompts = prompts_of(run)
    body = ""
    for key in sorted(rows):
        title = prompts[int(key)] if key.isdigit() and int(key) < len(prompts) else ""
        cells = "".join(f"<figure>{html.picture(path, title)}<figcaption>step {step_of(path)}</figcaption></figure>"
                        for path in rows[key])
        body += f'<h4>{html.escaped(title)}</h4><div class="dreambooth-strip">{cells}</div>'
    return body


def prompts_of(run: RunFolder) -> list[str]:
    config = _config(run)
    if config is None:
        return []
    if config.preview_prompts:
        return list(config.preview_prompts)
    return [text for concept in config.concepts for text in (concept.instance_text, concept.class_texts[0])]


def _previews(run: RunFolder | None) -> list[Path]:
    if run is None or not run.previews_dir.is_dir():
        return []
    return sorted(run.previews_dir.glob("step-*.png"))[-PREVIEWS_SHOWN:]


def step_of(path: Path) -> int:
    """step-000100-0.png, step-000100: 100."""
    number = path.stem.split("-")[1] if "-" in path.stem else ""
    return int(number) if number.isdigit() else 0


def _framed(data: dict[str, str], body: str) -> str:
    attributes = " ".join(f'data-{name}="{html.escaped(value, quote=True)}"' for name, value in data.items())
    return f'<div class="dreambooth-status" {attributes} aria-live="polite">{body}</div>'


def _for_script(job: Job, run: RunFolder | None) -> dict[str, str]:
    """What the page's script needs: whether to poll on, and what to hand over to txt2img at the end."""
    data = {"state": job.state, "job": job.id, "name": job.name}
    published = _published(job)
    config = _config(run)
    if published and config is not None:
        data["published"] = published[0].name
        data["prompt"] = config.concepts[0].instance_text.replace("[filewords]", "").strip()
        data["select"] = "yes" if config.auto_select else "no"
        data["samples"] = "yes" if config.resolution == SAMPLE_RESOLUTION and not config.lora_rank else "no"
        if config.lora_rank:
            data["prompt"] += f" <lora:{published[0].stem}:1>"
    return data


def _published(job: Job) -> list[Path]:
    """The model files that a finished job has written, the selected one first."""
    paths = getattr(job.result, "published", job.result)
    return [Path(path) for path in paths] if job.state == "finished" and isinstance(paths, (list, tuple)) else []


def _config(run: RunFolder | None) -> TrainConfig | None:
    try:
        return run.config() if run is not None and run.exists else None
    except DreamboothError:
        return None


def _label(status: dict[str, Any]) -> str:
    if status["state"] == "queued":
        return f"{status['name']} waits for its turn"
    if status["state"] != "running":
        return f"{status['name']}: {'stopped' if status['state'] == 'cancelled' else status['state']}"
    phase = status["phase"] or "starting"
    if phase == "publishing":  # counted in bytes
        return f"{status['name']}: writing the model"
    unit = {"training": "step", "class images": "class images", "preparing": "pictures"}.get(status["phase"], phase)
    count = f"{unit} {status['done']} of {status['total']}" if status["total"] else f"{phase} ..."
    return f"{status['name']}: {count}"


def _outcome(job: Job, status: dict[str, Any]) -> str:
    if status["state"] == "running" and job.progress.cancelled:
        return html.note(f"Stopping, asked by {job.stopped_by or STOPPED_BY_HOST} ...", "warning")
    if status["state"] == "running":
        return html.note(status["text"])
    if status["state"] == "cancelled":
        return html.note(f"Stopped by {job.stopped_by or STOPPED_BY_HOST}: {status['message']}", "warning")
    if status["state"] == "failed":
        return html.note(status["message"], "fault")
    if status["state"] == "finished":
        names = ", ".join(path.name for path in _published(job))
        warnings = "\n".join(line for line in job.log if NOT_SELECTED in line)
        return html.note(f"{names} is in the models folder." if names else "Finished.", "good") + html.note(
            warnings, "warning")
    return ""


STOPPED_BY_HOST = "the WebUI's Interrupt"
NOT_SELECTED = " is to be selected: "  # how a host's refusal begins


def _stop(service: Service, *, discard: bool) -> str:
    job = service.jobs.running
    if job is None or not service.stop(job.id, "this tab", discard=discard):
        return status_html(service, "Nothing is running.")
    return status_html(service)


def _request(service: Service, wish: str) -> str:
    taken = service.request(wish)
    return status_html(service, f"A {wish} comes with the next step." if taken else "Nothing is running.")


def _curve(run: RunFolder | None) -> str:
    points = [(entry["step"], entry["loss"]) for entry in (run.metrics() if run else []) if "loss" in entry]
    return curve(points)


def _log(job: Job | None) -> str:
    lines = list(job.log)[-LOG_LINES_SHOWN:] if job else []
    return '<pre class="dreambooth-log">' + html.escaped("\n".join(lines)) + "</pre>"


def _mark(path: Path) -> Any:
    try:
        status = path.stat()
    except OSError:
        return None
    return [path.name, status.st_mtime_ns, status.st_size]
