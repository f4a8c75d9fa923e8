"""Settings under a name: ours as rows of a table, the user's own as files."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .config import BYTES_AT_MOST, VERSION, Concept, TrainConfig, migrated
from .errors import ConfigError
from .files import require_safe_name, write_json

PRESETS: dict[str, dict[str, Any]] = {
    "subject": {"kind": "subject", "train_text_encoder": True, "learning_rate": 5e-6, "prior_loss_weight": 1.0, "lora_rank": 0},
    "style": {"kind": "style", "train_text_encoder": True, "learning_rate": 3e-6, "class_noun": "artwork style", "lora_rank": 0},
    "face": {"kind": "subject", "class_noun": "person", "random_flip": False, "learning_rate": 2e-6,
             "text_encoder_learning_rate": 1e-6, "lora_rank": 0},
    "LoRA": {"lora_rank": 16, "lora_alpha": 16.0, "learning_rate": 1e-4, "text_encoder_learning_rate": None},
    "low memory": {"memory_profile": "low"},
}
# What belongs to one run alone is not part of a preset.
OF_ONE_RUN = {"base", "output_name", "models_dir", "runs_dir", "instance_dir", "class_dir", "token", "vae", "choices"}


def names(folder: Path) -> list[str]:
    """Our presets, then the user's."""
    own = sorted(path.stem for path in folder.glob("*.json")) if os.path.isdir(folder) else []
    return [*PRESETS, *(name for name in own if name not in PRESETS)]


def load(name: str, folder: Path) -> dict[str, Any]:
    """The settings of a preset. Raises ConfigError, UnsafePath."""
    if name in PRESETS:
        return dict(PRESETS[name])
    path = folder / f"{require_safe_name(name, 'the preset')}.json"
    if not os.path.isfile(path):
        raise ConfigError([f"there is no preset named {name}"], "Choose one of: " + ", ".join(names(folder)))
    values = settings_in(path)
    TrainConfig.from_dict(values).require_usable()  # what is no setting, or no value of one, is refused
    return migrated(values)


def save(name: str, config: TrainConfig, folder: Path) -> Path:
    """Keep all settings that are not of one run alone, and differ from their defaults, under `name`."""
    if name in PRESETS:
        raise ConfigError([f"a preset named {name} is built in"], "Choose another name.")
    path = folder / f"{require_safe_name(name, 'the preset')}.json"
    values: dict[str, Any] = {}
    owners: list[TrainConfig | Concept] = [config, *config.concepts[:1]]
    for owner in owners:
        for field in dataclasses.fields(owner):
            value = getattr(owner, field.name)
            if field.name not in OF_ONE_RUN | {"concepts"} and value != field.default:
                values[field.name] = value
    write_json(path, {"version": VERSION, **values})
    return path


def delete(name: str, folder: Path) -> None:
    """Remove one of the user's own. Raises ConfigError, UnsafePath."""
    if name in PRESETS:
        raise ConfigError([f"the preset {name} is built in"], "It cannot be removed.")
    path = folder / f"{require_safe_name(name, 'the preset')}.json"
    try:
        path.unlink()
    except OSError as error:
        raise ConfigError([f"the preset {name} cannot be removed ({error.strerror})"], "`presets` lists those there are.") \
            from error


def settings_in(path: Path) -> dict[str, Any]:
    """What a .json or .toml file holds, whoever wrote it. Raises ConfigError."""
    def text() -> str:
        if path.stat().st_size > BYTES_AT_MOST:
            raise ConfigError([f"{path.name} is far too large for settings"], "Choose a file of settings.")
        return path.read_text(encoding="utf-8-sig")

    return settings_of(text, path)


def settings_of(text_of: Callable[[], str], path: Path) -> dict[str, Any]:
    """The same for a text, of the kind that the path's name tells."""
    try:
        text = text_of()
        values = _flat_toml(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError([f"{path.name} cannot be read ({getattr(error, 'strerror', None) or error})"]) from error
    if not isinstance(values, dict):
        raise ConfigError([f"{path.name} holds no settings"])
    return values


def _flat_toml(text: str) -> dict[str, Any]:
    try:
        import tomllib
    except ModuleNotFoundError as error:  # Python 3.10
        raise ValueError("reading .toml needs Python 3.11; save the settings as .json") from error
    flat: dict[str, Any] = {}
    for name, value in tomllib.loads(text).items():
        flat.update(value if isinstance(value, dict) else {name: value})
    return flat
