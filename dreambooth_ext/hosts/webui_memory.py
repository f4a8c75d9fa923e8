"""Getting the host's own model out of the way, and back, for AUTOMATIC1111's WebUI and what shares its sd_models."""

from __future__ import annotations

from typing import Any

from ..files import gib
from ..gpu import free_and_total
from ..ram import give_back_ram


def sweep() -> None:
    """Return what nobody holds any more to the device and to the operating system."""
    give_back_ram()
    from modules import devices

    devices.torch_gc()


def device() -> str:
    """The GPU that --device-id and the like have named, such as "cuda:1"; else "cpu": so --use-cpu wants it, and training
    knows no other kind. "auto" before the WebUI has chosen.
    """
    from modules import devices

    if devices.device is None:
        return "auto"
    named = str(devices.device)
    return named if named.split(":")[0] == "cuda" else "cpu"


def device_free() -> tuple[int, int] | None:
    """(free, total) bytes of the host's GPU, or None without one."""
    named = device()
    return free_and_total(named) if named.startswith("cuda") else None


def process_bytes() -> int:
    """Resident memory of this process; 0 where it cannot be told."""
    try:
        import psutil
    except ImportError:
        return 0
    return psutil.Process().memory_info().rss


def measured() -> str:
    """One phrase: what is free on the GPU and taken in RAM."""
    free = device_free()
    gpu = f"{gib(free[0])} of {gib(free[1])} free on the GPU, " if free else ""
    return f"{gpu}{gib(process_bytes())} of RAM in use"


def move_to_cpu() -> list[Any]:
    """Move every loaded model off the device; returns those that were on it."""
    from modules import sd_models

    moved = []
    for model in _loaded(sd_models.model_data):
        if _device_type(model) != "cpu" or getattr(model, "lowvram", False):
            moved.append(model)
        sd_models.send_model_to_cpu(model)
    return moved


def move_back(models: list[Any]) -> None:
    from modules import sd_models

    for model in models:
        sd_models.send_model_to_device(model)


def throw_away() -> None:
    """Release every loaded model altogether; `sd_models.reload_model_weights()` loads afresh afterwards."""
    from modules import sd_models

    data = sd_models.model_data
    for model in _loaded(data):
        sd_models.send_model_to_trash(model)
    data.sd_model = None
    data.loaded_sd_models.clear()
    sd_models.checkpoints_loaded.clear()
    sweep()


def _loaded(data: Any) -> list[Any]:
    models = list(data.loaded_sd_models)
    if data.sd_model is not None and data.sd_model not in models:
        models.append(data.sd_model)
    return models


def _device_type(model: Any) -> str:
    parameter = next(iter(model.parameters()), None)
    return "cpu" if parameter is None else parameter.device.type
