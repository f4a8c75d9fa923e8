"""What this WebUI, as it was started, allows: training at all, strangers, its API."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import HostError
from ..origin import is_address


def require_trainable() -> None:
    """Raise HostError if this host, as it was started, cannot serve: DirectML, ONNX."""
    from modules import shared

    options = shared.cmd_opts
    if str(getattr(options, "use_directml", "")) == "True" or getattr(options, "backend", "") == "directml":
        raise HostError("training on DirectML", "it has no gradients for what Stable Diffusion is made of",
                        "Use a CUDA or ROCm build of torch, or start the WebUI with --use-cpu all to train slowly.")
    if find_spec("modules.onnx_impl") is not None and _onnx_mode(options, shared.opts):
        raise HostError("training in ONNX mode", "an ONNX model cannot be trained, nor render class images",
                        "Switch the WebUI's execution mode back to the original one and restart it.")


def require_prediction(base: Path, asked: str, found: str | None) -> None:
    """Raise HostError if the loaded model predicts something else than `asked`: its pictures would be noise.

    `found` is None where the host does not tell what it takes the model for.
    """
    if found is not None and asked not in ("auto", found):
        raise HostError(f"{base.name} is to render class images by {asked}", f"the WebUI takes it for {found}",
                        f"Put the yaml that came with the model beside it, as {base.stem}.yaml, or set the prediction type to "
                        f"auto or {found}.")


def _onnx_mode(options: object, settings: object) -> bool:
    chosen = bool(getattr(options, "onnx", False)) or bool(getattr(options, "use_onnx", False))
    return chosen or bool(getattr(settings, "onnx_enable", False))


def is_shared() -> bool:
    """True if people other than its owner may use this WebUI: then every path stays in folders that we own."""
    from modules import shared

    options = shared.cmd_opts
    trusted = getattr(options, "enable_insecure_extension_access", False)
    return (_is_reachable(options) and not trusted) or bool(getattr(options, "hide_ui_dir_config", False))


def _is_reachable(options: Any) -> bool:
    named = getattr(options, "server_name", None) not in (None, "", "127.0.0.1", "localhost", "::1")
    return named or any(getattr(options, name, None) for name in ("share", "listen", "ngrok"))


def answers_to(host: str) -> bool:
    """Whether a Host header names this WebUI: one that is reachable from elsewhere has names that we cannot know."""
    from modules import shared

    if _is_reachable(shared.cmd_opts) or is_address(host):
        return True
    return allows_origin(f"http://{host}") or allows_origin(f"https://{host}")


def keep_private(page: Any, folder: Path) -> None:
    """gradio 3 serves every file below the folder that the WebUI was started in: none of `folder`, from now on."""
    blocked = getattr(page, "blocked_paths", None)
    if isinstance(blocked, list):
        page.blocked_paths = list(dict.fromkeys([*blocked, str(folder.absolute()), str(folder.resolve())]))


def warning() -> str:
    """Why this host cannot train, for the top of the tab; empty if it can."""
    try:
        require_trainable()
    except HostError as error:
        return str(error)
    return ""


def roots(runs_dir: Path) -> list[Path] | None:
    """The only folders that a user may name, or None where the WebUI serves nobody but its owner."""
    return [runs_dir.parent] if is_shared() else None


def api_credentials() -> dict[str, str] | None:
    """The users of --api-auth with their passwords; empty without it; None if the host's API is off."""
    from modules import shared

    options = shared.cmd_opts
    if not (getattr(options, "api", False) or getattr(options, "nowebui", False)):
        return None
    return dict(pair.split(":", 1) for pair in (options.api_auth or "").split(",") if ":" in pair)


def allows_origin(origin: str) -> bool:
    """Whether the WebUI was started to let pages of this origin act (--cors-allow-origins, --cors-allow-origins-regex)."""
    from modules import shared

    options = shared.cmd_opts
    listed = (getattr(options, "cors_allow_origins", None) or "").split(",")
    pattern = getattr(options, "cors_allow_origins_regex", None)
    return origin in listed or "*" in listed or bool(pattern and re.fullmatch(pattern, origin))
