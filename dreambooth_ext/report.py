"""A run's report: one HTML file that needs nothing else, and one zip that explains a failure.

Everything that came from outside (names, prompts, captions, log lines) is escaped; paths of the machine are left out
unless asked for.
"""

from __future__ import annotations

import json
import platform
import sys
import time
import zipfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from . import __version__
from . import report_sections as sections
from .config import PATHS, TrainConfig
from .files import write_atomically
from .options import options_of
from .run_folder import RunFolder

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "gradio", "Pillow", "numpy")
PROMPT_OPTIONS = ("token", "class_noun", "instance_prompt", "class_prompt", "class_negative_prompt", "preview_prompts")


def write_report(run: RunFolder, *, with_paths: bool = False) -> Path:
    """Write RUN/report.html and return its path."""
    path = run.path / "report.html"
    with write_atomically(path, "w") as stream:
        stream.write(report_html(run, with_paths=with_paths))
    return path


def report_html(run: RunFolder, *, with_paths: bool = False) -> str:
    """The report as one self-contained page."""
    config, state = run.config(), run.state()
    message = state.message if with_paths else _without(state.message, _paths_of(config, run))
    why, _, instead = message.partition("\n")
    facts = [("state", state.state), ("message", why), ("what to do", instead), ("steps", f"{state.step} of {state.steps}"),
             ("started", _date(state.started_s)), ("last change", _date(state.updated_s))]
    parts = {
        "Which snapshot": sections.grid(run), "Previews of training": sections.timeline(run, list(config.shown_prompts)),
        "Curves": sections.curves(run), "Pictures": sections.pictures(run), "Where it came from": sections.provenance(run, config),
        "Time and memory": sections.took(run),
        "Settings": sections.table(_settings(config, with_paths=with_paths, with_prompts=True)),
        "Versions": sections.table(versions().items()),
    }
    title = sections.escaped(run.path.name)
    body = [f"<h1>{title}</h1>", sections.table(facts), *(f"<h2>{name}</h2>{part}" for name, part in parts.items())]
    return _PAGE.format(title=title, body="\n".join(body))


def explain_failure(run: RunFolder, destination: Path, *, with_paths: bool = False, with_prompts: bool = False) -> Path:
    """One zip with log, state, settings, figures and versions; paths and prompts are redacted unless asked for."""
    config = run.config()
    hidden = [] if with_paths else _paths_of(config, run)
    hidden += [] if with_prompts else _texts(config, PROMPT_OPTIONS)
    settings = dict(_settings(config, with_paths=with_paths, with_prompts=with_prompts))
    state = json.dumps(run.state().__dict__, indent=2)
    parts = {"log.txt": _without(run.log_text(), hidden), "state.json": _without(state, hidden),
             "settings.json": json.dumps(settings, indent=2), "versions.json": json.dumps(versions(), indent=2),
             "metrics.jsonl": "".join(json.dumps(entry) + "\n" for entry in run.metrics())}
    with write_atomically(destination) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in parts.items():
            archive.writestr(name, text)
    return destination


def versions() -> dict[str, str]:
    """Ours, Python's, the system's, and those of the libraries that matter."""
    found = {"dreambooth_ext": __version__, "python": sys.version.split()[0], "system": platform.system()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _settings(config: TrainConfig, *, with_paths: bool, with_prompts: bool) -> list[tuple[str, str]]:
    rows = []
    for number, owner in enumerate((config, *config.concepts)):
        for option in options_of(type(owner)):
            value = getattr(owner, option.name)
            if value and option.name in PATHS and not with_paths:
                value = Path(value).name if with_prompts else "<redacted>"
            if value and option.name in PROMPT_OPTIONS and not with_prompts:
                value = "<redacted>"
            name = option.name if owner is config else f"concept {number}: {option.name}"
            rows.append((name, ", ".join(value) if isinstance(value, tuple) else str(value)))
    return rows


def _texts(config: TrainConfig, names: Iterable[str]) -> list[str]:
    values = [getattr(owner, name) for owner in (config, *config.concepts) for name in names if hasattr(owner, name)]
    flat = [text for value in values for text in (value if isinstance(value, tuple) else (value,))]
    return [text for text in flat if len(text) > 2]


def _paths_of(config: TrainConfig, run: RunFolder) -> list[str]:
    """Folders of this machine that a message or the log may name, also as they are written out in full."""
    usual = {TrainConfig.models_dir, TrainConfig.runs_dir}  # words that stand in many a sentence and file name
    named = [*_texts(config, PATHS), str(run.path), str(run.path.parent)]
    written_out = [str(path) for text in named for path in (Path(text).expanduser(), Path(text).expanduser().resolve())]
    around = [str(Path(text).parent) for text in written_out if Path(text).parent != Path(text).parent.parent]
    return [text for text in (*named, *written_out, *around, str(Path.home())) if len(text) > 2 and text not in usual]


def _without(text: str, secrets: Iterable[str]) -> str:
    """The longest first, so that no part of one is left; also as JSON writes them, and as Python names Windows' paths in errors."""
    for secret in sorted(set(secrets), key=len, reverse=True):
        for written in (secret, secret.replace("\\", "\\\\")):
            text = text.replace(json.dumps(written)[1:-1], "<redacted>").replace(written, "<redacted>")
    return text


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else ""


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
h1 {{ font-size: 1.6rem; }} h2 {{ font-size: 1.15rem; margin-top: 2rem; border-bottom: 1px solid #ddd; }}
table {{ border-collapse: collapse; }} th {{ text-align: left; font-weight: 500; padding-right: 1.5rem; color: #555; }}
td {{ overflow-wrap: anywhere; }} th, td {{ vertical-align: top; padding-block: .1rem; }}
.pictures {{ display: flex; flex-wrap: wrap; gap: .6rem; }} figure {{ margin: 0; }}
figcaption {{ font-size: .75rem; color: #666; }} img {{ image-rendering: auto; border-radius: 4px; }}
svg {{ width: 100%; max-width: 46rem; height: auto; color: #2563eb; }} svg.dreambooth-shares {{ color: inherit; }}
h3 {{ font-size: 1rem; font-weight: 500; margin-bottom: .2rem; }}
.wide {{ overflow-x: auto; }} .grid th, .grid td {{ padding: .2rem .4rem .2rem 0; font-size: .85rem; max-width: 12rem; }}
.grid img {{ display: block; width: 128px; }}
@media (prefers-color-scheme: dark) {{ body {{ background: #18181b; color: #e4e4e7; }} th, figcaption {{ color: #a1a1aa; }}
h2 {{ border-color: #3f3f46; }} svg {{ color: #60a5fa; }} }}
@media print {{ .wide {{ overflow: visible; }} }}
</style></head><body>
{body}
</body></html>
"""
