"""Forge and its family as our host: what differs from AUTOMATIC1111's WebUI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import HostError
from .a1111 import A1111Host


class ForgeHost(A1111Host):
    """Forge loads lazily, by `forge_loading_parameters`, and manages memory itself.

    So what is selected and what is in memory differ until the next picture: "loaded" is what the next picture is rendered with.
    """

    name = "Forge"

    def _loaded_file(self) -> str | None:
        from modules import sd_models

        info = sd_models.model_data.forge_loading_parameters.get("checkpoint_info")
        return info.filename if info is not None else None

    def _in_memory(self) -> set[str]:
        from modules import sd_models

        info = getattr(sd_models.model_data.sd_model, "sd_checkpoint_info", None)
        return {info.filename} if info is not None else set()

    @staticmethod
    def _title(info: Any) -> str:
        """As `checkpoint_tiles` lists it: of another value the page's field makes nothing, and is empty."""
        from modules import sd_models, shared

        short = str(info.short_title)
        if shared.opts.data.get("sd_checkpoint_dropdown_use_short") and sd_models.checkpoint_aliases.get(short) is info:
            return short
        return str(info.name)

    @staticmethod
    def _prediction() -> str | None:
        from modules import shared

        objects = getattr(shared.sd_model, "forge_objects", None)
        predictor = getattr(getattr(getattr(objects, "unet", None), "model", None), "predictor", None)
        found = getattr(predictor, "prediction_type", None)
        return found if found in ("epsilon", "v_prediction") else None

    def _load_selected(self, vae: Path | None) -> None:
        """Load at once: a LoRA of the last txt2img can only be taken out of a model that is there. The settings name `vae`."""
        from modules import processing, sd_models
        from modules_forge import main_entry

        wanted = processing.need_global_unload
        main_entry.refresh_model_loading_parameters()
        try:
            _, loaded = sd_models.forge_model_reload()
        except ValueError as error:  # "Failed to recognize model type!"
            info = sd_models.model_data.forge_loading_parameters.get("checkpoint_info")
            raise HostError(f"{info.name if info is not None else 'a checkpoint'} is to render class images",
                            f"Forge does not know it: {error}", "Choose a base of full size, or turn off \"Keep the class as it "
                            "is\": then no class images are rendered.") from error
        if not loaded:  # else all weights would leave the device and come back for each batch
            processing.need_global_unload = wanted

    def _load_as_user_wants(self) -> None:
        from modules import sd_models
        from modules_forge import main_entry

        if sd_models.checkpoints_list:
            main_entry.refresh_model_loading_parameters()  # `process_images` loads them

    def _make_room(self, ram_too: bool) -> Any:
        from backend import memory_management
        from modules import sd_models

        memory_management.unload_all_models()
        memory_management.soft_empty_cache()
        if ram_too:
            sd_models.model_data.sd_model = sd_models.FakeInitialModel()
            self._forget_loaded()
        return lambda: None  # weights return to the device with the next picture

    def _forget_loaded(self) -> None:
        from modules import sd_models

        sd_models.model_data.forge_hash = ""  # load again when a picture is rendered

    def _switch(self, title: str) -> None:
        from modules_forge import main_entry

        main_entry.checkpoint_change(title)


class ManagedMemoryHost(A1111Host):
    """reForge and Forge Classic: sd_models as in AUTOMATIC1111's WebUI, memory as in Forge's ancestors."""

    def __init__(self) -> None:
        super().__init__()
        self.name = _name_of_fork()

    @staticmethod
    def _no_scripts() -> Any:
        """reForge looks through the scripts of each picture, and fails where there is not even a list of them."""
        from modules import scripts

        return scripts.ScriptRunner()

    def _make_room(self, ram_too: bool) -> Any:
        from ldm_patched.modules import model_management

        model_management.unload_all_models()
        model_management.soft_empty_cache()
        if ram_too:
            return super()._make_room(ram_too)
        return lambda: None


def _name_of_fork() -> str:
    """By their versions: Forge's own, when it was built like this, began with 0.0; reForge's name AUTOMATIC1111's."""
    try:
        from modules_forge.forge_version import version
    except ImportError:
        return "Forge Classic"
    if version.startswith("0.0."):
        return "Forge"
    return "reForge" if "v1." in version else "Forge Classic"
