"""Snapshots of a run: everything that the next step depends on, and what would be published at that point.

    step-000100/                    a folder of diffusers' format (the average, if one is kept); for a LoRA lora.safetensors
    step-000100/trained/unet.safetensors, ...    the trained weights
    step-000100/state.pt            optimizer, scaler, EMA; tensors and numbers only
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import ResumeError
from ..files import remove_folder, replace_folder, require_space
from ..models.checkpoint_writer import output_of, write_safetensors

NAME = re.compile(r"step-(\d{6,})")
Weights = Mapping[str, Mapping[str, torch.Tensor]]


def folder_of(checkpoints_dir: Path, step: int) -> Path:
    return checkpoints_dir / f"step-{step:06d}"


def snapshots(checkpoints_dir: Path) -> list[tuple[int, Path]]:
    """(step, folder) of all whole snapshots, oldest first."""
    if not checkpoints_dir.is_dir():
        return []
    found = [(int(match[1]), path) for path in checkpoints_dir.iterdir() if (match := NAME.fullmatch(path.name))]
    return sorted((step, path) for step, path in found if (path / "state.pt").is_file())


def write(checkpoints_dir: Path, step: int, save_model: Callable[[Path], None], trained: Weights,
          state: Mapping[str, Any], keep: int) -> Path:
    """Write a snapshot whole or not at all; older ones beyond `keep` (0: all are kept) go once it is safe.

    `save_model` writes what would be published into the folder that it is given.
    """
    require_space(checkpoints_dir, 2 * _size(trained) + _size(state), "A snapshot")

    def fill(folder: Path) -> None:
        save_model(folder)
        (folder / "trained").mkdir()
        for part, weights in trained.items():
            with (folder / "trained" / f"{part}.safetensors").open("wb") as stream:
                write_safetensors(stream, [output_of(name, tensor) for name, tensor in weights.items()], {"format": "pt"})
        torch.save(dict(state), folder / "state.pt")

    folder = folder_of(checkpoints_dir, step)
    replace_folder(folder, fill)
    if keep:
        for _, old in snapshots(checkpoints_dir)[:-keep]:
            remove_folder(old)
    return folder


def read(folder: Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """A snapshot's trained weights and its state. Raises ResumeError if it is damaged."""
    from safetensors.torch import load_file

    try:
        _require_tensors_alone(folder / "state.pt")
        weights = {path.stem: load_file(path) for path in sorted((folder / "trained").glob("*.safetensors"))}
        return weights, torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    except Exception as error:
        raise ResumeError(f"{folder.name} is to be continued", f"it cannot be read ({type(error).__name__}: {error})",
                          "Delete that snapshot to go on from the one before it.") from error


def _require_tensors_alone(path: Path) -> None:
    """Raise ValueError for what torch.save did not write here.

    Before torch 2.6, torch.load gives a TorchScript archive to its interpreter even with `weights_only` (CVE-2025-32434);
    and it unpacks parts that are compressed, however much they become.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    inner = [member.filename.partition("/")[2] for member in members]
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        raise ValueError("it holds a program")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("its parts are compressed, which PyTorch never does")
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise ValueError("its parts overlap")


@dataclass(frozen=True)
class Made:
    """How a snapshot was made, as far as it must stay so: what "auto" was resolved to, and whose 8-bit state it holds."""

    profile: str
    eight_bit: str


def made_of(folder: Path) -> Made:
    state = read_state(folder)
    return Made(str(state.get("profile", "none")), str(state.get("eight_bit", "own")))


def read_state(folder: Path) -> dict[str, Any]:
    return read(folder)[1]


def _size(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(_size(entry) for entry in value.values())
    return sum(_size(entry) for entry in value) if isinstance(value, (list, tuple)) else 0
