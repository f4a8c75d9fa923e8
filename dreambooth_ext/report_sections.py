"""The parts of a run's report as HTML: pictures, timeline, grid, curves, where everything came from, what it took."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .comparison import BASE, Column, percent, read_comparison
from .config import TrainConfig
from .files import DAMAGED, gib, size_of
from .ledger import read_ledger
from .plot import curve
from .run_folder import RunFolder
from .share_plot import measures
from .words import counted, duration

THUMBNAIL_PX = 160
PICTURES_SHOWN = 24
STEPS_SHOWN = 20  # columns of the timeline: the first, the last, and some between


def escaped(text: Any) -> str:
    return html.escape(str(text), quote=True)


def table(rows: Iterable[tuple[str, Any]]) -> str:
    cells = [f"<tr><th>{escaped(name)}</th><td>{escaped(value)}</td></tr>" for name, value in rows if value != ""]
    return f"<table>{''.join(cells)}</table>"


def took(run: RunFolder) -> str:
    """Seconds by phase, pace and memory."""
    known, times = read_ledger(run), [entry["seconds"] for entry in run.metrics() if "seconds" in entry]
    rows: list[tuple[str, Any]] = [(phase, duration(seconds)) for phase, seconds in known["seconds"].items()]
    if times:
        rows.append(("a step", f"{sorted(times)[len(times) // 2]:.3g} s (median of {len(times)})"))
    memory = known["memory_gib"]
    rows.append(("most memory of the GPU", f"{memory:.1f} GiB" if memory else "no GPU was used, or none was measured"))
    return table([*rows, ("the run's folder", gib(size_of(run.path)))])


def curves(run: RunFolder) -> str:
    """Loss and validation loss, and the learning rate, by step."""
    metrics = run.metrics()

    def points(name: str) -> list[tuple[float, float]]:
        return [(entry["step"], entry[name]) for entry in metrics if name in entry]

    rate = points("lr")
    parts = ["<h3>Loss</h3>", curve(points("loss"), validation=points("validation_loss"))]
    if len(rate) > 1:
        parts += ["<h3>Learning rate</h3>", curve(rate, "learning rate", smoothing=0.0)]
    return "".join(parts)


def pictures(run: RunFolder) -> str:
    """What it learnt from, as it was trained."""
    paths = run.prepared()
    more = f"<p>{len(paths) - PICTURES_SHOWN} more are not shown.</p>" if len(paths) > PICTURES_SHOWN else ""
    figures = "".join(f"<figure>{shown}</figure>" for path in paths[:PICTURES_SHOWN] if (shown := picture(path, path.stem)))
    return f'<div class="pictures">{figures}</div>{more}' if figures else "<p>None.</p>"


def timeline(run: RunFolder, prompts: list[str]) -> str:
    """Previews of training: a row for each prompt, a column for each step."""
    found: dict[str, dict[int, Path]] = {}
    for path in run.previews():
        _, step, number = (*path.stem.split("-", 2), "")[:3]
        if step.isdecimal():
            found.setdefault(number, {})[int(step)] = path
    steps = _some(sorted({step for row in found.values() for step in row}))
    rows = []
    for number in sorted(found):
        title = prompts[int(number)] if number.isdecimal() and int(number) < len(prompts) else number
        cells = [picture(found[number][step], f"step {step}") if step in found[number] else "" for step in steps]
        rows.append((title, cells))
    return _grid([("base" if step == 0 else f"step {step}") for step in steps], rows)


def grid(run: RunFolder) -> str:
    """The comparison of snapshots, if one was made."""
    found = read_comparison(run)
    if found is None:
        return "<p>No comparison was made. Choose, or <code>compare</code> on the command line, makes one.</p>"
    rows = [(prompt, [picture(found.path(run, column.name, number, found.seeds[0]), column.name) for column in found.columns])
            for number, prompt in enumerate(found.prompts)]
    best = found.best
    chosen = f"<p>{escaped(found.why)}</p>" if best else ""
    return chosen + measures(found) + _grid([_title(column, best) for column in found.columns], rows)


def provenance(run: RunFolder, config: TrainConfig) -> str:
    """Which base, VAE, pictures and class images it came from, and what came of it."""
    inputs, state = run.inputs(), run.state()
    rows: list[tuple[str, Any]] = [("base", f"{Path(config.base).name}, sha256 {inputs.get('base', 'unknown')}")]
    if "vae" in inputs:
        rows.append(("VAE", f"{Path(config.vae).name}, sha256 {inputs['vae']}"))
    files = [name for name in inputs if "/" in name and not name.endswith("/choices")]
    captions = sum(name.endswith(".txt") for name in files)
    rows.append(("pictures", f"{len(files) - captions}, and {counted(captions, 'caption')}; each sha256 is in inputs.json"))
    rows += [(f"class images of concept {index}", told) for index, told in enumerate(_class_images(run), start=1)]
    audit = _json(run.audit_path).get("concepts")
    rows += [("audit", str(entry["summary"])) for entry in audit if isinstance(entry, dict) and "summary" in entry] \
        if isinstance(audit, list) else []
    rows.append(("published", ", ".join(Path(path).name for path in state.published) or "nothing yet"))
    return table(rows)


def picture(path: Path, alt: str) -> str:
    """An <img> that carries its data; empty for what is no picture, too large, or a link to a picture elsewhere."""
    from PIL import Image

    from .dataset.pictures import jpeg_uri

    if path.is_symlink():
        return ""
    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
            small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    except (*DAMAGED, Image.DecompressionBombError):
        return ""
    return f'<img alt="{escaped(alt)}" src="{jpeg_uri(small, 88)}">'


def _class_images(run: RunFolder) -> list[str]:
    """For each concept: how many, and of which prompts."""
    prior = _json(run.dataset_dir / "manifest.json").get("prior")
    by_concept: dict[int, list[Mapping[str, Any]]] = {}
    for entry in prior if isinstance(prior, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("concept", 0), int):
            by_concept.setdefault(entry.get("concept", 0), []).append(entry)
    told = []
    for _, entries in sorted(by_concept.items()):
        prompts = sorted({str(entry.get("prompt", "")) for entry in entries})
        told.append(f'{len({str(entry.get("sha256")) for entry in entries})} of "{" | ".join(prompts)}"')
    return told


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _some(steps: list[int]) -> list[int]:
    if len(steps) <= STEPS_SHOWN:
        return steps
    return [steps[round(index * (len(steps) - 1) / (STEPS_SHOWN - 1))] for index in range(STEPS_SHOWN)]


def _grid(heads: list[str], rows: list[tuple[str, list[str]]]) -> str:
    if not rows:
        return "<p>None.</p>"
    head = "".join(f"<th>{text}</th>" for text in heads)
    body = "".join(f"<tr><th>{escaped(title)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" for title, cells in rows)
    return f'<div class="wide"><table class="grid"><tr><td></td>{head}</tr>{body}</table></div>'


def _title(column: Column, best: Column | None) -> str:
    if column.name == BASE:
        return "base"
    pairs = (("near", column.nearness), ("drift", column.drift))
    told = [f"{word} {percent(value)}" for word, value in pairs if value is not None]
    return "<br>".join([f"step {column.step}{' (best)' if column == best else ''}", *told])

