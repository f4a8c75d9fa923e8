"""Whole models from one form into another: checkpoint file to diffusers folder, folder to file, file to file.

Tensors go through one at a time; every step is exact unless another precision is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import MissingTensors, NotACheckpoint, UnsafePath
from ..files import replace_folder, require_safe_name, require_space, write_atomically
from ..progress import SILENT, Progress
from .checkpoint_file import DTYPE_OF, CheckpointFile, open_checkpoint
from .checkpoint_writer import Output, output_of, write_safetensors
from .config_layout import layout_of_config
from .convert import resolved
from .diffusers_folder import REST_FILE, PartFiles, family_of, folder_name, read_json, settings_of, write_part, write_settings
from .family import EMA, Family
from .layout import PartLayout
from .ldm_keys import CONV, SAME, Rule
from .load import model_of, recognise
from .modelspec import fields_of, still_true
from .networks import built, shapes_of
from .prediction import prediction_of, require_possible_snr
from .publish import (
    Replacement,
    Written,
    cast,
    marked,
    overlay,
    own_output,
    require_no_sidecar,
    require_other_files,
    scheduler_facts,
    vae_replacements,
    write_files,
    write_outputs,
)
from .sidecar_yaml import sidecar_of_settings
from .vae_file import open_with_vae, vae_rules_in

FORMATS = ("ckpt", "safetensors", "diffusers")


@dataclass(frozen=True)
class Wishes:
    """How a model is to be converted. `dtype`: "source", "fp32", "fp16", "bf16". `vae`: another VAE file to be put in.

    `prune` leaves averaged weights (`model_ema.*`) out. `prediction_type`: "auto", "epsilon", "v_prediction".
    `zero_terminal_snr` says that the last timestep has no signal, where nothing else does.
    """

    dtype: str = "source"
    vae: Path | None = None
    prune: bool = False
    prediction_type: str = "auto"
    overwrite: bool = False
    zero_terminal_snr: bool = False

    def judged(self, kind: str, zero_snr: bool) -> tuple[str, bool]:
        """What the source says, with what is asked for in its place. Raises ConfigError for what cannot be."""
        kind = kind if self.prediction_type == "auto" else self.prediction_type
        require_possible_snr(kind, self.zero_terminal_snr)
        return kind, zero_snr or self.zero_terminal_snr


def convert(
    source: Path, destination: Path, form: str = "", wishes: Wishes | None = None, progress: Progress = SILENT
) -> Path:
    """Write the model `source`, a file or a folder, as `destination`; returns where it went.

    `form` is one of FORMATS; without it the destination's ending tells, and one that tells nothing means a folder.
    Raises the errors of `load_checkpoint`, StorageError, Cancelled; nothing half-written is left.
    """
    wishes = wishes or Wishes()
    if destination.suffix.lower() in (".ckpt", ".safetensors"):
        destination = destination.with_suffix(destination.suffix.lower())
        form = form or destination.suffix[1:]
    form = form or "diffusers"
    if form != "diffusers" and destination.suffix != f".{form}":
        destination = destination.with_name(f"{destination.name}.{form}")
    if os.path.isdir(source) and form == "diffusers":
        raise NotACheckpoint(f"{source.name} is to be converted", "it is a folder already", "Give a file's name to write to.")
    require_safe_name(destination.name, "the converted model")
    if form != "diffusers" and not os.path.isdir(source):
        require_other_files(source, destination.parent, destination.stem, form)
    _require_free(destination, form, wishes)
    if os.path.isdir(source):
        folder_to_file(source, destination, wishes, progress)
    elif form == "diffusers":
        file_to_folder(source, destination, wishes, progress)
    else:
        file_to_file(source, destination, wishes, progress)
    return destination


def file_to_file(source: Path, destination: Path, wishes: Wishes, progress: Progress = SILENT) -> None:
    """Another file format, precision or VAE; every other tensor, and every name that we do not know, stays as it is."""
    with ExitStack() as stack:
        file = stack.enter_context(open_with_vae(source, wishes.vae))
        family, sidecar, parts = recognise(file)
        kind, zero_snr = wishes.judged(*prediction_of(file, family, sidecar, None, wishes.prediction_type))
        replacements = vae_replacements(file, wishes.vae, parts, stack) if wishes.vae is not None else {}
        outputs = overlay(file, replacements, wishes.dtype, progress, wishes.prune)
        told: dict[str, Any] = {"prediction_type": kind, "zero_terminal_snr": zero_snr}
        steps = {"global_step": file.global_step} if file.global_step else {}
        progress.start("converting", 0)
        write_outputs(file, outputs, destination.parent, destination.stem, destination.suffix[1:], told | steps, progress,
                      same_model=wishes.vae is None)


def file_to_folder(source: Path, destination: Path, wishes: Wishes, progress: Progress = SILENT) -> None:
    """A folder that `DiffusionPipeline.from_pretrained` loads."""
    with ExitStack() as stack:
        file = stack.enter_context(open_with_vae(source, wishes.vae))
        family, sidecar, parts = recognise(file)
        kind, zero_snr = wishes.judged(*prediction_of(file, family, sidecar, None, wishes.prediction_type))
        modules: dict[str, Any] = {layout.part: built(layout, source.name) for layout in parts}
        outputs = {layout.part: _part_outputs(file, layout, modules[layout.part], wishes, stack) for layout in parts}
        model = model_of(family, sidecar, modules, kind, zero_snr, source)
        rest = _rest_outputs(file, parts, modules, wishes)
        total = sum(output.nbytes for part in (*outputs.values(), rest) for output in part)
        require_space(destination.absolute().parent, total, "The folder")
        progress.start("converting", total)
        count = Written(progress, total)

        def fill(folder: Path) -> None:
            for part, module in modules.items():
                write_part(module, folder, part, outputs[part], count)
            if rest:
                with write_atomically(folder / REST_FILE) as stream:
                    write_safetensors(stream, rest, file.metadata, count)
            write_settings(model, folder)

        replace_folder(destination.absolute(), fill)


def folder_to_file(source: Path, destination: Path, wishes: Wishes, progress: Progress = SILENT) -> None:
    """One file of the layout that WebUIs load, from a diffusers folder; with what `file_to_folder` put beside its networks."""
    family = family_of(source, read_json(source / "model_index.json"))
    parts = ("unet", "vae", *(row.part for row in family.text_encoders))
    settings = {part: settings_of(source, part) for part in parts}
    facts = scheduler_facts(source)
    kind, zero_snr = wishes.judged(str(facts.get("prediction_type", "epsilon")), bool(facts.get("zero_terminal_snr", False)))
    with ExitStack() as stack:
        outputs: list[Output] = []
        for part in parts:
            layout = layout_of_config(part, settings[part], family)
            wanted = shapes_of(built(layout, source.name))
            if part == "vae" and wishes.vae is not None:
                outputs += _other_vae(layout, wanted, wishes, stack)
            else:
                outputs += _ldm_outputs(source, layout, wanted, wishes, stack)
        rest, kept = _rest_of(source, {output.name for output in outputs}, wishes, stack)
        outputs += rest
        outputs += _indices(family, settings, {output.name for output in outputs})
        outputs = marked(outputs, family, kind, zero_snr)
        side = int(settings["unet"].get("sample_size") or family.resolution // 8) * 8
        inpainting = settings["unet"].get("in_channels") == 9
        told = {"title": kept.get("modelspec.title", destination.stem), "zero_terminal_snr": zero_snr}
        header = fields_of(family, kind, side, inpainting, kept, told)
        module = built(layout_of_config("unet", settings["unet"], family), source.name)
        beside = sidecar_of_settings(family, dict(module.config), settings["vae"], kind, zero_snr)  # type: ignore[arg-type]
        progress.start("converting", 0)
        write_files([destination], outputs, header, beside, 0, progress)


def _part_outputs(
    file: CheckpointFile, layout: PartLayout, module: Any, wishes: Wishes, stack: ExitStack
) -> list[Output]:
    """One network of the file under the names of a folder."""
    wanted = shapes_of(module)
    if layout.part == "vae" and wishes.vae is not None:
        file = stack.enter_context(open_checkpoint(wishes.vae))
        rules = vae_rules_in(file, wanted)
    else:
        rules = resolved(layout.rules, file.shapes, wanted, file.path.name)
    return [_ours_output(file, rule, place, folder_name(layout.part, ours), wanted[ours], wishes.dtype)
            for rule in rules for place, ours in enumerate(rule.ours)]


def _ours_output(
    file: CheckpointFile, rule: Rule, place: int, name: str, shape: tuple[int, ...], dtype: str
) -> Output:
    have = file.entries[rule.ldm].dtype
    wanted = have if dtype == "source" else DTYPE_OF[dtype]

    def chunks() -> Iterator[torch.Tensor]:
        if rule.how in (SAME, CONV):
            origin = file.chunks(rule.ldm)
        else:
            origin = iter([rule.to_ours(file.tensor(rule.ldm))[place].reshape(-1).view(torch.uint8)])
        for chunk in origin:
            yield cast(chunk, have, wanted, rule.ldm)

    return Output(name, wanted, shape, chunks)


def _ldm_outputs(
    folder: Path, layout: PartLayout, wanted: Mapping[str, tuple[int, ...]], wishes: Wishes, stack: ExitStack
) -> list[Output]:
    """One network of the folder under the names of a file. Raises MissingTensors."""
    have = stack.enter_context(PartFiles(folder, layout.part))
    shapes = have.shapes()
    for ours, shape in wanted.items():
        # Early VAEs keep their attention's layers as 1x1 convolutions.
        if tuple(size for size in shapes.get(ours, ()) if size != 1) != tuple(size for size in shape if size != 1):
            raise MissingTensors(f"{folder.name}/{layout.part} is to be converted", f"{ours} is missing or has another shape",
                                 "Download or copy the folder again.")
    return [_ldm_output(Replacement(rule, tuple(have.where[ours] for ours in rule.ours)), wanted, wishes.dtype)
            for rule in layout.rules if all(ours in wanted for ours in rule.ours)]


def _other_vae(
    layout: PartLayout, wanted: Mapping[str, tuple[int, ...]], wishes: Wishes, stack: ExitStack
) -> list[Output]:
    assert wishes.vae is not None
    file = stack.enter_context(open_checkpoint(wishes.vae))
    names = {rule.ours[0]: rule.ldm for rule in vae_rules_in(file, wanted)}
    return [_ldm_output(Replacement(rule, ((file, names[rule.ours[0]]),)), wanted, wishes.dtype)
            for rule in layout.rules if rule.ours[0] in wanted]


def _ldm_output(replacement: Replacement, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> Output:
    """A tensor under a file's name; `shapes` by the module's names."""
    rule = replacement.rule
    shape, wanted = rule.ldm_shapes(shapes[rule.ours[0]])[0], replacement.dtype if dtype == "source" else DTYPE_OF[dtype]

    def chunks() -> Iterator[torch.Tensor]:
        for chunk in replacement.chunks(shape):
            yield cast(chunk, replacement.dtype, wanted, rule.ldm)

    return Output(rule.ldm, wanted, shape, chunks)


def _rest_outputs(
    file: CheckpointFile, parts: Sequence[PartLayout], modules: Mapping[str, Any], wishes: Wishes
) -> list[Output]:
    """What the file has and no network of a folder: schedules, the layer of OpenCLIP that nothing reads, unknown names.

    Not its averages, which would be stale once somebody trains the folder.
    """
    used = {rule.ldm for layout in parts
            for rule in resolved(layout.rules, file.shapes, shapes_of(modules[layout.part]), file.path.name)}
    return [own_output(file, entry, wishes.dtype) for name, entry in file.entries.items()
            if name not in used and not name.startswith(EMA)]


def _rest_of(folder: Path, taken: Collection[str], wishes: Wishes, stack: ExitStack) -> tuple[list[Output], dict[str, str]]:
    """What `_rest_outputs` once wrote into the folder, but for names in use, and what the former header still says."""
    if not (folder / REST_FILE).is_file():
        return [], {}
    file = stack.enter_context(open_checkpoint(folder / REST_FILE))
    outputs = [own_output(file, entry, wishes.dtype) for name, entry in file.entries.items() if name not in taken]
    return outputs, still_true(file.metadata, same_model=True)


def _indices(family: Family, settings: Mapping[str, Mapping[str, Any]], taken: Collection[str]) -> list[Output]:
    """`position_ids`, which files of CLIP carry and older programs want."""
    names = {f"{row.prefix}embeddings.position_ids": row.part for row in family.text_encoders if row.layout == "clip"}
    return [output_of(name, torch.arange(settings[part].get("max_position_embeddings", 77)).reshape(1, -1))
            for name, part in names.items() if name not in taken]


def _require_free(destination: Path, form: str, wishes: Wishes) -> None:
    """Raise UnsafePath where something would be lost."""
    is_folder = os.path.isdir(destination)
    if form != "diffusers" and not wishes.overwrite:
        require_no_sidecar(destination)
    if not os.path.exists(destination) or (is_folder and not any(destination.iterdir())):
        return
    if not wishes.overwrite or (is_folder and not (destination / "model_index.json").is_file()):
        raise UnsafePath(f"{destination.name} is to be written", "there is something of that name already",
                         "Choose another name, or add --overwrite." if not wishes.overwrite else "Choose another name.")
