"""Tensors from the file's layout to diffusers' and back. Every step is exact: renaming, reshaping, splitting."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import torch

from ..errors import MissingTensors
from .checkpoint_file import CheckpointFile
from .family import Shapes
from .layout import missing
from .ldm_keys import Rule


def resolved(rules: Iterable[Rule], shapes: Shapes, wanted: Mapping[str, tuple[int, ...]], file: str) -> list[Rule]:
    """The rules for exactly the tensors `wanted` (our names and shapes), under the names that the file has for them.

    Raises MissingTensors for absent tensors and for wrong shapes.
    """
    found, absent = [], []
    for rule in rules:
        if not all(ours in wanted for ours in rule.ours):
            continue
        name = next((name for name in (rule.ldm, *rule.aliases) if name in shapes), None)
        if name is None:
            absent.append(rule.ldm)
            continue
        possible = rule.ldm_shapes(wanted[rule.ours[0]])
        if tuple(shapes[name]) not in possible:
            raise MissingTensors(f"{file} is to be loaded",
                                 f"{name} has shape {list(shapes[name])} instead of {list(possible[0])}",
                                 "It may be damaged, or of a kind that is not known here.")
        found.append(replace(rule, ldm=name))
    if absent:
        raise missing(file, absent)
    require_all(wanted, [ours for rule in found for ours in rule.ours], file)
    return found


def require_all(wanted: Collection[str], had: Iterable[str], file: str) -> None:
    """Raise MissingTensors unless each of our names is there."""
    lacking = set(wanted) - set(had)
    if lacking:
        raise missing(file, lacking)


def read_part(file: CheckpointFile, rules: Sequence[Rule], dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    """The tensors of one network by our names, cast to `dtype` if given. Raises BadNumbers, NotACheckpoint."""
    tensors: dict[str, torch.Tensor] = {}
    for rule in rules:
        whole = file.finite_tensor(rule.ldm)
        for ours, tensor in zip(rule.ours, rule.to_ours(whole), strict=True):
            tensors[ours] = tensor if dtype is None else tensor.to(dtype)
    return tensors


def to_ldm(
    tensors: Mapping[str, torch.Tensor], rules: Sequence[Rule], shapes: Shapes | None = None
) -> dict[str, torch.Tensor]:
    """The tensors of one network under the file's names, in the file's shapes where they are given."""
    shapes = shapes or {}
    return {rule.ldm: rule.to_ldm([tensors[ours] for ours in rule.ours], shapes.get(rule.ldm)) for rule in rules}
