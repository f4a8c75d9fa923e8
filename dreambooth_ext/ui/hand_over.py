"""Reaching into the WebUI's own page: its checkpoint list shows the new model, txt2img takes the guide's settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import gradio as gr

from .compat import hidden, is_building, on_script

if TYPE_CHECKING:
    from ..host import Host

# The guide's sample settings for models of 512 px.
SAMPLE_SETTINGS: dict[str, Any] = {
    "txt2img_sampling": "Euler a", "txt2img_steps": 50, "txt2img_cfg_scale": 7.0, "txt2img_width": 512,
    "txt2img_height": 768,
}
LAST_OF_TXT2IMG = "txt2img_gallery"  # built after all its inputs


class HandOver:
    """Sees each component of the page while it is built, and attaches hidden buttons that our script clicks."""

    def __init__(self, host: Callable[[], Host]) -> None:
        self._host = host
        self._samples: dict[str, Any] = {}

    def after_component(self, component: Any, **arguments: Any) -> None:
        """To be called for every component (script_callbacks.on_after_component)."""
        if not is_building():
            return
        name = arguments.get("elem_id") or ""
        if name == "setting_sd_model_checkpoint" or _is_forge_dropdown(arguments):
            button = hidden(gr.Button, "dreambooth_refresh_checkpoint", value="refresh")
            on_script(button, self._choices, [], [component])
        elif name in SAMPLE_SETTINGS:
            self._samples[name] = component
        elif name == LAST_OF_TXT2IMG and self._samples:
            button = hidden(gr.Button, "dreambooth_apply_sample_settings", value="apply")
            names = list(self._samples)
            on_script(button, lambda: [SAMPLE_SETTINGS[name] for name in names], [], list(self._samples.values()))
            self._samples = {}

    def _choices(self) -> Any:
        found = self._host().checkpoints()
        loaded = next((checkpoint.title for checkpoint in found if checkpoint.loaded), None)
        return gr.update(choices=[checkpoint.title for checkpoint in found], **({"value": loaded} if loaded else {}))


def _is_forge_dropdown(arguments: Mapping[str, Any]) -> bool:
    return arguments.get("label") == "Checkpoint" and "model_selection" in (arguments.get("elem_classes") or [])
