"""A run's previews: a row for each prompt, from its first step to its newest; all pictures of a row have the same seed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TypeVar

from ..config import TrainConfig
from ..errors import DreamboothError
from ..run_folder import RunFolder, step_in
from . import html

T = TypeVar("T")
COLUMNS = 20  # of a row; of more previews, evenly many are left out between the first and the newest
ENLARGED_PX = 768


def timeline_html(run: RunFolder | None) -> str:
    """Every row of the timeline; empty without previews."""
    rows = _rows(run)
    if run is None or not rows:
        return ""
    prompts, body = prompts_of(run), ""
    for number in sorted(rows):
        paths = rows[number]
        shown = spread(paths)
        title = prompts[number] if number < len(prompts) else f"prompt {number + 1}"
        left_out = len(paths) - len(shown)
        count = f'<small>{len(paths)} previews, {left_out} of them not shown</small>' if left_out else ""
        cells = "".join(f'<figure>{_thumbnail(run, path, title)}<figcaption>{_when(path)}</figcaption></figure>' for path in shown)
        body += (f'<h4>{html.escaped(title)} {count}</h4><div class="dreambooth-strip" tabindex="0" role="group" '
                 f'aria-label="{html.escaped(title)}">{cells}</div>')
    return body


def _thumbnail(run: RunFolder, path: Path, title: str) -> str:
    """It names its run: by the time of a click another one may have begun, which has pictures of the same names."""
    return html.picture(path, f"{title}, step {step_of(path)}", html.THUMBNAIL_PX, file=f"{run.path.name}/{path.name}")


def enlarged_html(run: RunFolder | None, name: str) -> str:
    """One preview as large as it is; nothing if the run has none of that name."""
    path = next((path for path in previews(run) if path.name == name), None)
    if run is None or path is None:
        return ""
    prompts, number = prompts_of(run), prompt_of(path)
    title = prompts[number] if number < len(prompts) else ""
    return (f'<figure class="dreambooth-enlarged">{html.picture(path, title, ENLARGED_PX)}'
            f"<figcaption>{html.escaped(title)}, {_when(path)}</figcaption></figure>")


def prompts_of(run: RunFolder) -> list[str]:
    """The prompts of a run's previews, in their order; empty if its settings cannot be read."""
    config = config_of(run)
    if config is None:
        return []
    return list(config.shown_prompts)


def config_of(run: RunFolder | None) -> TrainConfig | None:
    try:
        return run.config() if run is not None and run.exists else None
    except DreamboothError:
        return None


def previews(run: RunFolder | None) -> list[Path]:
    """All of them, in order of steps."""
    return [] if run is None else sorted(run.previews(), key=lambda path: (step_of(path), path.name))


def step_of(path: Path) -> int:
    """step-000100-0.png: 100."""
    return step_in(path.name) or 0


def prompt_of(path: Path) -> int:
    """step-000100-2.png: 2."""
    number = path.stem.rpartition("-")[2]
    return int(number) if number.isdecimal() else 0


def _when(path: Path) -> str:
    step = step_of(path)
    return f"step {step}" if step else "before training"


def _rows(run: RunFolder | None) -> dict[int, list[Path]]:
    rows: dict[int, list[Path]] = {}
    for path in previews(run):
        rows.setdefault(prompt_of(path), []).append(path)
    return rows


def spread(paths: list[T]) -> list[T]:
    """At most COLUMNS of them. Which ones are left out changes rarely as more come, so that thumbnails are made once."""
    stride = max(1, math.ceil((len(paths) - 1) / (COLUMNS - 1)))
    stride = 1 << (stride - 1).bit_length()
    kept = paths[::stride]
    return kept if kept[-1] == paths[-1] else [*kept, paths[-1]]
