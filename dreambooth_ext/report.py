"""A run's report: one HTML file that needs nothing else, and one zip that explains a failure.

Everything that came from outside (names, prompts, captions, log lines) is escaped; paths of the machine are left out
unless asked for.
"""

from __future__ import annotations

import base64
import html
import io
import json
import platform
import sys
import zipfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from . import __version__
from .config import TrainConfig
from .files import gib, write_atomically
from .options import options_of
from .plot import curve
from .run_folder import RunFolder

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "gradio", "Pillow", "numpy")
PATH_OPTIONS = ("base", "vae", "models_dir", "runs_dir", "instance_dir", "class_dir", "choices")
PROMPT_OPTIONS = ("token", "class_noun", "instance_prompt", "class_prompt", "class_negative_prompt", "preview_prompts")
THUMBNAIL_PX = 160
PICTURES_SHOWN = 24


def write_report(run: RunFolder, *, with_paths: bool = False) -> Path:
    """Write RUN/report.html and return its path."""
    path = run.path / "report.html"
    with write_atomically(path, "w") as stream:
        stream.write(report_html(run, with_paths=with_paths))
    return path


def report_html(run: RunFolder, *, with_paths: bool = False) -> str:
    """The report as one self-contained page."""
    config, state, metrics = run.config(), run.state(), run.metrics()
    message = state.message if with_paths else _without(state.message, _paths_of(config, run))
    seconds = sum(entry.get("seconds", 0.0) for entry in metrics)
    published = ", ".join(Path(path).name for path in state.published) or "nothing yet"
    facts = [("state", state.state), ("message", message), ("steps", f"{state.step} of {state.steps}"),
             ("training time", f"{seconds:.0f} s"), ("published", published),
             ("base sha256", run.inputs().get("base", "unknown"))]
    sections = [
        f"<h1>{_escaped(run.path.name)}</h1>", _table(facts),
        "<h2>Loss</h2>", curve([(entry["step"], entry["loss"]) for entry in metrics if "loss" in entry]),
        "<h2>Pictures</h2>", _pictures(sorted(run.dataset_dir.rglob("*.png"))[:PICTURES_SHOWN]),
        "<h2>Previews</h2>", _pictures(sorted(run.previews_dir.glob("*.png"))[:200], named=True),
        "<h2>Settings</h2>", _table(_settings(config, with_paths=with_paths, with_prompts=True)),
        "<h2>Versions</h2>", _table(versions().items()),
    ]
    return _PAGE.format(title=_escaped(run.path.name), body="\n".join(sections))


def explain_failure(run: RunFolder, destination: Path, *, with_paths: bool = False, with_prompts: bool = False) -> Path:
    """One zip with log, state, settings, figures and versions; paths and prompts are redacted unless asked for."""
    config = run.config()
    hidden = [] if with_paths else _paths_of(config, run)
    hidden += [] if with_prompts else _texts(config, PROMPT_OPTIONS)
    settings = dict(_settings(config, with_paths=with_paths, with_prompts=with_prompts))
    log = run.log_path.read_text(encoding="utf-8", errors="replace") if run.log_path.is_file() else ""
    parts = {"log.txt": _without(log, hidden), "state.json": _without(json.dumps(run.state().__dict__, indent=2), hidden),
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


def size_of(run: RunFolder) -> str:
    return gib(sum(path.stat().st_size for path in run.path.rglob("*") if path.is_file()))


def _settings(config: TrainConfig, *, with_paths: bool, with_prompts: bool) -> list[tuple[str, str]]:
    rows = []
    for number, owner in enumerate((config, *config.concepts)):
        for option in options_of(type(owner)):
            value = getattr(owner, option.name)
            if value and option.name in PATH_OPTIONS and not with_paths:
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
    named = [*_texts(config, PATH_OPTIONS), str(run.path), str(run.path.parent)]
    written_out = [str(path) for text in named for path in (Path(text).expanduser(), Path(text).expanduser().resolve())]
    around = [str(Path(text).parent) for text in written_out if Path(text).parent != Path(text).parent.parent]
    return [text for text in (*named, *written_out, *around, str(Path.home())) if len(text) > 2]


def _without(text: str, secrets: Iterable[str]) -> str:
    """The longest first, so that no part of one is left; also as JSON writes them."""
    for secret in sorted(set(secrets), key=len, reverse=True):
        text = text.replace(secret, "<redacted>").replace(json.dumps(secret)[1:-1], "<redacted>")
    return text


def _pictures(paths: list[Path], named: bool = False) -> str:
    figures = []
    for path in paths:
        caption = f"<figcaption>{_escaped(path.stem)}</figcaption>" if named else ""
        source = _data_uri(path)
        if source:
            figures.append(f'<figure><img alt="{_escaped(path.stem)}" src="{source}">{caption}</figure>')
    return f'<div class="pictures">{"".join(figures)}</div>' if figures else "<p>None.</p>"


def _data_uri(path: Path) -> str:
    """Empty for what is no picture, too large, or a link to a picture elsewhere."""
    from PIL import Image

    if path.is_symlink():
        return ""
    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
            small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return ""
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _table(rows: Iterable[tuple[str, Any]]) -> str:
    cells = [f"<tr><th>{_escaped(name)}</th><td>{_escaped(value)}</td></tr>" for name, value in rows if value != ""]
    return f"<table>{''.join(cells)}</table>"


def _escaped(text: Any) -> str:
    return html.escape(str(text), quote=True)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
h1 {{ font-size: 1.6rem; }} h2 {{ font-size: 1.15rem; margin-top: 2rem; border-bottom: 1px solid #ddd; }}
table {{ border-collapse: collapse; }} th {{ text-align: left; font-weight: 500; padding-right: 1.5rem; color: #555; }}
td {{ overflow-wrap: anywhere; }} th, td {{ vertical-align: top; padding-block: .1rem; }}
.pictures {{ display: flex; flex-wrap: wrap; gap: .6rem; }} figure {{ margin: 0; }}
figcaption {{ font-size: .75rem; color: #666; }} img {{ image-rendering: auto; border-radius: 4px; }}
svg {{ width: 100%; height: auto; color: #2563eb; }}
</style></head><body>
{body}
</body></html>
"""
