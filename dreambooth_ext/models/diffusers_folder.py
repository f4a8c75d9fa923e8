"""Models as folders that `DiffusionPipeline.from_pretrained` loads, written and read without random weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from ..errors import MissingTensors, NotACheckpoint, UnsupportedFamily
from ..files import write_atomically, write_json
from . import noise
from .checkpoint_file import CheckpointFile, open_checkpoint
from .checkpoint_writer import Output, Wrote, output_of, write_safetensors
from .convert import require_all
from .family import SD1, SD2, SDXL, Family
from .layout import missing
from .ldm_keys import canonical, present_vae_name
from .networks import CLASSES, build, class_of, fill, shapes_of, tensors_of
from .stable_diffusion import StableDiffusion
from .tokenizer import Tokenizer, tokenizer_folder

# Where the weights of each part are in a folder.
WEIGHT_FILES = {
    "unet": "unet/diffusion_pytorch_model.safetensors", "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors", "text_encoder_2": "text_encoder_2/model.safetensors",
}
# What a checkpoint file has beside its networks, kept for the way back; diffusers takes no notice of it.
REST_FILE = "not_in_diffusers.safetensors"
_PIPELINES = {("sd", False): "StableDiffusionPipeline", ("sd", True): "StableDiffusionInpaintPipeline",
              ("sdxl", False): "StableDiffusionXLPipeline", ("sdxl", True): "StableDiffusionXLInpaintPipeline"}


def save_diffusers(model: StableDiffusion, folder: Path) -> None:
    """Write all of a model: weights in safetensors in their present dtypes, configurations, tokenizers, scheduler.

    Files appear one by one under their final names; whoever needs all or nothing calls this in
    `files.replace_folder`. Raises StorageError.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for part, module in model.parts.items():
        save_part(module, folder, part)
    write_settings(model, folder)


def save_part(module: Any, folder: Path, part: str) -> None:
    """One network: config.json and its weights."""
    write_part(module, folder, part, [output_of(folder_name(part, ours), value) for ours, value in tensors_of(module).items()])


def saved_part(folder: Path, part: str) -> dict[str, torch.Tensor]:
    """A network's tensors by our names, exactly as `save_part` wrote them. Raises KeyError, OSError, SafetensorError."""
    from safetensors.torch import load_file

    return {canonical(name): tensor for name, tensor in load_file(folder / WEIGHT_FILES[part]).items()}


def write_part(module: Any, folder: Path, part: str, outputs: Sequence[Output], wrote: Wrote = lambda count: None) -> None:
    """The configuration of a network, whose module may be weightless, and these tensors as its weights."""
    (folder / part).mkdir(parents=True, exist_ok=True)
    if part in CLASSES:
        module.save_config(folder / part)
    else:
        module.config.architectures = [type(module).__name__]
        module.config.save_pretrained(folder / part)
    with write_atomically(folder / WEIGHT_FILES[part]) as stream:
        write_safetensors(stream, outputs, {"format": "pt"}, wrote)


def folder_name(part: str, ours: str) -> str:
    """A tensor's name in a folder: the one that every version of diffusers and transformers reads."""
    return ours if part in CLASSES or ours.startswith("text_projection.") else f"text_model.{ours}"


def write_settings(model: StableDiffusion, folder: Path) -> None:
    """All of a folder but its networks: tokenizers, scheduler, index."""
    for number, tokenizer in enumerate(model.tokenizers):
        _save_tokenizer(tokenizer, folder / ("tokenizer" if number == 0 else f"tokenizer_{number + 1}"))
    write_json(folder / "scheduler" / "scheduler_config.json", _scheduler(model))
    write_json(folder / "model_index.json", _index(model))


def load_diffusers(
    folder: Path, base: StableDiffusion | None = None, *, dtype: torch.dtype = torch.float32
) -> StableDiffusion:
    """Load a folder of diffusers' format onto the CPU, in eval mode, offline and strictly.

    `base` gives the file's path, where the model is to remember the checkpoint that it came from.
    Raises NotACheckpoint, MissingTensors, UnsupportedFamily, BadNumbers.
    """
    folder = Path(folder)
    index = read_json(folder / "model_index.json")
    family = family_of(folder, index)
    modules = {part: _load_part(folder, part, family, dtype)
               for part in ("unet", "vae", *(row.part for row in family.text_encoders))}
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    return StableDiffusion(
        family=family, unet=modules["unet"], vae=modules["vae"],
        text_encoders=tuple(modules[row.part] for row in family.text_encoders),
        tokenizers=tuple(Tokenizer(row.pad_token) for row in family.text_encoders),
        prediction_type=str(scheduler.get("prediction_type", "epsilon")),
        zero_terminal_snr=bool(scheduler.get("rescale_betas_zero_snr", False)), path=base.path if base else folder,
        resolution=int(modules["unet"].config.sample_size) * 8,
        linear_start=float(scheduler.get("beta_start", noise.LINEAR_START)),
        linear_end=float(scheduler.get("beta_end", noise.LINEAR_END)),
    )


class PartFiles:
    """The weights of one part of a folder, in one file or several, by our names."""

    def __init__(self, folder: Path, part: str) -> None:
        whole = folder / WEIGHT_FILES[part]
        index = whole.with_suffix(".safetensors.index.json")
        if index.is_file():
            names = sorted({str(name) for name in read_json(index).get("weight_map", {}).values()})
            paths = [whole.parent / Path(name).name for name in names]
        else:
            early = "diffusion_pytorch_model.bin" if part in CLASSES else "pytorch_model.bin"
            names_here = (whole.name, f"{whole.stem}.fp16.safetensors", early)
            paths = [whole.parent / name for name in names_here if (whole.parent / name).is_file()][:1]
        if not paths:
            raise NotACheckpoint(f"{folder.name} is to be read", f"{WEIGHT_FILES[part]} is not there",
                                 "Choose a whole diffusers folder.")
        with ExitStack() as opened:  # which closes the first of several files if a later one cannot be opened
            self.files = [opened.enter_context(open_checkpoint(path)) for path in paths]
            self._opened = opened.pop_all()
        ours = present_vae_name if part == "vae" else canonical
        self.where: dict[str, tuple[CheckpointFile, str]] = {
            ours(name): (file, name) for file in self.files for name in file.entries if not name.endswith("position_ids")
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {ours: file.entries[name].shape for ours, (file, name) in self.where.items()}

    def __enter__(self) -> PartFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()


def settings_of(folder: Path, part: str) -> dict[str, Any]:
    """The keyword arguments of a network's configuration. Raises NotACheckpoint."""
    settings = {name: value for name, value in read_json(folder / part / "config.json").items() if not name.startswith("_")}
    return settings if part in CLASSES else {name: settings[name] for name in _TEXT_SETTINGS if name in settings}


def _load_part(folder: Path, part: str, family: Family, dtype: torch.dtype) -> Any:
    projected = any(row.part == part and row.projected for row in family.text_encoders)
    module = build(part, settings_of(folder, part), folder.name, projected)
    wanted = shapes_of(module)
    with PartFiles(folder, part) as files:
        require_all(wanted, files.where, f"{folder.name}/{part}")
        tensors = {}
        for ours, shape in wanted.items():
            file, name = files.where[ours]
            if file.entries[name].shape != shape:
                raise MissingTensors(f"{folder.name}/{part} is to be loaded",
                                     f"{name} has shape {list(file.entries[name].shape)} instead of {list(shape)}",
                                     "Take the whole folder from one model; its parts do not fit together.")
            tensors[ours] = file.finite_tensor(name).to(dtype)
    fill(module, tensors)
    return module.eval()


_TEXT_SETTINGS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                  "max_position_embeddings", "hidden_act", "projection_dim", "layer_norm_eps", "bos_token_id",
                  "eos_token_id", "pad_token_id")


def family_of(folder: Path, index: Mapping[str, Any]) -> Family:
    """The family of a folder with this model_index.json. Raises UnsupportedFamily."""
    pipeline = index.get("_class_name")
    if pipeline not in _PIPELINES.values():
        raise UnsupportedFamily(f"{folder.name} is to be loaded", f"it is made for {pipeline!s:.60}",
                                "Choose a folder of Stable Diffusion 1.x, 2.x or XL.")
    if "XL" in str(pipeline):
        return SDXL
    text = read_json(folder / "text_encoder" / "config.json")
    return SD1 if text.get("hidden_act") == "quick_gelu" else SD2


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a folder. Raises NotACheckpoint."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise NotACheckpoint(f"{path.parent.name}/{path.name} is to be read", f"it is not there or damaged ({error})",
                             "Choose a whole diffusers folder.") from error
    if not isinstance(values, dict):
        raise missing(str(path.name), ["its table of settings"])
    return values


def _save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer_folder() / name, folder / name)
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        values = read_json(folder / name)
        write_json(folder / name, {**values, "pad_token": tokenizer.pad_token})


def _scheduler(model: StableDiffusion) -> dict[str, Any]:
    return {"_class_name": "DDIMScheduler", "_diffusers_version": _diffusers_version(), **model.scheduler_config()}


def _index(model: StableDiffusion) -> dict[str, Any]:
    kind = "sdxl" if model.family.has_time_ids else "sd"
    index: dict[str, Any] = {"_class_name": _PIPELINES[kind, model.inpainting],
                             "_diffusers_version": _diffusers_version()}
    for row in model.family.text_encoders:
        index[row.part] = list(class_of(row.part, row.projected))
        index[row.part.replace("text_encoder", "tokenizer")] = ["transformers", "CLIPTokenizer"]
    index |= {part: list(class_of(part)) for part in ("unet", "vae")}
    index["scheduler"] = ["diffusers", "DDIMScheduler"]
    if kind == "sd":
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None], "image_encoder": [None, None],
                  "requires_safety_checker": False}
    else:
        index |= {"feature_extractor": [None, None], "image_encoder": [None, None],
                  "force_zeros_for_empty_prompt": True, "add_watermarker": False}
    return index


def _diffusers_version() -> str:
    import diffusers

    return diffusers.__version__
