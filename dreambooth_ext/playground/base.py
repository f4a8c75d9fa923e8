"""Where the packaged playground base is."""

from __future__ import annotations

from pathlib import Path


def playground_base_path() -> Path:
    """The one-file checkpoint in SD 1.x's layout; its yaml stands beside it under the same name."""
    return Path(__file__).parent / "data" / "playground.safetensors"
