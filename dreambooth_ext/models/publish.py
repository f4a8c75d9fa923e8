"""A trained model as one file: the source checkpoint with the trained tensors in place of its own.

Every other tensor, and every name that we do not know, stays byte for byte as it was, and in order. Everything is
read, checked and written a piece at a time, so that memory stays at about one tensor.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from ..errors import BadNumbers, MissingTensors, UnsafePath
from ..files import once_let_go, require_safe_name, require_space, storage_error, write_atomically
from ..progress import SILENT, Progress
from .checkpoint_file import DTYPE_OF, DTYPES, CheckpointFile, Entry, is_finite, open_checkpoint
from .checkpoint_writer import Output, output_of, write_ckpt, write_safetensors
from .convert import resolved
from .diffusers_folder import WEIGHT_FILES, PartFiles, read_json
from .family import EMA, SD2, V_PRED, WEIGHT_PREFIXES, ZTSNR, Family
from .layout import PartLayout
from .ldm_keys import CONV, SAME, Rule, early_name
from .load import recognise
from .modelspec import header_of
from .networks import built, shapes_of
from .prediction import prediction_of
from .sidecar import sidecar_path
from .sidecar_yaml import sidecar_for
from .vae_file import open_with_vae, vae_rules_in


class Replaces(Protocol):
    """New numbers for one tensor of the file."""

    @property
    def dtype(self) -> str: ...

    def tensor(self, shape: Sequence[int]) -> torch.Tensor: ...

    def chunks(self, shape: Sequence[int]) -> Iterator[torch.Tensor]:
        """The bytes of `tensor`, as flat uint8 tensors."""


@dataclass(frozen=True)
class Replacement:
    """New numbers that another file has: where, and how they are named and laid out there."""

    rule: Rule  # from the place's names to the file's
    places: tuple[tuple[CheckpointFile, str], ...]

    def tensor(self, shape: Sequence[int]) -> torch.Tensor:
        return self.rule.to_ldm([file.tensor(name) for file, name in self.places], shape)

    def chunks(self, shape: Sequence[int]) -> Iterator[torch.Tensor]:
        if self.rule.how in (SAME, CONV):
            (file, name), = self.places
            yield from file.chunks(name)
        else:
            yield self.tensor(shape).reshape(-1).view(torch.uint8)

    @property
    def dtype(self) -> str:
        return self.places[0][0].entries[self.places[0][1]].dtype


@dataclass
class Written:
    """Called with numbers of bytes as they are written: tells whoever watches, and raises Cancelled."""

    progress: Progress
    total: int
    text: str = ""
    done: int = 0

    def __call__(self, count: int) -> None:
        self.done += count
        self.progress.check()
        self.progress.report(self.done, self.total, self.text)


def publish(
    source: Path, diffusers_dir: Path, destination_dir: Path, name: str, *, publish_format: str = "ckpt",
    dtype: str = "source", trained: Collection[str] | None = None, vae: Path | None = None,
    metadata: Mapping[str, Any] | None = None, progress: Progress = SILENT,
) -> list[Path]:
    """Write NAME.ckpt, NAME.safetensors or both ("both"), and the sidecar if the source has one.

    The trained tensors come from `diffusers_dir` alone: of the parts `trained`, by default all networks but the VAE
    that it has. `vae` is another VAE file to be put in. `dtype`: "source", "fp32", "fp16", "bf16". Raises BadNumbers,
    MissingTensors if folder and source do not fit, StorageError, Cancelled; nothing half-written is left.
    """
    require_safe_name(name, "the model")
    require_other_files(source, destination_dir, name, publish_format)
    given = dict(metadata or {})
    with ExitStack() as stack:
        file = stack.enter_context(open_with_vae(source, vae))
        _, _, parts = recognise(file)
        replacements = trained_replacements(file, diffusers_dir, parts, trained, stack)
        if vae is not None:
            replacements |= vae_replacements(file, Path(vae), parts, stack)
        given = scheduler_facts(diffusers_dir) | given
        outputs = overlay(file, replacements, dtype, progress)
        return write_outputs(file, outputs, destination_dir, name, publish_format, given, progress)


def write_outputs(
    file: CheckpointFile, outputs: Sequence[Output], destination_dir: Path, name: str, publish_format: str,
    metadata: Mapping[str, Any], progress: Progress = SILENT, *, same_model: bool = False,
) -> list[Path]:
    """The files of a model made over `file`: each whole or not there at all; then the sidecar that hosts need.

    `same_model`: it is the file's own, of which the header's title and provenance hold as well.
    """
    family, sidecar, parts = recognise(file)
    told = str(metadata.get("prediction_type") or "auto")
    kind, zero_snr = prediction_of(file, family, sidecar, None, told)
    zero_snr = bool(metadata.get("zero_terminal_snr", zero_snr))
    outputs = marked(outputs, family, kind, zero_snr)
    header = header_of(file, family, sidecar, {**metadata, "prediction_type": kind, "zero_terminal_snr": zero_snr},
                       same_model=same_model)
    beside = sidecar_for(file.path, family, parts, kind, zero_snr)
    formats = ("ckpt", "safetensors") if publish_format == "both" else (publish_format,)
    paths = [destination_dir / f"{name}.{format_}" for format_ in formats]
    write_files(paths, outputs, header, beside, int(metadata.get("global_step", 0)), progress)
    return paths


def write_files(
    paths: Sequence[Path], outputs: Sequence[Output], header: Mapping[str, str], beside: bytes | None, global_step: int,
    progress: Progress,
) -> None:
    """The same tensors as each of these files; `beside` is their sidecar, and a former model's goes without it.

    Raises DiskFull before anything is written.
    """
    require_space(paths[0].parent, sum(output.nbytes for output in outputs) * len(paths), "The finished model")
    for path in paths:
        _write(path, outputs, header, global_step, progress)
    sidecar = sidecar_path(paths[0])
    if beside is not None:
        with write_atomically(sidecar) as stream:
            stream.write(beside)
    elif os.path.exists(sidecar):
        progress.log(f"{sidecar.name} is removed: it told of the former model of that name.")
        try:
            once_let_go(sidecar.unlink)
        except OSError as error:
            raise storage_error(sidecar, error) from error


def require_other_files(source: Path, destination_dir: Path, name: str, publish_format: str) -> None:
    """Raise UnsafePath if a file to be written is the source, its sidecar included."""
    formats = ("ckpt", "safetensors") if publish_format == "both" else (publish_format,)
    for suffix in (*formats, "yaml"):
        path = destination_dir / f"{name}.{suffix}"
        for other, why in ((source, "it is the base itself"), (sidecar_path(source), "it belongs to the base of that name")):
            if os.path.exists(path) and os.path.exists(other) and path.samefile(other):
                raise UnsafePath(f"{path.name} is to be written", f"{why}, which is never written to", "Choose another name.")


def require_no_sidecar(path: Path) -> None:
    """Raise UnsafePath if there is a sidecar that a model file of this name would be read with: it is another model's."""
    sidecar = sidecar_path(path)
    if os.path.exists(sidecar):
        raise UnsafePath(f"{path.name} is to be written", f"{sidecar.name} is there already, and tells of another model",
                         "Choose another name, or add --overwrite.")


def scheduler_facts(folder: Path) -> dict[str, Any]:
    """What a whole diffusers folder says about its noise; nothing if it has no scheduler (a snapshot)."""
    path = folder / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        return {}
    values = read_json(path)
    return {"prediction_type": values.get("prediction_type", "epsilon"),
            "zero_terminal_snr": bool(values.get("rescale_betas_zero_snr", False))}


def trained_replacements(
    file: CheckpointFile, folder: Path, parts: Sequence[PartLayout], trained: Collection[str] | None, stack: ExitStack
) -> dict[str, Replacement]:
    """By the file's names. Raises MissingTensors unless the folder has each tensor of each part, in its shape."""
    if trained is None:
        trained = [part for part, weights in WEIGHT_FILES.items() if part != "vae" and (folder / part).is_dir()]
    found: dict[str, Replacement] = {}
    for layout in parts:
        if layout.part not in trained:
            continue
        wanted = shapes_of(built(layout, file.path.name))
        have = stack.enter_context(PartFiles(folder, layout.part))
        shapes = have.shapes()
        for ours, shape in wanted.items():
            if shapes.get(ours) != shape:
                raise MissingTensors(f"{folder.name}/{layout.part} is to be published over {file.path.name}",
                                     f"{ours} is missing or has another shape",
                                     "Publish with the base that was trained.")
        for rule in resolved(layout.rules, file.shapes, wanted, file.path.name):
            found[rule.ldm] = Replacement(rule, tuple(have.where[ours] for ours in rule.ours))
    return found


def vae_replacements(
    file: CheckpointFile, path: Path, parts: Sequence[PartLayout], stack: ExitStack
) -> dict[str, Replacement]:
    """Another file's VAE in place of the file's own, by the file's names."""
    layout = next(layout for layout in parts if layout.part == "vae")
    wanted = shapes_of(built(layout, file.path.name))
    other = stack.enter_context(open_checkpoint(path))
    names = {rule.ours[0]: rule.ldm for rule in vae_rules_in(other, wanted)}
    rules = resolved(layout.rules, file.shapes, wanted, file.path.name)
    return {rule.ldm: Replacement(rule, ((other, names[rule.ours[0]]),)) for rule in rules}


def overlay(
    file: CheckpointFile, replacements: Mapping[str, Replaces], dtype: str, progress: Progress = SILENT, prune: bool = False
) -> list[Output]:
    """What is to be written, in the file's order: its own tensors, but for the replaced ones.

    Averages (`model_ema.*`) are left out where anything is replaced, for they would be those of another model, and where
    `prune` is wished. So is what has two names in the file, under its early one: hosts would load whichever comes last.
    """
    outputs, stale = [], 0
    shadows = {early_name(name) for name in replacements} - replacements.keys()
    for name, entry in file.entries.items():
        if name in shadows:
            continue
        if name.startswith(EMA) and (replacements or prune):
            stale += 1
            continue
        outputs.append(_output(file, entry, replacements.get(name), _dtype_for(entry, dtype)))
    if stale and not prune:
        progress.log(f"{stale} tensors of averaged weights ({EMA}*) are left out: they are not those of this model.")
    return outputs


def own_output(file: CheckpointFile, entry: Entry, dtype: str) -> Output:
    """A tensor of the file as it is; a weight in `dtype` unless that is "source"."""
    return _output(file, entry, None, _dtype_for(entry, dtype))


def _dtype_for(entry: Entry, wish: str) -> str:
    return DTYPE_OF[wish] if wish != "source" and entry.is_float and entry.name.startswith(WEIGHT_PREFIXES) else entry.dtype


def marked(outputs: Sequence[Output], family: Family, prediction_type: str, zero_terminal_snr: bool) -> list[Output]:
    """With the empty tensors `v_pred` and `ztsnr`, by which hosts of the Forge family know what a model predicts.

    Every host finds out about SD 2.x by itself; its `v_pred` would be one key too many.
    """
    velocity = prediction_type == "v_prediction"
    kept = [output for output in outputs if velocity or output.name not in (V_PRED, ZTSNR)]
    due = [name for name, wanted in ((V_PRED, velocity and family is not SD2), (ZTSNR, zero_terminal_snr)) if wanted]
    missing = [name for name in due if name not in {output.name for output in kept}]
    return kept + [output_of(name, torch.zeros(0, dtype=torch.uint8)) for name in missing]


def _output(file: CheckpointFile, entry: Entry, replacement: Replaces | None, dtype: str) -> Output:
    def chunks() -> Iterator[torch.Tensor]:
        if replacement is None or _is_same(file, entry, replacement):
            have, origin = entry.dtype, file.chunks(entry.name)
        else:
            have, origin = replacement.dtype, replacement.chunks(entry.shape)
        for chunk in origin:
            yield cast(chunk, have, dtype, entry.name)

    return Output(entry.name, dtype, entry.shape, chunks)


def _is_same(file: CheckpointFile, entry: Entry, replacement: Replaces) -> bool:
    """True if a tensor trained in less precision than the file's is, as far as that tells, the file's own.

    In equal or higher precision the question does not arise: what was not changed is written with the same bytes.
    """
    if replacement.dtype in (entry.dtype, "F32", "F64"):
        return False
    own = file.tensor(entry.name).to(DTYPES[replacement.dtype])
    return bool(torch.equal(own, replacement.tensor(entry.shape).reshape(own.shape)))


def cast(chunk: torch.Tensor, have: str, wanted: str, name: str) -> torch.Tensor:
    """Bytes in one dtype as bytes in another, proven finite. Raises BadNumbers."""
    if have not in DTYPES or not DTYPES[have].is_floating_point:
        return chunk
    values = chunk.view(DTYPES[have])
    if have != wanted:
        values = values.to(DTYPES[wanted])
    if not is_finite(values):
        too_large = have != wanted and is_finite(chunk.view(DTYPES[have]))
        why = f"it holds numbers too large for {wanted}" if too_large else "it holds NaN or Inf"
        raise BadNumbers(f"{name} is to be written", why, "Publish in fp32 or bf16." if too_large else
                         "Publish an earlier snapshot, or train at a lower learning rate.")
    return values.view(torch.uint8)


def _write(
    path: Path, outputs: Sequence[Output], header: Mapping[str, str], global_step: int, progress: Progress
) -> None:
    wrote = Written(progress, sum(output.nbytes for output in outputs), path.name)
    with write_atomically(path) as stream:
        if path.suffix == ".ckpt":
            write_ckpt(stream, outputs, {"global_step": global_step}, wrote)
        else:
            write_safetensors(stream, outputs, header, wrote)
