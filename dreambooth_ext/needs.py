"""The libraries that training needs, and which of them this Python lacks. Nothing but the standard library."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from importlib import metadata


@dataclass(frozen=True)
class Need:
    """`lowest` is the oldest version that works; `wanted` is what pip is asked for where there is none."""

    name: str
    lowest: str
    wanted: str


NEEDS = (
    # The newest that works with AUTOMATIC1111's torch 2.1.2, and changes none of its packages.
    Need("diffusers", "0.31.0", "diffusers==0.31.0"),
    Need("accelerate", "0.21.0", "accelerate"),
    Need("transformers", "4.30.2", "transformers"),
    Need("safetensors", "0.4.2", "safetensors"),
    Need("Pillow", "9.5.0", "Pillow"),
    Need("PyYAML", "6.0", "PyYAML"),
    Need("tqdm", "4.60", "tqdm"),
)
# pip would otherwise take 2.x beside an old transformers
HUB = "huggingface_hub>=0.23.2,<1.0"


def installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def missing() -> list[Need]:
    """What is not there at all. A library that is there is never touched, whatever its version."""
    return [need for need in NEEDS if installed(need.name) is None]


def requested(needs: list[Need]) -> list[str]:
    """pip's arguments for them. A host with a current huggingface_hub needs a current diffusers, too."""
    hub = installed("huggingface_hub")
    current = hub is not None and _key(hub) >= _key("1.0")
    asked = ["diffusers>=0.36" if need.name == "diffusers" and current else need.wanted for need in needs]
    return asked if hub is not None else [*asked, HUB]


def command(needs: list[Need]) -> str:
    """The one command that mends it by hand."""
    return " ".join([f'"{sys.executable}"', "-m", "pip", "install", *(f'"{name}"' for name in requested(needs))])


def advice() -> str:
    """What is missing and how to mend it, in two lines; empty if nothing is."""
    found = [(need, installed(need.name)) for need in NEEDS]
    lacking = [need for need, version in found if version is None]
    old = [(need, version) for need, version in found if version is not None and _key(version) < _key(need.lowest)]
    lines = []
    if lacking:
        lines.append(f"Training needs {', '.join(need.name for need in lacking)}, which this WebUI lacks. "
                     f"Run this once, then restart the WebUI:\n{command(lacking)}")
    lines += [f"{need.name} {version} is installed; training needs {need.lowest} or newer." for need, version in old]
    return "\n".join(lines)


def _key(version: str) -> tuple[int, ...]:
    release = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in release.group().split(".")) if release else (0,)
