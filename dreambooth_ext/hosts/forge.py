"""Forge as our host: what differs from AUTOMATIC1111's WebUI."""

from __future__ import annotations

from typing import Any

from .a1111 import A1111Host


class ForgeHost(A1111Host):
    """Forge loads lazily, by `forge_loading_parameters`, and manages memory itself."""

    name = "Forge"

    def _load_selected(self) -> None:
        from modules_forge import main_entry

        main_entry.refresh_model_loading_parameters()  # `process_images` loads them

    def _load_as_user_wants(self) -> None:
        from modules import sd_models
        from modules_forge import main_entry

        if sd_models.checkpoints_list:
            main_entry.refresh_model_loading_parameters()

    def _make_room(self, ram_too: bool) -> Any:
        from backend import memory_management
        from modules import sd_models

        memory_management.unload_all_models()
        memory_management.soft_empty_cache()
        if ram_too:
            sd_models.model_data.sd_model = sd_models.FakeInitialModel()
            sd_models.model_data.forge_hash = ""  # load again when a picture is rendered
        return lambda: None  # weights return to the device with the next picture

    def _forget_loaded(self) -> None:
        from modules import sd_models

        sd_models.model_data.forge_hash = ""

    def _switch(self, title: str) -> None:
        from modules_forge import main_entry

        main_entry.checkpoint_change(title)

    def _is_loaded(self, path: Any) -> bool:
        from modules import sd_models

        from .a1111 import same_file

        info = sd_models.model_data.forge_loading_parameters.get("checkpoint_info")
        return info is not None and same_file(info.filename, path)


class ManagedMemoryHost(A1111Host):
    """reForge and Forge Classic: sd_models as in AUTOMATIC1111's WebUI, memory as in Forge's ancestors."""

    name = "Forge Classic"

    def _make_room(self, ram_too: bool) -> Any:
        from ldm_patched.modules import model_management

        model_management.unload_all_models()
        model_management.soft_empty_cache()
        if ram_too:
            return super()._make_room(ram_too)
        return lambda: None
