"""Which host this is: told by what it offers, not by its name."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec

from .a1111 import A1111Host


@lru_cache(maxsize=1)
def webui_host() -> A1111Host:
    """The adapter of the WebUI that we run in; one for the process, as its state outlives "Reload UI"."""
    if _offers("modules_forge.main_entry") and _offers("backend.memory_management"):
        from .forge import ForgeHost

        return ForgeHost()
    if _offers("ldm_patched.modules.model_management"):
        from .forge import ManagedMemoryHost

        return ManagedMemoryHost()
    return A1111Host()


def _offers(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
