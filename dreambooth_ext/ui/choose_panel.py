"""Which snapshot is the best one: previews by snapshot and prompt, all of one seed; one click publishes a snapshot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from ..errors import DreamboothError
from ..run_folder import RunFolder
from ..service import Service
from . import html
from .compat import hidden, on
from .watch_panel import WatchPanel, prompts_of, status_html, step_of

BASE_COLUMN = 0  # previews of step 0 show what the base makes of the prompts


def build(service: Service, watch: WatchPanel) -> None:
    """Lay the grid out and wire its buttons."""
    with gr.Row():
        names = _names(service)
        chosen = gr.Dropdown(label="Run", choices=names, value=names[0] if names else None, interactive=True,
                             elem_id="dreambooth_choose_run")
        again = gr.Button("Refresh", elem_id="dreambooth_choose_refresh", scale=0, size="sm")
    grid = gr.HTML(value=grid_html(service, names[0] if names else ""), elem_id="dreambooth_choose_grid")
    with gr.Row():
        snapshot = gr.Dropdown(label="Snapshot", choices=[], interactive=True, elem_id="dreambooth_choose_snapshot",
                               info="A click on a column's button chooses and publishes it.")
        publish = gr.Button("Publish and open in txt2img", variant="primary", elem_id="dreambooth_choose_publish")
    said = gr.HTML(value="", elem_id="dreambooth_choose_said", elem_classes=["dreambooth-said"])
    cell = hidden(gr.Textbox, "dreambooth_choose_cell", label="chosen snapshot")
    act = hidden(gr.Button, "dreambooth_choose_act", value="publish")

    def shown(name: str | None) -> list[Any]:
        found = _snapshots(service, name or "")
        return [grid_html(service, name or ""), gr.update(choices=found, value=found[-1] if found else None)]

    on(again.click, lambda name: [gr.update(choices=_names(service)), *shown(name or _first(service))], [chosen],
       [chosen, grid, snapshot])
    on(chosen.change, shown, [chosen], [grid, snapshot])
    for button, source in ((publish, snapshot), (act, cell)):
        on(button.click, lambda name, which: _publish(service, name or _first(service), which), [chosen, source],
           [said, watch.status])


def grid_html(service: Service, name: str) -> str:
    """Rows are prompts, columns are steps; each column whose snapshot is kept can be published."""
    if not name:
        return html.note("Snapshots of a run stand here side by side, of one seed, so that the best can be picked.")
    try:
        run = service.run(name)
    except DreamboothError as error:
        return html.note(str(error), "fault")
    cells: dict[tuple[int, int], Path] = {}
    for path in run.previews_dir.glob("step-*.png") if run.previews_dir.is_dir() else ():
        cells[step_of(path), _prompt_number(path)] = path
    if not cells:
        return html.note("This run has no previews.")
    steps = sorted({step for step, _ in cells})
    prompts = prompts_of(run)
    kept = {step_of(Path(snapshot)): snapshot for snapshot in service.snapshots(run)}
    rows = []
    for number in sorted({number for _, number in cells}):
        title = prompts[number] if number < len(prompts) else ""
        row = [html.escaped(title)]
        row += [html.picture(cells[step, number], title) if (step, number) in cells else "" for step in steps]
        rows.append(row)
    rows.append(["", *(_button(kept.get(step, "")) for step in steps)])
    return html.table(("prompt", *("base" if step == BASE_COLUMN else f"step {step}" for step in steps)), rows)


def _button(snapshot: str) -> str:
    if not snapshot:
        return ""
    return f'<button class="dreambooth-cell" data-snapshot="{html.escaped(snapshot)}">Publish</button>'


def _publish(service: Service, name: str, snapshot: str | None) -> list[str]:
    if not name or not snapshot:
        return [html.note("Choose a run and one of its snapshots first.", "fault"), status_html(service)]
    try:
        step = step_of(Path(snapshot))
        job = service.publish(name, snapshot=snapshot, as_name=f"{service.run(name).config().output_name}-step{step}")
    except DreamboothError as error:
        return [html.note(str(error), "fault"), status_html(service)]
    return [html.note(f"Publishing {snapshot} of {job.name} ...", "good"), status_html(service)]


def _snapshots(service: Service, name: str) -> list[str]:
    try:
        run: RunFolder = service.run(name)
    except DreamboothError:
        return []
    return service.snapshots(run)


def _prompt_number(path: Path) -> int:
    number = path.stem.rpartition("-")[2]
    return int(number) if number.isdigit() else 0


def _names(service: Service) -> list[str]:
    return [row["name"] for row in service.runs()]


def _first(service: Service) -> str:
    return next(iter(_names(service)), "")
