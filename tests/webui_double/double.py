"""Puts the double's `modules` where `import modules` finds them, fresh for each test."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

WEBUI = Path(__file__).parent / "webui"


@contextmanager
def running(data: Path, checkpoints: dict[str, bytes], *, forge: bool = False) -> Iterator[SimpleNamespace]:
    """A WebUI with these checkpoints (name -> content), the first one loaded; yields its modules by name.

    Forge has loaded none: it waits for the first picture.
    """
    folder = data / "models" / "Stable-diffusion"
    for path in (folder, data / "models" / "Lora"):
        path.mkdir(parents=True, exist_ok=True)
    for name, content in checkpoints.items():
        (folder / name).write_bytes(content)
    os.environ["WEBUI_DOUBLE_DATA"] = str(data)
    _forget()
    path = list(sys.path)
    sys.path.insert(0, str(WEBUI))
    try:
        import modules

        if forge:
            modules.as_forge()
        from modules import call_queue, extra_networks, processing, progress, script_callbacks, sd_models, shared

        modules.start()
        _ = shared.sd_model
        yield SimpleNamespace(call_queue=call_queue, extra_networks=extra_networks, processing=processing,
                              progress=progress, script_callbacks=script_callbacks, sd_models=sd_models, shared=shared,
                              opts=shared.opts, state=shared.state, folder=folder, data=data)
    finally:
        sys.path[:] = path
        os.environ.pop("WEBUI_DOUBLE_DATA", None)
        _forget()


def _forget() -> None:
    ours = ("modules", "modules_forge", "backend")
    for name in [name for name in sys.modules if name.split(".")[0] in ours]:
        del sys.modules[name]
