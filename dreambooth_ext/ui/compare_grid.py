"""The grid of Choose: rows are prompts, columns the base and the snapshots; above them the measures, below the buttons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..comparison import BASE, SUBJECT, Column, Comparison, folder_of, percent, read_comparison, step_of_snapshot
from ..errors import DreamboothError
from ..jobs import Job
from ..run_folder import RunFolder
from ..service import Service
from ..share_plot import DRIFT, NEAR, measures
from ..words import as_webui_reads
from . import html
from .timeline import COLUMNS, prompt_of, prompts_of, spread, step_of

SMALL_PX = 56
SMALL_SHOWN = 6  # further seeds under each picture
PUBLISH_HINT = "a click on a picture publishes its snapshot"
EXPLAINED = (
    "Nearness: 0 % is what the base makes of the same prompts and seeds, 100 % as like the subject's pictures as a picture can "
    "be like all of them. Drift: 0 % is the base's own pictures of the class, 100 % as different from them as other seeds are. "
    "Both are seen by the base's own network, on few pictures: let your eyes decide.")


def grid_html(service: Service, name: str) -> str:
    """The comparison if there is one, else the previews of training."""
    if not name:
        return html.note("No run yet. A run's snapshots stand here side by side, of one seed, so that the best can be picked.")
    try:
        run = service.run(name)
        kept = service.snapshots(run)
    except DreamboothError as error:
        return html.note(str(error), "fault")
    found = read_comparison(run)
    if found is not None:
        return _compared(run, found, kept)
    hint = html.note("Below are the previews that training made. Compare renders the prompts that you choose with the base "
                     "and with each snapshot, measures them, and says which one is best.") if kept else ""
    return hint + _previews(run, kept)


def mark_of(service: Service, run: RunFolder) -> Any:
    """Changes whenever the grid would."""
    def of(folder: Path) -> list[Any]:
        try:
            paths = list(folder.iterdir())
            return [folder.name, len(paths), max((path.stat().st_mtime_ns for path in paths), default=0)]
        except OSError:
            return []

    folder = folder_of(run)
    columns = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    return [of(folder), [of(column) for column in columns], of(run.previews_dir), service.snapshots(run)]


def is_comparing(job: Job) -> bool:
    return job.last.phase == "comparing"


def _compared(run: RunFolder, found: Comparison, kept: list[str]) -> str:
    best = found.best
    rows = []
    for number, prompt in enumerate(found.prompts):
        cells = "".join(f"<td{_marked(column == best)}>{_cell(run, found, column, number, column.name in kept)}</td>"
                        for column in found.columns)
        kind = "shows the subject" if found.kinds[number] == SUBJECT else "shows the class"
        rows.append(f'<tr><th scope="row">{html.escaped(prompt)}<small>{kind}</small></th>{cells}</tr>')
    head = "".join(f'<th scope="col"{_marked(column == best)}>{_head(column, column == best, column.name in kept)}</th>'
                   for column in found.columns)
    hint = f"<td><small>{html.escaped(PUBLISH_HINT)}</small></td>"
    table = (f'<div class="dreambooth-scroll"><table class="dreambooth-table dreambooth-compared"><thead><tr>{hint}{head}'
             f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div>")
    seeds = f"seed {found.seeds[0]}" if len(found.seeds) == 1 else f"seeds {found.seeds[0]} to {found.seeds[-1]}"
    how = f"{seeds}, {found.render_steps} steps, CFG {found.guidance_scale:g}, {found.side} px{_by(found.host)}"
    curve = f'<div class="dreambooth-scroll">{measures(found)}</div>'
    return html.note(found.why, "good") + curve + table + html.note(f"{how}. {EXPLAINED}", "small")


def _by(host: str) -> str:
    return f", by {host}" if host not in ("", "standalone") else ""


def _head(column: Column, is_best: bool, is_kept: bool) -> str:
    title = "base" if column.name == BASE else f"step {column.step}"
    badge = ' <span class="dreambooth-badge">best</span>' if is_best else ""
    lines = [f"{title}{badge}"]
    if column.name != BASE and column.nearness is not None:
        lines.append(f'<small title="{NEAR}">near {percent(column.nearness)}</small>')
    if column.name != BASE and column.drift is not None:
        lines.append(f'<small title="{DRIFT}">drift {percent(column.drift)}</small>')
    if column.name != BASE and not is_kept:
        lines.append("<small>no longer kept</small>")
    return "".join(lines)


def _marked(is_best: bool) -> str:
    return ' class="dreambooth-best"' if is_best else ""


def _cell(run: RunFolder, found: Comparison, column: Column, number: int, is_kept: bool) -> str:
    prompt = found.prompts[number]
    text = f"{prompt}, {'base' if column.name == BASE else f'step {column.step}'}"
    first, *rest = found.seeds
    large = html.picture(found.shown(run, column.name, number, first), f"{text}, seed {first}")
    small = "".join(html.picture(found.shown(run, column.name, number, seed), f"{text}, seed {seed}", SMALL_PX)
                    for seed in rest[:SMALL_SHOWN])
    if large and is_kept and column.name != BASE:
        data = {"snapshot": column.name, "prompt": as_webui_reads(prompt), "run": run.path.name}
        attributes = " ".join(f'data-{name}="{html.escaped(value)}"' for name, value in data.items())
        large = (f'<button class="dreambooth-cell dreambooth-shot" {attributes} '
                 f'aria-label="Publish step {column.step} and open it in txt2img">{large}</button>')
    return large + (f'<div class="dreambooth-seeds">{small}</div>' if small else "") if large else "&nbsp;"


def _previews(run: RunFolder, kept: list[str]) -> str:
    """Rows are prompts, columns are steps; each column whose snapshot is kept can be published."""
    cells: dict[tuple[int, int], Path] = {}
    for path in run.previews():
        cells[step_of(path), prompt_of(path)] = path
    if not cells:
        return html.note("This run has no previews.")
    all_steps, prompts = sorted({step for step, _ in cells}), prompts_of(run)
    names = {step_of_snapshot(name): name for name in kept}
    steps = spread(all_steps if len(all_steps) <= COLUMNS else [step for step in all_steps if step in (0, *names)] or all_steps)
    rows = []
    for number in sorted({number for _, number in cells}):
        title = prompts[number] if number < len(prompts) else ""
        row = [html.escaped(title)]
        row += [html.picture(cells[step, number], title) if (step, number) in cells else "" for step in steps]
        rows.append(row)
    rows.append(["", *(_button(run, names.get(step, "")) for step in steps)])
    left_out = len(all_steps) - len(steps)
    more = html.note(f"{left_out} more steps with previews are not shown here.", "small") if left_out else ""
    return more + html.table(("prompt", *("base" if step == 0 else f"step {step}" for step in steps)), rows)


def _button(run: RunFolder, snapshot: str) -> str:
    if not snapshot:
        return ""
    return (f'<button class="dreambooth-cell" data-snapshot="{html.escaped(snapshot)}" data-run="{html.escaped(run.path.name)}">'
            "Publish</button>")
