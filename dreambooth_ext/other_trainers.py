"""Settings of other trainers, sd-scripts and sd_dreambooth_extension, as ours: a table of names for each, and what is refused."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .config import Concept
from .errors import ConfigError, DreamboothError
from .files import expanded
from .presets import settings_in, settings_of


@dataclasses.dataclass(frozen=True)
class Imported:
    """Settings taken from elsewhere, and what was not taken, each with its reason."""

    settings: dict[str, Any]
    not_taken: tuple[str, ...]


def name_here(name: str) -> str:
    """What a setting of sd-scripts, or of diffusers' own script, is called here; empty if it has no counterpart."""
    return _DIFFUSERS.get(name) or _SD_SCRIPTS.get(name, ("",))[0]


def import_settings(path: Path, *, look_within: bool = True) -> Imported:
    """Read sd_dreambooth_extension's db_config.json, or sd-scripts' arguments as .json or .toml.

    Without `look_within` no folder that it names is looked into. Raises ConfigError if the file is none of them.
    """
    try:
        values = settings_in(path)
    except ConfigError as error:
        raise ConfigError(error.faults, "Choose a file of settings as .json or .toml. sd-scripts writes the arguments of its "
                                        "command line into one, if --output_config --config_file NAME.toml is added.") from error
    imported = _imported(values, path)
    return _with_the_folders_within(imported) if look_within else imported


def import_text(text: str, file_name: str) -> Imported:
    """The same for a file's content."""
    path = Path(Path(file_name).name or "settings.json")
    return _imported(settings_of(lambda: text, path), path)


def _imported(values: Mapping[str, Any], path: Path) -> Imported:
    if "concepts_list" in values or "model_name" in values:
        return _translated(values, _SD_DREAMBOOTH, {"concepts_list": _concepts_of_extension})
    if "pretrained_model_name_or_path" in values:
        return _translated(_as_ours(values), _SD_SCRIPTS, {})
    raise ConfigError([f"{path.name}: neither sd_dreambooth_extension's nor sd-scripts' settings"],
                      "Choose db_config.json of one of its models, or the file of arguments that sd-scripts was given.")


Translation = tuple[str, Callable[[Any], Any]]


def _same(value: Any) -> Any:
    return value


def _choice(table: Mapping[str, str]) -> Callable[[Any], Any]:
    return lambda value: table[str(value)]


_SCHEDULERS = _choice({name: name for name in ("constant", "constant_with_warmup", "linear", "cosine",
                                               "cosine_with_restarts", "polynomial")})
_PRECISIONS = _choice({"no": "no", "fp16": "fp16", "bf16": "bf16"})
_OPTIMIZER_NAMES = {"8bit adamw": "adamw_8bit", "adamw": "adamw", "adamw8bit": "adamw_8bit", "lion": "lion",
                    "adafactor": "adafactor", "torch adamw": "adamw", "prodigy": "prodigy"}


def _optimizer(value: Any) -> str:
    return _OPTIMIZER_NAMES[str(value).lower()]


def _side(value: Any) -> int:
    return int(str(value).split(",")[0])


def _first(value: Any) -> float:
    """Of several text encoders' rates, the first one's."""
    return float(value[0] if isinstance(value, list) and value else value)


_SHARED: dict[str, Translation] = {
    "learning_rate": ("learning_rate", float), "lr_scheduler": ("lr_scheduler", _SCHEDULERS),
    "lr_warmup_steps": ("lr_warmup_steps", int), "mixed_precision": ("mixed_precision", _PRECISIONS),
    "train_batch_size": ("train_batch_size", int), "gradient_checkpointing": ("gradient_checkpointing", bool),
    "gradient_accumulation_steps": ("gradient_accumulation_steps", int), "clip_skip": ("clip_skip", int),
    "noise_offset": ("noise_offset", float), "prior_loss_weight": ("prior_loss_weight", float),
    "max_grad_norm": ("max_grad_norm", float), "seed": ("seed", int),
    "use_8bit_adam": ("optimizer", lambda on: "adamw_8bit" if on else "adamw"),
}
_SD_DREAMBOOTH: dict[str, Translation] = {
    **_SHARED, "model_name": ("output_name", str), "src": ("base", str), "resolution": ("resolution", int),
    "optimizer": ("optimizer", _optimizer), "min_snr_gamma": ("snr_gamma", lambda value: float(value) or None),
    "hflip": ("random_flip", bool), "train_unet": ("", _same), "use_ema": ("ema_decay", lambda on: 0.999 if on else 0.0),
    "tenc_weight_decay": ("", _same), "adamw_weight_decay": ("adam_weight_decay", float),
    "txt_learning_rate": ("text_encoder_learning_rate", float),
}
_SD_SCRIPTS: dict[str, Translation] = {
    **_SHARED, "pretrained_model_name_or_path": ("base", str), "output_name": ("output_name", str),
    "output_dir": ("models_dir", str), "max_train_steps": ("steps", int), "min_snr_gamma": ("snr_gamma", float),
    "resolution": ("resolution", _side), "max_resolution": ("resolution", _side), "flip_aug": ("random_flip", bool),
    "optimizer_type": ("optimizer", _optimizer), "optimizer": ("optimizer", _optimizer),
    "text_encoder_lr": ("text_encoder_learning_rate", _first), "lr_scheduler_num_cycles": ("lr_num_cycles", int),
    "loss_type": ("loss_type", _choice({"l2": "l2", "huber": "huber"})), "huber_c": ("huber_c", float),
    "enable_bucket": ("crop", lambda on: "buckets" if on else "center"),
    "v_parameterization": ("prediction_type", lambda on: "v_prediction" if on else "auto"),
    "save_precision": ("publish_dtype", _choice({"float": "fp32", "fp16": "fp16", "bf16": "bf16"})),
    "network_train_unet_only": ("train_text_encoder", lambda on: not on),
    "network_dim": ("lora_rank", int), "network_alpha": ("lora_alpha", float), "vae": ("vae", str),
    "save_model_as": ("publish_format", _choice({"ckpt": "ckpt", "safetensors": "safetensors"})),
    "caption_dropout_rate": ("caption_dropout", float), "save_every_n_steps": ("snapshot_every", int),
    "zero_terminal_snr": ("zero_terminal_snr", bool), "train_data_dir": ("instance_dir", str), "reg_data_dir": ("class_dir", str),
}
# What diffusers' train_dreambooth.py and its LoRA script call a setting that sd-scripts does not have.
_DIFFUSERS = {"instance_data_dir": "instance_dir", "class_data_dir": "class_dir", "checkpointing_steps": "snapshot_every",
              "validation_prompt": "preview_prompts", "validation_steps": "preview_every", "rank": "lora_rank"}
_EPOCHS = "epochs are not counted here; give steps"
_WHY_NOT = {"max_train_epochs": _EPOCHS, "num_train_epochs": _EPOCHS, "epoch": _EPOCHS,
            "num_class_images_per": "give num_class_images, their number in all"}
_CONCEPT: dict[str, Translation] = {
    "instance_data_dir": ("instance_dir", str), "class_data_dir": ("class_dir", str),
    "instance_prompt": ("instance_prompt", str), "class_prompt": ("class_prompt", str),
    "instance_token": ("token", str), "class_token": ("class_noun", str),
    "class_negative_prompt": ("class_negative_prompt", str),
}


def _translated(values: Mapping[str, Any], table: Mapping[str, Translation],
                special: Mapping[str, Callable[[Any], tuple[dict[str, Any], list[str]]]]) -> Imported:
    settings: dict[str, Any] = {}
    not_taken: list[str] = []
    for name, value in values.items():
        if value is None:  # how both write what nobody has set
            continue
        if name in special:
            found, refused = special[name](value)
            settings.update(found)
            not_taken += refused
            continue
        target, read = table.get(name, ("", _same))
        if not target:
            not_taken.append(f"{name}: {_WHY_NOT.get(name, 'it has no counterpart here')}")
            continue
        try:
            settings[target] = read(value)
        except (KeyError, TypeError, ValueError, OverflowError):
            not_taken.append(f"{name}: {value!r} has no counterpart here")
    if settings.keys() & {"optimizer", "mixed_precision"}:
        settings.setdefault("memory_profile", "none")  # a profile brings its own
    return Imported(settings, tuple(not_taken))


def _as_ours(values: Mapping[str, Any]) -> dict[str, Any]:
    """What sd-scripts takes for granted is told; its learning_rate is that of the parts that are given none of their own."""
    values = {name: value for name, value in values.items() if value is not None}
    unet = values.pop("unet_lr", None)
    if unet is not None:
        values.setdefault("text_encoder_lr", values.get("learning_rate"))
        values["learning_rate"] = unet
    if values.get("network_module"):
        values.setdefault("network_dim", 4)
    return values


_COUNTED_FOLDER = re.compile(r"(\d+)_(\S+) *(.*)")


def _with_the_folders_within(imported: Imported) -> Imported:
    """sd-scripts is given the folder above 10_rxz dog and that above 1_dog, training those that hold the pictures.

    For whoever may look into any folder: what is imported through the page is not looked up.
    """
    settings = dict(imported.settings)
    within = _counted_folders(settings.get("instance_dir"))
    if not within:
        return imported
    of_class = _counted_folders(settings.pop("class_dir", None))
    concepts = []
    for folder, repeats, token, noun in within:
        named = [each for each, _, *words in of_class if " ".join(words).strip() == noun]
        if not named and len(within) == len(of_class) == 1:  # of several, the pictures of one class are not those of another
            named = [of_class[0][0]]
        concept: dict[str, Any] = {"instance_dir": str(folder), "token": token, "class_noun": noun, "repeats": repeats}
        if named:  # sd-scripts has the pictures that are there, and renders none
            concept |= {"class_dir": str(named[0]), "num_class_images": _count_of_pictures(named[0]) or None}
            if named[0].name.partition("_")[2].strip() != noun:
                concept["class_prompt"] = named[0].name.partition("_")[2].strip()  # what sd-scripts calls them
        concepts.append(concept)
    settings["with_prior_preservation"] = bool(of_class)
    if of_class:
        settings["foreign_class_images"] = "use"
    if len(concepts) > 1:
        del settings["instance_dir"]
        return Imported({**settings, "concepts": concepts}, imported.not_taken)
    return Imported({**settings, **{name: value for name, value in concepts[0].items() if value and name != "repeats"}},
                    imported.not_taken)


def _count_of_pictures(folder: Path) -> int:
    return sum(path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp", ".bmp") for path in folder.iterdir())


def _counted_folders(parent: str | None) -> list[tuple[Path, int, str, str]]:
    """Each folder in it that is named as 10_rxz dog, with the number, the first word and the rest."""
    try:
        found = sorted(path for path in expanded(parent).iterdir() if os.path.isdir(path)) if parent else []
    except (OSError, DreamboothError):  # another computer's: it is told when training looks for it
        return []
    matched = [(path, _COUNTED_FOLDER.fullmatch(path.name)) for path in found]
    return [(path, int(match[1]), match[2], match[3]) for path, match in matched if match]


def _concepts_of_extension(entries: Any) -> tuple[dict[str, Any], list[str]]:
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        return {}, ["concepts_list: no list of objects"]
    concepts, not_taken = [], []
    for number, entry in enumerate(entries, start=1):
        imported = _translated({name: value for name, value in entry.items() if value not in ("", None)}, _CONCEPT, {})
        concepts.append(dataclasses.asdict(Concept(**imported.settings)))
        not_taken += [f"concept {number}: {line}" for line in imported.not_taken]
    return {"concepts": concepts}, not_taken
