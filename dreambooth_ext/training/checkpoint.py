"""Snapshots of a run: everything that the next step depends on, and what would be published at that point.

    step-000100/                    a folder of diffusers' format (the average, if one is kept); for a LoRA lora.safetensors
    step-000100/trained/unet.safetensors, ...    the trained weights, where they are not those of the folder
    step-000100/state.pt            optimizer, scaler, EMA; tensors and numbers only

A snapshot's files are its own, those of networks that never change, too: as hard links to an older snapshot's they would cost
nothing, but whoever writes over one of them (as `safetensors.torch.save_file` does, in place) would change all snapshots.
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
from ..models.diffusers_folder import saved_part
from .memory import PROFILES

NAME = re.compile(r"step-(\d{6,})")
# What torch says on Windows and on Linux, and Windows of a file that is mapped.
OUT_OF_RAM = ("DefaultCPUAllocator", "os error 1455")
IN_FOLDER = "in_folder"  # in the state: the parts whose trained weights are those of the folder
Weights = Mapping[str, Mapping[str, torch.Tensor]]


@dataclass(frozen=True)
class Kept:
    """What a snapshot is written from; of split networks it is empty but in the first process.

    `save_model` writes what would be published into the folder that it is given, `model_bytes` large. `in_folder`: the
    trained `weights` are among it, as they are, and stand there alone.
    """

    weights: Weights
    state: Mapping[str, Any]
    save_model: Callable[[Path], None]
    model_bytes: int
    in_folder: bool


def folder_of(checkpoints_dir: Path, step: int) -> Path:
    return checkpoints_dir / f"step-{step:06d}"


def snapshots(checkpoints_dir: Path) -> list[tuple[int, Path]]:
    """(step, folder) of all whole snapshots, oldest first."""
    if not checkpoints_dir.is_dir():
        return []
    found = [(int(match[1]), path) for path in checkpoints_dir.iterdir() if (match := NAME.fullmatch(path.name))]
    return sorted((step, path) for step, path in found if (path / "state.pt").is_file())


def write(checkpoints_dir: Path, step: int, kept: Kept, keep: int) -> Path:
    """Write a snapshot whole or not at all; older ones beyond `keep` (0: all are kept) go once it is safe."""
    apart: Weights = {} if kept.in_folder else kept.weights
    state = {**kept.state, IN_FOLDER: [part for part in kept.weights if part not in apart]}
    require_space(checkpoints_dir, kept.model_bytes + bytes_of(apart) + bytes_of(state), "A snapshot")

    def fill(folder: Path) -> None:
        kept.save_model(folder)
        for part, weights in apart.items():
            (folder / "trained").mkdir(exist_ok=True)
            with (folder / "trained" / f"{part}.safetensors").open("wb") as stream:
                write_safetensors(stream, [output_of(name, tensor) for name, tensor in weights.items()], {"format": "pt"})
        _save(state, folder / "state.pt")

    folder = folder_of(checkpoints_dir, step)
    replace_folder(folder, fill)
    if keep:
        for _, old in snapshots(checkpoints_dir)[:-keep]:
            remove_folder(old)
    return folder


def _save(state: dict[str, Any], path: Path) -> None:
    """torch.save, by Python's own file: torch's gives up when a signal comes, and does not say that a disk is full.

    Raises OSError.
    """
    with path.open("wb") as stream:
        try:
            torch.save(state, stream)
        except RuntimeError as error:  # of a file that was cut off; what cut it off came before
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__cause__ or cause.__context__
            raise cause or error from error


def read(folder: Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """A snapshot's trained weights and its state. Raises ResumeError if it is damaged.

    Earlier versions wrote all weights to `trained`, and nothing about it into the state.
    """
    from safetensors.torch import load_file

    try:
        state = _state(folder)
        weights = {path.stem: load_file(path) for path in sorted((folder / "trained").glob("*.safetensors"))}
        return weights | {part: saved_part(folder, part) for part in state.get(IN_FOLDER, ())}, state
    except Exception as error:
        raise unusable(folder, error, "it cannot be read") from error


def unusable(folder: Path, error: Exception, why: str) -> ResumeError:
    """Only a snapshot that is damaged is to be deleted: without memory or its disk the one before would do no better."""
    instead = "Delete that snapshot to go on from the one before it."
    if isinstance(error, MemoryError) or any(told in str(error) for told in OUT_OF_RAM):
        why, instead = "there is too little RAM for it", "Close what else needs memory, and resume: nothing is lost."
    elif isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
        why, instead = "it cannot be read now", "Check that the drive is there and that the files may be read, and resume."
    return ResumeError(f"{folder.name} is to be continued", f"{why} ({type(error).__name__}: {error})", instead)


def _state(folder: Path, **how: Any) -> dict[str, Any]:
    _require_tensors_alone(folder / "state.pt")
    path = str(folder / "state.pt")  # torch 2.1 maps files named by a text alone
    return torch.load(path, map_location="cpu", weights_only=True, **how)  # type: ignore[no-any-return]


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
    """How a snapshot was made, as far as it must stay so: what "auto" was resolved to, whose state it holds."""

    profile: str
    optimizer: str  # empty: the settings' own
    eight_bit: str
    channels_last: bool | None  # in what order weights and state lay in memory; None: the state has their shapes
    learning_rate: float | None = None  # of the settings; earlier versions wrote nothing about it


def made_of(folder: Path) -> Made:
    """Reads next to nothing of it. Raises ResumeError."""
    try:
        state = _state(folder, mmap=True)
    except Exception as error:
        raise unusable(folder, error, "it cannot be read") from error
    profile = str(state.get("profile", "none"))
    # Until November 2026 a LoRA, too, had the optimizer of its profile, and nothing was written about it.
    optimizer = state.get("optimizer_name") or (PROFILES[profile].optimizer if profile in PROFILES else "")
    return Made(profile, str(optimizer), str(state.get("eight_bit", "own")),
                state.get("channels_last", None if profile == "fast" else False), state.get("learning_rate"))


def bytes_of(value: Any) -> int:
    """What the tensors in it take on disk."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(bytes_of(entry) for entry in value.values())
    return sum(bytes_of(entry) for entry in value) if isinstance(value, (list, tuple)) else 0
