"""Another VAE than the model's own: a file of it alone, or the one inside a whole checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from ..errors import MissingTensors
from .checkpoint_file import CheckpointFile, open_checkpoint
from .convert import read_part, require_all, resolved
from .family import VAE
from .layout import Reader
from .ldm_keys import CONV, SAME, Rule, present_vae_name, vae_rules

_ENTRANCES = (f"{VAE}encoder.conv_in.weight", f"{VAE}decoder.conv_in.weight")


def vae_tensors(
    path: Path, wanted: Mapping[str, tuple[int, ...]], dtype: torch.dtype | None
) -> dict[str, torch.Tensor]:
    """The VAE in a file under diffusers' names, which must be those `wanted`, of the same shapes.

    Takes ldm's names, with and without `first_stage_model.`, and diffusers', early and present. Raises the errors of
    `load_checkpoint`.
    """
    with open_checkpoint(path) as file:
        return read_part(file, vae_rules_in(file, wanted), dtype)


def vae_rules_in(file: CheckpointFile, wanted: Mapping[str, tuple[int, ...]]) -> list[Rule]:
    """How the file names the tensors of its VAE. Raises MissingTensors."""
    shapes = file.shapes
    if _has_diffusers_names(file):
        return _in_diffusers_names(file, wanted)
    prefix, levels, layers = _structure(file)
    rules = vae_rules([layers] * levels, [layers + 1] * levels, prefix)
    return resolved(rules, shapes, wanted, file.path.name)


def open_with_vae(path: Path, vae: Path | None) -> CheckpointFile:
    """An open checkpoint; one without VAE is read as if the VAE of the file `vae`, if one is named, were its own.

    Raises NotACheckpoint, UnsafeCheckpoint, UnsupportedFamily; MissingTensors if there is no VAE in that file.
    """
    file = open_checkpoint(path)
    if vae is None or has_vae(file):
        return file
    try:
        other = open_checkpoint(vae)
    except BaseException:
        file.close()
        raise
    try:
        lent = _names_in(other)
    except BaseException:
        file.close()
        other.close()
        raise
    entries = {name: entry for name, entry in file.entries.items() if not name.startswith(VAE)}
    entries |= {name: replace(other.entries[theirs], name=name, shape=shape) for name, (theirs, shape) in lent.items()}
    return _Completed(file.path, file.format, entries, file.stream, file.metadata, file.numbers, vae=other,
                      lent={name: theirs for name, (theirs, _) in lent.items()})


def has_vae(file: CheckpointFile) -> bool:
    """True for a checkpoint with a VAE; half of one is none."""
    return all(name in file.entries for name in _ENTRANCES)


def borrowed_vae(base: Path, vae: str) -> Path | None:
    """The VAE file that is to be used with a checkpoint that has none; None if it has one, or `vae` names none.

    Raises NotACheckpoint, UnsafeCheckpoint, UnsupportedFamily.
    """
    if not vae:
        return None
    with open_checkpoint(base) as file:
        return None if has_vae(file) else Path(vae).expanduser()


@dataclass
class _Completed(CheckpointFile):
    """A checkpoint and the VAE that it lacks, read as one file. `lent`: our names of the VAE's tensors, and its file's own."""

    vae: CheckpointFile = field(kw_only=True)
    lent: Mapping[str, str] = field(kw_only=True)

    def tensor(self, name: str) -> torch.Tensor:
        if name in self.lent:
            return self.vae.tensor(self.lent[name]).reshape(self.entries[name].shape)
        return super().tensor(name)

    def chunks(self, name: str) -> Iterator[torch.Tensor]:
        return self.vae.chunks(self.lent[name]) if name in self.lent else super().chunks(name)

    def close(self) -> None:
        self.vae.close()
        super().close()


def _names_in(file: CheckpointFile) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The tensors of a file's VAE by their names in a checkpoint: how the file names them, and their shape in a checkpoint."""
    in_diffusers_names = _has_diffusers_names(file)
    prefix, levels, layers = _structure(file)
    names = {present_vae_name(name): name for name in file.entries} if in_diffusers_names else {name: name for name in file.entries}
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for rule in vae_rules([layers] * levels, [layers + 1] * levels, prefix):
        candidates = rule.ours if in_diffusers_names else (rule.ldm, *rule.aliases)
        theirs = next((names[name] for name in candidates if name in names), None)
        if theirs is not None:  # a shortcut is there only where it is needed
            shape = file.entries[theirs].shape
            is_flat = rule.how == CONV and len(shape) == 2
            found[VAE + rule.ldm.removeprefix(prefix)] = theirs, (*shape, 1, 1) if is_flat else shape
    return found


def _structure(file: CheckpointFile) -> tuple[str, int, int]:
    """What the names of a file's VAE begin with, its levels, and the layers of each in the encoder. Raises MissingTensors."""
    if _has_diffusers_names(file):
        prefix, level, layer = "", "encoder.down_blocks.{}.resnets.0.conv1.weight", "encoder.down_blocks.0.resnets.{}.conv1.weight"
    else:
        prefix = VAE if any(name.startswith(VAE) for name in file.entries) else ""
        level, layer = "encoder.down.{}.block.0.conv1.weight", "encoder.down.0.block.{}.conv1.weight"
    reader = Reader(file.shapes, prefix, file.path.name)
    levels = reader.count(level)
    if not levels:
        raise MissingTensors(f"{file.path.name} is to be used as VAE", "there is no VAE in it",
                             "Choose a VAE file, or leave the field empty to keep the model's own.")
    return prefix, levels, reader.count(layer)


def _has_diffusers_names(file: CheckpointFile) -> bool:
    return any(name.startswith(("encoder.down_blocks.", "decoder.up_blocks.")) for name in file.entries)


def _in_diffusers_names(file: CheckpointFile, wanted: Mapping[str, tuple[int, ...]]) -> list[Rule]:
    shapes, names = file.shapes, {present_vae_name(name): name for name in file.entries}
    require_all(wanted, names, file.path.name)
    rules = [Rule(names[ours], (ours,), CONV if len(shapes[names[ours]]) > len(shape) else SAME) for ours, shape in wanted.items()]
    return resolved(rules, shapes, wanted, file.path.name)
