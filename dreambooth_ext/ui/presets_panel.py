"""Presets: a set of settings under a name, and settings of other trainers read in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from .. import presets
from ..errors import ConfigError, DreamboothError
from ..service import Service
from . import fields, html
from .compat import on, uploads


class PresetsPanel:
    """Lay it out inside Advanced; `wire` needs all the widgets."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._folder = service.presets_dir
        with gr.Row():
            self.name = gr.Dropdown(label="Preset", choices=presets.names(self._folder), value=None, interactive=True,
                                    elem_id="dreambooth_preset", info="A set of settings under a name.")
            self.apply = gr.Button("Apply", size="sm", scale=0, elem_id="dreambooth_preset_apply")
            self.remove = gr.Button("Remove", size="sm", scale=0, elem_id="dreambooth_preset_remove")
        with gr.Row():
            # A field of its own: a name typed into a list is lost in some of gradio's versions.
            self.new_name = gr.Textbox(label="New preset", max_lines=1, elem_id="dreambooth_preset_name", interactive=True,
                                       info="Keeps what differs from the defaults, without what belongs to one run.")
            self.save = gr.Button("Save as", size="sm", scale=0, elem_id="dreambooth_preset_save")
            self.imported = gr.UploadButton("Import ...", size="sm", scale=0, elem_id="dreambooth_import")
        self.said = gr.HTML(value="", elem_id="dreambooth_preset_said", elem_classes=["dreambooth-said"])

    def wire(self, widgets: Mapping[str, Any]) -> None:
        names, components = list(widgets), list(widgets.values())
        on(self.apply.click, lambda name: self._applied(names, name), [self.name], [*components, self.said])
        on(self.save.click, fields.with_values(widgets, self._saved), [self.new_name, *components], [self.name, self.said])
        on(self.remove.click, self._removed, [self.name], [self.name, self.said])
        on(self.imported.upload, lambda files: self._read(names, files), [self.imported], [*components, self.said])

    def listed(self, **changes: Any) -> Any:
        """The list with the presets there are now: other pages save and remove some, too."""
        return gr.update(choices=presets.names(self._folder), **changes)

    def _applied(self, names: list[str], name: str | None) -> list[Any]:
        try:
            values = presets.load(name or "", self._folder)
        except DreamboothError as error:
            return self._unchanged(names, str(error))
        said = html.note(f"{name}: {len(values)} settings are set.", "good")
        return [*fields.updates(names, values), said]

    def _saved(self, name: str | None, values: Mapping[str, Any]) -> list[Any]:
        try:
            path = presets.save(name or "", self._service.settings(values), self._folder)
        except DreamboothError as error:
            return [gr.update(), html.note(str(error), "fault")]
        return [self.listed(value=path.stem),
                html.note(f"Saved as {path.stem}: what differs from the defaults, without what belongs to one run.", "good")]

    def _removed(self, name: str | None) -> list[Any]:
        try:
            presets.delete(name or "", self._folder)
        except DreamboothError as error:
            return [gr.update(), html.note(str(error), "fault")]
        return [self.listed(value=None), html.note(f"The preset {name} is gone.", "good")]

    def _read(self, names: list[str], files: Any) -> list[Any]:
        from ..other_trainers import import_settings

        try:
            given = uploads(files)
            if not given:
                raise ConfigError(["no file was chosen"])
            imported = import_settings(Path(given[0]), look_within=False)  # which not everybody may
        except DreamboothError as error:
            return self._unchanged(names, str(error))
        concepts = imported.settings.get("concepts") or [{}]
        values = {**concepts[0], **imported.settings}
        said = html.note(f"{len(imported.settings)} settings were taken, {len(imported.not_taken)} were not.", "good")
        said += fields.first_alone(len(concepts)) + html.listed("What was not taken", imported.not_taken)
        return [*fields.updates(names, values), said]

    @staticmethod
    def _unchanged(names: list[str], why: str) -> list[Any]:
        return [*fields.updates(names, {}), html.note(why, "fault")]
