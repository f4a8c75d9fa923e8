"""Snapshots of a run: everything that the next step depends on, and the weights where diffusers looks for them.

    step-000100/unet/diffusion_pytorch_model.safetensors       what would be published (the average, if one is kept)
    step-000100/text_encoder/model.safetensors
    step-000100/trained/unet.safetensors, ...                   the trained weights, if they are not those above
    step-000100/state.pt                                        optimizer, scaler, EMA counters; tensors and numbers only
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import ResumeError
from ..files import replace_folder, require_space
from ..models.load import WEIGHT_FILES

NAME = re.compile(r"step-(\d{6,})")


def folder_of(checkpoints_dir: Path, step: int) -> Path:
    return checkpoints_dir / f"step-{step:06d}"


def snapshots(checkpoints_dir: Path) -> list[tuple[int, Path]]:
    """(step, folder) of all whole snapshots, oldest first."""
    if not checkpoints_dir.is_dir():
        return []
    found = [(int(match[1]), path) for path in checkpoints_dir.iterdir() if (match := NAME.fullmatch(path.name))]
    return sorted((step, path) for step, path in found if (path / "state.pt").is_file())


def write(
    checkpoints_dir: Path, step: int, modules: Mapping[str, Any], published: Mapping[str, Mapping[str, Any]] | None,
    state: Mapping[str, Any], keep: int,
) -> Path:
    """Write a snapshot whole or not at all; older ones beyond `keep` (0: all are kept) go once it is safe.

    `modules` are the trained modules by part; `published` are other weights of theirs to publish (an average).
    """
    from safetensors.torch import save_file

    trained = {part: _contiguous(module.state_dict()) for part, module in modules.items()}
    require_space(checkpoints_dir, _size(trained) * (2 if published else 1) + _size(state), "A snapshot")

    def fill(folder: Path) -> None:
        for part, weights in trained.items():
            path = folder / WEIGHT_FILES[part]
            path.parent.mkdir(parents=True)
            save_file(dict(_contiguous((published or trained)[part])), path, metadata={"format": "pt"})
            if published:
                (folder / "trained").mkdir(exist_ok=True)
                save_file(dict(weights), folder / "trained" / f"{part}.safetensors")
        torch.save(dict(state), folder / "state.pt")

    folder = folder_of(checkpoints_dir, step)
    replace_folder(folder, fill)
    if keep:
        for _, old in snapshots(checkpoints_dir)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    return folder


def read(folder: Path, modules: Mapping[str, Any]) -> dict[str, Any]:
    """Load a snapshot's weights into `modules` and return its state. Raises ResumeError if it does not fit."""
    from safetensors.torch import load_file

    try:
        for part, module in modules.items():
            own = folder / "trained" / f"{part}.safetensors"
            module.load_state_dict(load_file(own if own.is_file() else folder / WEIGHT_FILES[part]))
        return torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise ResumeError(f"{folder.name} is to be continued", f"it does not fit this run ({error})",
                          "Delete that snapshot to go on from the one before it.") from error


def _contiguous(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def _size(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(_size(entry) for entry in value.values())
    return sum(_size(entry) for entry in value) if isinstance(value, (list, tuple)) else 0
