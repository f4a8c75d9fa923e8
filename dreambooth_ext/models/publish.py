"""A trained model as one file: the source checkpoint with the trained tensors in place of its own.

Every other tensor, and every name that we do not know, stays byte for byte as it was. Tensors are read, checked and
written one at a time, so that the memory needed is that of the largest of them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import BadNumbers, MissingTensors
from ..files import require_safe_name, require_space, write_atomically
from ..progress import SILENT, Progress
from . import ldm_keys
from .checkpoint_file import CheckpointFile
from .family import Family, detect
from .layout import Layout, layout_of
from .load import WEIGHT_FILES, ldm_names
from .vae import vae_file_names
from .write import Entry, write_ckpt, write_safetensors

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Averaged weights of the base: left in, they would give untrained weights to whoever extracts them.
STALE_PREFIX = "model_ema."
TRAINED_PARTS = ("unet", "text_encoder")


def publish(source: Path, diffusers_dir: Path, destination_dir: Path, name: str, *, publish_format: str = "ckpt",
            dtype: str = "source", vae: Path | None = None, metadata: Mapping[str, Any] | None = None,
            progress: Progress = SILENT) -> list[Path]:
    """Write NAME.ckpt, NAME.safetensors or both into `destination_dir`, with the sidecar the source has.

    The trained tensors come from `diffusers_dir` alone. Raises BadNumbers before anything gets its final name,
    MissingTensors if folder and source do not fit, StorageError.
    """
    require_safe_name(name, "the model")
    formats = ("ckpt", "safetensors") if publish_format == "both" else (publish_format,)
    paths = []
    with CheckpointFile(source) as file, _Replacements() as replacements:
        family = detect(file.tensors, source)
        layout = layout_of(file.tensors, family, source)
        for part in TRAINED_PARTS:
            replacements.add_part(part, diffusers_dir / WEIGHT_FILES[part], layout, family, file)
        if vae is not None:
            replacements.add_vae(vae, file)
        entries = _entries(file, replacements, DTYPES.get(dtype))
        require_space(destination_dir, sum(entry.size_bytes for entry in entries) * len(formats), "The finished model")
        for number, format_ in enumerate(formats):
            path = destination_dir / f"{name}.{format_}"
            with write_atomically(path) as stream:
                count = len(entries)
                told = _counter(progress, number * count, count * len(formats), path.name)
                if format_ == "ckpt":
                    write_ckpt(stream, entries, _plain(metadata), told)
                else:
                    write_safetensors(stream, entries, _modelspec(metadata, family, layout), told)
            paths.append(path)
    sidecar = source.with_suffix(".yaml")
    if sidecar.is_file():
        with write_atomically(destination_dir / f"{name}.yaml") as stream, sidecar.open("rb") as original:
            shutil.copyfileobj(original, stream)
    return paths


class _Replacements:
    """Where the new values of a name come from. Keeps the files open while they are read."""

    def __init__(self) -> None:
        self._files: list[CheckpointFile] = []
        self._where: dict[str, tuple[CheckpointFile, str]] = {}

    def __enter__(self) -> _Replacements:
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files:
            file.close()

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def tensor(self, name: str) -> torch.Tensor:
        file, key = self._where[name]
        return file.tensor(key)

    def add_part(self, part: str, path: Path, layout: Layout, family: Family, source: CheckpointFile) -> None:
        """Take the weights of one module of a diffusers folder; a part that is not there was not trained."""
        if not path.is_file():
            return
        self._files.append(file := CheckpointFile(path))
        for key, name in ldm_names(part, file, layout, family).items():
            self._add(name, file, key, source)

    def add_vae(self, path: Path, source: CheckpointFile) -> None:
        self._files.append(file := CheckpointFile(path))
        for name, key in vae_file_names(file).items():
            if ldm_keys.VAE_PREFIX + name in source.tensors:
                self._add(ldm_keys.VAE_PREFIX + name, file, key, source)

    def _add(self, name: str, file: CheckpointFile, key: str, source: CheckpointFile) -> None:
        if name not in source.tensors or _count(file.tensors[key].shape) != _count(source.tensors[name].shape):
            raise MissingTensors(f"{source.path.name} is to take {key}", "it has no such tensor of that size",
                                 "The base must be the file that the run was started with.")
        self._where[name] = file, key


def _entries(file: CheckpointFile, replacements: _Replacements, dtype: torch.dtype | None) -> list[Entry]:
    entries = []
    for name, info in file.tensors.items():
        if name.startswith(STALE_PREFIX):
            continue
        target = dtype if dtype is not None and info.dtype.is_floating_point else info.dtype
        entries.append(Entry(name, target, info.shape, _reader(file, replacements, name, target)))
    return entries


def _reader(file: CheckpointFile, replacements: _Replacements, name: str, dtype: torch.dtype) -> Callable[[], bytes]:
    def read() -> bytes:
        info = file.tensors[name]
        if name not in replacements and dtype == info.dtype:
            return file.raw(name)
        tensor = replacements.tensor(name) if name in replacements else file.tensor(name)
        tensor = tensor.to(dtype)
        if not bool(torch.isfinite(tensor).all()):
            raise BadNumbers(f"{name} is to be written as {dtype}", "it holds NaN or Inf",
                             "Publish an earlier snapshot, train at a lower rate, or choose another precision.")
        return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()

    return read


def _counter(progress: Progress, before: int, total: int, text: str) -> Callable[[int], None]:
    def told(done: int) -> None:
        progress.check()
        progress.report(before + done, total, text)

    return told


def _plain(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a .ckpt tells beside its tensors: only what every host's unpickler accepts."""
    return {"global_step": int((metadata or {}).get("global_step", 0))}


def _modelspec(metadata: Mapping[str, Any] | None, family: Family, layout: Layout) -> dict[str, str]:
    """The header's fields, all strings: modelspec's own, and the provenance of the run."""
    given = dict(metadata or {})
    fields = {
        "modelspec.sai_model_spec": "1.0.0", "modelspec.architecture": family.architecture,
        "modelspec.implementation": "https://github.com/CompVis/stable-diffusion",
        "modelspec.prediction_type": "v" if layout.prediction_type == "v_prediction" else "epsilon",
        "modelspec.resolution": f"{layout.resolution}x{layout.resolution}",
        "modelspec.title": str(given.pop("title", "")), "modelspec.date": str(given.pop("date", "")),
    }
    for key, value in given.items():
        fields[f"dreambooth.{key}"] = value if isinstance(value, str) else json.dumps(value)
    return fields


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
