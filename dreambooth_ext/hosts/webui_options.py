"""Our section on the WebUI's Settings page."""

from __future__ import annotations

from . import webui_limits

SECTION = ("dreambooth", "Dreambooth")


def add() -> None:
    """Declare the settings; adding them again after "Reload UI" changes nothing."""
    from modules import shared

    # Paths of a shared WebUI are confined to where the runs stand: its users must not say where. What is hidden, it does not set.
    for_its_owner = {"visible": False} if webui_limits.is_shared() else None
    entries = {
        "dreambooth_runs_dir": shared.OptionInfo(
            "", "Folder of runs (snapshots, previews, logs, class images); empty: dreambooth/runs in the data folder",
            component_args=for_its_owner, section=SECTION),
        "dreambooth_preset": shared.OptionInfo(
            "", "Preset that the form starts from (subject, style, face, low memory, or one of your own); empty: none. "
            "Needs \"Reload UI\"", section=SECTION),
        "dreambooth_free_ram": shared.OptionInfo(
            False, "While training, take the WebUI's own model out of RAM too (it is loaded again afterwards)",
            section=SECTION),
        "dreambooth_open_txt2img": shared.OptionInfo(
            True, "When training ends, open txt2img with the new model and its prompt", section=SECTION),
    }
    for name, info in entries.items():
        shared.opts.add_option(name, info)


def value(name: str) -> object:
    """A setting of ours, or its default where none was saved."""
    from modules import shared

    return getattr(shared.opts, name)
