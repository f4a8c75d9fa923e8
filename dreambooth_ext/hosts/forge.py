"""Forge and its family as our host: what differs from AUTOMATIC1111's WebUI."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import DreamboothError, HostError
from ..host import OwnPictures
from . import webui_settings
from .a1111 import A1111Host, same_file


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

    def own_pictures(self) -> OwnPictures:
        """One field of Forge's page, "VAE / Text Encoder", names both: which is which, the files tell."""
        from modules import shared

        named = [Path(name) for name in shared.opts.forge_additional_modules or []]
        vae, text = (", ".join(path.name for path in named if _part_in(path) == part) for part in ("vae", "text_encoder"))
        return replace(super().own_pictures(), vae=vae, text_encoder=text)

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

    def _load_selected(self, vae: Path | None) -> None:
        self._read_text_encoder_anew()
        super()._load_selected(vae)

    def _load_as_user_wants(self) -> None:
        self._read_text_encoder_anew()
        super()._load_as_user_wants()

    def own_pictures(self) -> OwnPictures:
        from modules import shared

        named = getattr(shared.opts, "sd_text_encoder", "None")
        return replace(super().own_pictures(), text_encoder="" if named in webui_settings.CHECKPOINTS_OWN else named)

    @staticmethod
    def _read_text_encoder_anew() -> None:
        """reForge looks at its "Text Encoder" setting only while it reads a checkpoint: one that is there keeps what it got."""
        from modules import sd_models, shared

        if not sd_models.checkpoints_list or "sd_text_encoder" not in shared.opts.data_labels:
            return
        info = sd_models.select_checkpoint()
        model = next((model for model in sd_models.model_data.loaded_sd_models if model.filename == info.filename), None)
        if model is not None and not same_file(_text_encoder_in(model), _text_encoder_wanted(info)):
            sd_models.reload_model_weights(info=info, forced_reload=True)  # as reForge does when the setting changes

    def _make_room(self, ram_too: bool) -> Any:
        from ldm_patched.modules import model_management

        model_management.unload_all_models()
        model_management.soft_empty_cache()
        if ram_too:
            return super()._make_room(ram_too)
        return lambda: None


def _part_in(path: Path) -> str:
    """Of which part of Stable Diffusion a file takes the place: "vae", "text_encoder", or "" for a T5, of which it has none."""
    from ..models.checkpoint_file import open_checkpoint

    try:
        with open_checkpoint(path) as file:
            names = list(file.entries)
    except DreamboothError:
        return "" if path.suffix == ".gguf" else "vae"
    if any("text_model.encoder.layers.0." in name or "resblocks.0." in name for name in names):
        return "text_encoder"
    return "" if any("encoder.block.0." in name for name in names) else "vae"


def _text_encoder_in(model: Any) -> str:
    """The file that a loaded model has its text encoder from."""
    from modules import sd_text_encoder

    option = sd_text_encoder.current_text_encoder_option if hasattr(model, "_separate_te_loaded") else None
    return _file_of(option) or str(model.filename)


def _text_encoder_wanted(info: Any) -> str:
    """The file that the setting names. Automatic: one that is called as the checkpoint; None, or none of that name: itself."""
    from modules import sd_text_encoder, shared

    label = shared.opts.data.get("sd_text_encoder", "Automatic")
    found = (option for option in sd_text_encoder.text_encoder_options
             if (option.model_name == info.model_name if label == "Automatic" else option.label == label))
    return _file_of(next(found, None)) or str(info.filename)


def _file_of(option: Any) -> str:
    return str(getattr(getattr(option, "te_info", None), "filename", ""))


def _name_of_fork() -> str:
    """By their versions: Forge's own, when it was built like this, began with 0.0; reForge's name AUTOMATIC1111's."""
    try:
        from modules_forge.forge_version import version
    except ImportError:
        return "Forge Classic"
    if version.startswith("0.0."):
        return "Forge"
    return "reForge" if "v1." in version else "Forge Classic"
