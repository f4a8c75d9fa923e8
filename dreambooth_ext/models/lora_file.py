"""LoRA files: writing, reading, extracting from two checkpoints, merging into one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import BadNumbers, MissingTensors, UnsupportedFamily
from ..files import require_safe_name, require_space, write_atomically
from ..progress import SILENT, Progress
from .checkpoint_file import DTYPE_OF, DTYPES, CheckpointFile, open_checkpoint
from .checkpoint_writer import output_of, write_safetensors
from .convert import resolved
from .family import EMA, SD2, Family
from .ldm_keys import Rule
from .load import recognise
from .lora_keys import BASE_VERSIONS, LoraNames, linear_and_convolutions, target_layers
from .networks import built, shapes_of
from .publish import overlay, scheduler_facts, write_outputs
from .vae_file import open_with_vae

_ENDS = (".lora_down.weight", ".lora_up.weight", ".alpha")
_OTHER_KINDS = (("model.diffusion_model.input_blocks.0.0.weight", "a whole checkpoint"),
                (".dora_scale", "a DoRA"), (".hada_", "a LoHa"), (".lokr_", "a LoKr"),
                (".oft_", "an OFT"), ("oft_blocks", "an OFT"), (".lora_mid.", "a LoCon with a third factor"),
                (".diff", "a LyCORIS with whole differences"), (".w_norm", "a LyCORIS with norms"),
                (".lora_A.", "a LoRA under the names of PEFT"),
                (".lora.up.", "a LoRA under the names of diffusers"), ("_lora.up.", "a LoRA under the names of diffusers"))
Layer = tuple[str, str]  # part ("unet", "text_encoder", ...) and path, in our names


@dataclass(frozen=True)
class LowRank:
    """What a LoRA adds to a layer's weight: up x down x alpha / rank."""

    down: torch.Tensor  # (rank, in) or (rank, in, k, k)
    up: torch.Tensor  # (out, rank) or (out, rank, 1, 1)
    alpha: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def delta(self, shape: Sequence[int]) -> torch.Tensor:
        """float32, in the shape of the layer's weight."""
        product = self.up.float().flatten(1) @ self.down.float().flatten(1)
        return (product * (self.alpha / self.rank)).reshape(tuple(shape))


def write_lora(
    path: Path, family: Family, unet_config: Mapping[str, Any], layers: Mapping[Layer, LowRank],
    metadata: Mapping[str, Any] | None = None, dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a .safetensors that the WebUI's Lora tab reads. Raises BadNumbers, StorageError."""
    names = LoraNames(family, unet_config)
    tensors: dict[str, torch.Tensor] = {}
    for (part, module), low in layers.items():
        name = names.of(part, module)
        tensors[f"{name}.alpha"] = torch.tensor(low.alpha, dtype=dtype)
        tensors[f"{name}.lora_down.weight"] = low.down.detach().to("cpu", dtype).contiguous()
        tensors[f"{name}.lora_up.weight"] = low.up.detach().to("cpu", dtype).contiguous()
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise BadNumbers(f"{path.name} is to be written", f"{name} holds NaN or Inf",
                             "Take an earlier snapshot, or train at a lower learning rate.")
    with write_atomically(path) as stream:
        write_safetensors(stream, [output_of(name, tensor) for name, tensor in sorted(tensors.items())],
                          lora_header(family, layers, metadata or {}))
    return path


def publish_lora(
    trained: Path, base: Path, destination_dir: Path, name: str, *, dtype: str = "source",
    metadata: Mapping[str, Any] | None = None, progress: Progress = SILENT,
) -> Path:
    """Write a run's lora.safetensors as NAME.safetensors under the names that the WebUI's Lora tab reads.

    `trained` has PART.MODULE.lora_down.weight, .lora_up.weight and .alpha. `dtype`: "source", "fp32", "fp16", "bf16".
    Raises MissingTensors if it is not of this base, BadNumbers, StorageError; nothing half-written is left.
    """
    require_safe_name(name, "the LoRA")
    with open_checkpoint(base) as file, open_checkpoint(trained) as adapters:
        seen = Base(file)
        asked = f"{trained.name} is to be published for {base.name}"
        progress.start("publishing", 0)
        stems = _stems(adapters, asked)
        known = {".".join(layer): layer for layer in seen.layers}
        layers = {}
        for stem in stems:
            progress.check()
            if stem not in known:
                raise MissingTensors(asked, f"the base has no layer {stem}", "Publish with the base that was trained.")
            layers[known[stem]] = _low_rank_in(adapters, stem, seen.layers[known[stem]], asked)
        stored = adapters.entries[f"{stems[0]}.lora_up.weight"].dtype
        kind = DTYPES[stored if dtype == "source" else DTYPE_OF[dtype]]
        require_space(destination_dir, adapters.path.stat().st_size, "The LoRA")
        given = {"title": name, "base_name": base.name, **scheduler_facts(trained.parent), **(metadata or {})}
        path = write_lora(destination_dir / f"{name}.safetensors", seen.family, seen.unet_config, layers, given, kind)
        progress.report(1, 1, path.name)
    return path


def lora_header(family: Family, layers: Mapping[Layer, LowRank], metadata: Mapping[str, Any]) -> dict[str, str]:
    """What hosts and other tools look for in the header, and the provenance of the run."""
    ranks = {low.rank for low in layers.values()}
    alphas = {low.alpha for low in layers.values()}
    header = {
        "ss_base_model_version": BASE_VERSIONS[family.key], "ss_v2": str(family is SD2),
        "ss_network_module": "networks.lora", "ss_network_dim": str(max(ranks, default=0)),
        "ss_network_alpha": str(max(alphas, default=0.0)), "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{family.architecture}/lora", "modelspec.title": str(metadata.get("title", "")),
        "format": "pt",
    }
    if "prediction_type" in metadata:
        header["modelspec.prediction_type"] = "v" if metadata["prediction_type"] == "v_prediction" else "epsilon"
    return header | {f"dreambooth.{name}": value if isinstance(value, str) else json.dumps(value)
                     for name, value in metadata.items()}


class Base:
    """An open checkpoint seen as layers: the weight of each, whichever tensors of the file hold it."""

    def __init__(self, file: CheckpointFile) -> None:
        self.file = file
        self.family, _, parts = recognise(file, vae=False)
        self.rules: dict[Layer, tuple[Rule, int]] = {}
        self.layers: dict[Layer, nn.Module] = {}  # those that a LoRA of ours adapts
        self.all_layers: dict[Layer, nn.Module] = {}  # others' adapt what embeds the timestep, too, and the first and last ones
        for layout in parts:
            module = built(layout, file.path.name)
            if layout.part == "unet":
                self.unet_config = layout.config
            for rule in resolved(layout.rules, file.shapes, shapes_of(module), file.path.name):
                for place, ours in enumerate(rule.ours):
                    if ours.endswith(".weight"):
                        self.rules[layout.part, ours.removesuffix(".weight")] = rule, place
            targets = target_layers(layout.part, module)
            self.layers |= {(layout.part, path): layer for path, layer in targets.items()}
            self.all_layers |= {(layout.part, path): layer for path, layer in linear_and_convolutions(module).items()}

    def weight(self, layer: Layer) -> torch.Tensor:
        """float32, as the module has it."""
        rule, place = self.rules[layer]
        return rule.to_ours(self.file.finite_tensor(rule.ldm))[place].float()


@dataclass(frozen=True)
class Extraction:
    """How well an extracted LoRA stands for the difference of two models; all are Frobenius norms.

    `error` is what the LoRA leaves of the difference of the layers that it adapts, `bound` the least that any of this
    rank could leave (Eckart and Young 1936), `beyond` the difference in tensors that a LoRA of this kind has not.
    """

    path: Path
    layers: int
    difference: float
    error: float
    bound: float
    beyond: float

    def __str__(self) -> str:
        share = self.error / self.difference if self.difference else 0.0
        whole = (self.difference**2 + self.beyond**2) ** 0.5
        outside = self.beyond / whole if whole else 0.0
        return (f"{self.layers} layers; {share:.1%} of their difference is lost (the least possible at this rank is "
                f"{self.bound / self.difference if self.difference else 0:.1%}); {outside:.1%} of the whole difference is in "
                "tensors that a LoRA does not adapt")


def low_rank(delta: torch.Tensor, rank: int) -> tuple[LowRank, float]:
    """The nearest matrix of this rank, and the squared Frobenius norm of what it leaves (Eckart and Young 1936).

    `delta` has a weight's shape. Truncated SVD through the eigenvectors of the smaller Gram matrix, in double
    precision: the numbers are those of float32 weights, and it takes a fraction of an SVD's time.
    """
    matrix = delta.double().flatten(1)
    rank = min(rank, *matrix.shape)
    wide = matrix.shape[0] <= matrix.shape[1]
    squares, vectors = torch.linalg.eigh(matrix @ matrix.t() if wide else matrix.t() @ matrix)
    squares, vectors = squares.flip(0).clamp(min=0), vectors.flip(1)[:, :rank]
    root = squares[:rank].pow(0.25)
    inverse = torch.where(root > 1e-6 * root[0], 1 / root, 0)  # what lies below is rounding
    # Both halves as large as each other, so that neither leaves the range of fp16.
    if wide:
        up, down = vectors * root, inverse[:, None] * (vectors.t() @ matrix)
    else:
        up, down = (matrix @ vectors) * inverse, root[:, None] * vectors.t()
    up, down = up.float(), down.float()
    if delta.ndim == 4:
        up, down = up[:, :, None, None], down.reshape(rank, *delta.shape[1:])
    return LowRank(down.contiguous(), up.contiguous(), float(rank)), float(squares[rank:].sum())


@torch.no_grad()
def extract_lora(
    base: Path, tuned: Path, destination: Path, rank: int, *, conv_rank: int = 0, dtype: torch.dtype = torch.float32,
    metadata: Mapping[str, Any] | None = None, progress: Progress = SILENT,
) -> Extraction:
    """Write what `tuned` learnt over `base` as a LoRA. Raises the errors of `load_checkpoint`, StorageError, Cancelled."""
    layers: dict[Layer, LowRank] = {}
    sums = {"difference": 0.0, "error": 0.0, "bound": 0.0, "beyond": 0.0}
    with open_checkpoint(base) as one, open_checkpoint(tuned) as two:
        before, after = Base(one), Base(two)
        if before.family != after.family or before.rules.keys() != after.rules.keys():
            raise MissingTensors(f"{tuned.name} is to be compared with {base.name}", "they are models of different kinds",
                                 "Give the checkpoint that it was trained from.")
        progress.start("extracting", len(before.layers))
        for number, (layer, module) in enumerate(before.layers.items()):
            progress.check()
            progress.report(number, len(before.layers), ".".join(layer))
            delta = after.weight(layer) - before.weight(layer)
            size = conv_rank if _is_convolution(module) else rank
            square = float(delta.double().square().sum())
            if not square:
                continue
            if not size:
                sums["beyond"] += square
                continue
            low, least = low_rank(delta, size)
            low = LowRank(low.down.to(dtype), low.up.to(dtype), low.alpha)
            sums["difference"] += square
            sums["error"] += float((delta - low.delta(delta.shape)).double().square().sum())
            sums["bound"] += least
            layers[layer] = low
        sums["beyond"] += _difference_elsewhere(before, after)
        given = {"base_name": base.name, "tuned_name": tuned.name, **(metadata or {})}
        write_lora(destination, before.family, before.unet_config, layers, given, dtype)
    return Extraction(destination, len(layers), **{name: value**0.5 for name, value in sums.items()})


def read_lora(path: Path, base: Base) -> dict[Layer, LowRank]:
    """The layers of a LoRA file for this base. Raises MissingTensors, UnsupportedFamily, BadNumbers."""
    asked = f"{path.name} is to be merged into {base.file.path.name}"
    known = LoraNames(base.family, base.unet_config).known(base.all_layers)
    with open_checkpoint(path) as file:
        found: dict[Layer, LowRank] = {}
        stems = _stems(file, asked)
        unknown = [name for name in stems if name not in known]
        if unknown:
            some = ", ".join(unknown[:3]) + (f" and {len(unknown) - 3} more" if len(unknown) > 3 else "")
            raise MissingTensors(asked, f"the base has no layer {some}, of the {len(stems)} that it adapts",
                                 "The LoRA is for another family of models." if len(unknown) == len(stems) else
                                 "Only layers of UNet and text encoders that the base has can be merged.")
        for name in stems:
            found[known[name]] = _low_rank_in(file, name, base.all_layers[known[name]], asked)
    return found


def _stems(file: CheckpointFile, asked: str) -> list[str]:
    """The names of the layers in a LoRA file. Raises UnsupportedFamily for anything but plain LoRA."""
    stems = set()
    for name in file.entries:
        stem = next((name.removesuffix(end) for end in _ENDS if name.endswith(end)), None)
        if stem is None:
            kind = next((kind for sign, kind in _OTHER_KINDS if any(sign in each for each in file.entries)), name)
            raise UnsupportedFamily(asked, f"it is no plain LoRA ({kind})",
                                    "Only plain LoRA files, as sd-scripts names their tensors, can be used here.")
        stems.add(stem)
    if not stems:
        raise MissingTensors(asked, "it is empty", "Choose another file.")
    return sorted(stems)


def _low_rank_in(file: CheckpointFile, stem: str, layer: nn.Module, asked: str) -> LowRank:
    """One layer of a LoRA file, proven to fit. Without `.alpha` it is the rank."""
    if not {f"{stem}.lora_down.weight", f"{stem}.lora_up.weight"} <= file.entries.keys():
        raise MissingTensors(asked, f"{stem} is incomplete in it", "Download or copy the file again.")
    down, up = (file.finite_tensor(f"{stem}.lora_{end}.weight") for end in ("down", "up"))
    shape = layer.weight.shape
    fits = down.ndim > 1 and up.ndim > 1 and down.numel() and up.numel()
    if (not fits or (up.shape[0], down[0].numel()) != (shape[0], shape[1:].numel())  # type: ignore[union-attr,index,operator]
            or up[0].numel() != down.shape[0]):
        raise MissingTensors(asked, f"{stem} has another size than the base's layer", "It is for another model.")
    alpha = file.finite_tensor(f"{stem}.alpha") if f"{stem}.alpha" in file.entries else torch.tensor(float(down.shape[0]))
    if alpha.numel() != 1:
        raise MissingTensors(asked, f"{stem}.alpha is no number", "Download or copy the file again.")
    return LowRank(down, up, float(alpha))


@dataclass(frozen=True)
class Merged:
    """A tensor of the base with the LoRA added, computed when it is written."""

    base: Base
    rule: Rule
    added: Mapping[int, LowRank]  # by its place in the rule
    weight: float
    dtype: str = "F32"

    def tensor(self, shape: Sequence[int]) -> torch.Tensor:
        parts = [part.float() for part in self.rule.to_ours(self.base.file.tensor(self.rule.ldm))]
        for place, low in self.added.items():
            parts[place] = parts[place] + self.weight * low.delta(parts[place].shape)
        return self.rule.to_ldm(parts, shape).contiguous()

    def chunks(self, shape: Sequence[int]) -> Iterator[torch.Tensor]:
        yield self.tensor(shape).reshape(-1).view(torch.uint8)


def merge_lora(
    base: Path, lora: Path, destination_dir: Path, name: str, weight: float = 1.0, *, publish_format: str = "safetensors",
    dtype: str = "source", vae: Path | None = None, metadata: Mapping[str, Any] | None = None, progress: Progress = SILENT,
) -> list[Path]:
    """Write `base` with `weight` times the LoRA added; whatever the LoRA does not touch stays byte for byte.

    `vae` is put into a base that has none. Raises the errors of `publish`.
    """
    require_safe_name(name, "the model")
    with open_with_vae(base, vae) as file:
        seen = Base(file)
        added: dict[str, tuple[Rule, dict[int, LowRank]]] = {}
        for layer, low in read_lora(lora, seen).items():
            rule, place = seen.rules[layer]
            added.setdefault(rule.ldm, (rule, {}))[1][place] = low
        replaced = {ldm: Merged(seen, rule, places, weight) for ldm, (rule, places) in added.items()}
        outputs = overlay(file, replaced, dtype, progress)
        require_space(destination_dir, sum(output.nbytes for output in outputs), "The merged model")
        given = {"lora_name": lora.name, "lora_weight": weight, "base_name": base.name, **_noise_facts(lora, base),
                 **(metadata or {})}
        return write_outputs(file, outputs, destination_dir, name, publish_format, given, progress)


def _noise_facts(lora: Path, base: Path) -> dict[str, Any]:
    """What a LoRA that was trained here on this base says of it, and the base itself perhaps not: its settings told it."""
    with open_checkpoint(lora) as file:
        said = file.metadata
    if said.get("dreambooth.base_name") != base.name:
        return {}
    kind, zero_snr = said.get("dreambooth.prediction_type"), said.get("dreambooth.zero_terminal_snr") == "true"
    return {**({"prediction_type": kind} if kind in ("epsilon", "v_prediction") else {}),
            **({"zero_terminal_snr": True} if zero_snr else {})}


def _is_convolution(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1)


def _difference_elsewhere(before: Base, after: Base) -> float:
    """Squared difference in tensors that are no layers of a LoRA: norms, biases, embeddings."""
    adapted = {before.rules[layer][0].ldm for layer in before.layers}
    total = 0.0
    for name, entry in before.file.entries.items():
        if entry.is_float and name not in adapted and name in after.file.entries and not name.startswith(EMA):
            if after.file.entries[name].shape != entry.shape:
                continue
            one, two = before.file.tensor(name), after.file.tensor(name)
            total += float((one.double() - two.double()).square().sum())
    return total
