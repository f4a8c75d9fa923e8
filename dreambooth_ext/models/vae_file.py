"""Another VAE than the model's own: a file of it alone, or the one inside a whole checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from ..errors import MissingTensors
from .checkpoint_file import CheckpointFile, open_checkpoint
from .convert import read_part, require_all, resolved
from .family import VAE
from .layout import Reader
from .ldm_keys import CONV, SAME, Rule, present_vae_name, vae_rules


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
    if any(name.startswith(("encoder.down_blocks.", "decoder.up_blocks.")) for name in shapes):
        return _in_diffusers_names(file, wanted)
    prefix = VAE if any(name.startswith(VAE) for name in shapes) else ""
    reader = Reader(shapes, prefix, file.path.name)
    levels = reader.count("encoder.down.{}.block.0.conv1.weight")
    if not levels:
        raise MissingTensors(f"{file.path.name} is to be used as VAE", "there is no VAE in it",
                             "Choose a VAE file, or leave the field empty to keep the model's own.")
    layers = reader.count("encoder.down.0.block.{}.conv1.weight")
    rules = vae_rules([layers] * levels, [layers + 1] * levels, prefix)
    return resolved(rules, shapes, wanted, file.path.name)


def _in_diffusers_names(file: CheckpointFile, wanted: Mapping[str, tuple[int, ...]]) -> list[Rule]:
    shapes, names = file.shapes, {present_vae_name(name): name for name in file.entries}
    require_all(wanted, names, file.path.name)
    rules = [Rule(names[ours], (ours,), CONV if len(shapes[names[ours]]) > len(shape) else SAME) for ours, shape in wanted.items()]
    return resolved(rules, shapes, wanted, file.path.name)
