"""All that can be found wrong with a run before anything starts: settings, files, folders, token, room on the disk."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from .card import is_ours, model_named
from .config import CLASS_IMAGES_AT_MOST, STEPS_PER_PICTURE, Concept, TrainConfig
from .errors import ConfigError, DiskFull, DreamboothError, MissingPackage, PictureError
from .files import require_space, require_writable
from .needs import advice

CLASS_IMAGES_FIRM_ADVICE = 2000
LEAST_OF_A_LORA, LEAST_SCALED = 2e-5, 2e-6  # learning rates
MODULES = ("torch", "diffusers", "accelerate", "transformers", "safetensors", "PIL", "yaml", "numpy")


@dataclass(frozen=True)
class Checked:
    """Settings that can start. `config` has its empty values filled in; `pictures` counts each concept's."""

    config: TrainConfig
    resolution: int
    pictures: tuple[int, ...]
    warnings: tuple[str, ...] = ()


def check(config: TrainConfig, *, goes_on: bool = False) -> Checked:
    """Judge the settings against what is on disk. A run that goes on has choices on its pictures of its own, or none.

    Raises ConfigError with every fault, MissingPackage before anything that a missing library would cut short.
    """
    config.validate()
    lacking = [name for name in MODULES if find_spec(name) is None]
    if lacking:
        raise MissingPackage("a run is to be started", f"{', '.join(lacking)} cannot be imported",
                             advice() or f"Install it into this Python: pip install {' '.join(lacking)}")
    config = config if goes_on else with_choices(config)
    faults: list[str] = []
    pictures = tuple(_count_pictures(concept, faults) for concept in config.concepts)
    if config.with_prior_preservation:
        faults += [f"--class-dir: {concept.class_dir} is a file, and no folder" for concept in config.concepts
                   if concept.class_dir and os.path.isfile(Path(concept.class_dir).expanduser())]
    of_base = _resolution_of_base(config, faults)
    resolution = config.resolution or of_base
    for folder in (config.models_dir, config.runs_dir):
        try:
            require_writable(Path(folder).expanduser())
        except DreamboothError as error:
            faults.append(_in_one_line(error))
    if faults:
        raise ConfigError(faults)
    steps = config.steps or STEPS_PER_PICTURE * sum(pictures)
    config = replace(config, steps=steps, resolution=resolution)
    config.validate()
    faults += _faults_of_engine(config)
    if not faults and not goes_on:
        faults += _faults_of_disk(config)
    if faults:
        raise ConfigError(faults)
    return Checked(config, resolution, pictures, tuple(_warnings(config)))


def require_new_model(config: TrainConfig) -> None:
    """Raise ConfigError if the end of a new run of this name would replace a model, its own base, say, or a deleted run's."""
    taken = model_named(config, config.output_name)
    if taken:
        raise ConfigError([f"--output-name: {taken.name} is in the models folder already"],
                          "Choose another name, or move that file elsewhere.")


def require_our_model(config: TrainConfig, name: str) -> None:
    """Raise ConfigError if publishing under that name would replace a model that no run here has made."""
    taken = model_named(config, name)
    if taken and not is_ours(config, name):
        raise ConfigError([f"--name: {taken.name} is in the models folder already, and no run here has made it"],
                          "Choose another name, or move that file elsewhere.")


def with_choices(config: TrainConfig) -> TrainConfig:
    """What was chosen in Review counts wherever the run is started from."""
    from .dataset.choices import choices_file

    def chosen(concept: Concept) -> Concept:
        path = choices_file(Path(config.runs_dir).expanduser(), Path(concept.instance_dir).expanduser())
        return replace(concept, choices=str(path)) if not concept.choices and os.path.isfile(path) else concept

    return replace(config, concepts=tuple(chosen(concept) for concept in config.concepts))


def _count_pictures(concept: Concept, faults: list[str]) -> int:
    """How many pictures the folder holds; every one of them is opened, so that a bad one is found now."""
    from .dataset.choices import orders_of
    from .dataset.pictures import require_pictures

    try:
        folder = Path(concept.instance_dir).expanduser()
        return len(require_pictures(folder, orders_of(concept.choices, folder)[0]))
    except PictureError as error:
        faults.append(_in_one_line(error))
        return 0


def _resolution_of_base(config: TrainConfig, faults: list[str]) -> int:
    """The side, in pixels, of the pictures that the base was made for; it is fully judged on the way, and another VAE with it."""
    from .models.load import inspect
    from .models.prediction import require_possible_snr

    try:
        info = inspect(Path(config.base).expanduser(), prediction_type=config.prediction_type, vae=config.vae_path)
        require_possible_snr(info.prediction_type, config.zero_terminal_snr)
        return info.resolution
    except ConfigError as error:
        faults += error.faults
        return 512
    except DreamboothError as error:
        faults.append(_in_one_line(error))
        return 512


def _faults_of_engine(config: TrainConfig) -> list[str]:
    from .training.memory import faults

    return faults(config)


def _faults_of_disk(config: TrainConfig) -> list[str]:
    """A run would wait for room at its first snapshot, perhaps at night, after an hour of class images."""
    from .training.estimate import least_snapshot_bytes

    try:
        require_space(Path(config.runs_dir).expanduser(), least_snapshot_bytes(config), "Each snapshot")
        return []
    except DiskFull as error:
        return [_in_one_line(error)]


def _warnings(config: TrainConfig) -> list[str]:
    from .dataset.captions import captions_advice, token_advice
    from .models.tokenizer import token_pieces

    found = []
    for concept in config.concepts:
        if concept.token:
            found.append(token_advice(concept.token, token_pieces))
        found += prompt_advice(concept)
        if config.use_captions:
            found.append(captions_advice(Path(concept.instance_dir).expanduser()))
        if (concept.num_class_images or 0) > CLASS_IMAGES_FIRM_ADVICE:
            found.append(f"{concept.num_class_images} class images: more than {CLASS_IMAGES_FIRM_ADVICE} never helped; "
                         f"{CLASS_IMAGES_AT_MOST} suffice.")
    if not config.with_prior_preservation:
        found.append("Without prior preservation the class itself will drift towards the subject.")
    return [warning for warning in (*found, lora_advice(config)) if warning]


def lora_advice(config: TrainConfig) -> str:
    """What is to be said of a LoRA that would learn next to nothing; empty if there is nothing to be said.

    An optimizer moves an adapter by its learning rate a step, whatever it is scaled by afterwards. Prodigy finds its own rate.
    """
    if not config.lora_rank or config.optimizer == "prodigy":
        return ""
    rate, scale = config.learning_rate, config.lora_alpha / config.lora_rank
    if rate >= LEAST_OF_A_LORA and rate * scale >= LEAST_SCALED:
        return ""
    return (f"A LoRA at learning rate {rate:g}, scaled by alpha / rank = {scale:.3g}, learns next to nothing: 1e-4, with "
            "an alpha as large as the rank, is usual (preset LoRA).")


def prompt_advice(concept: Concept) -> list[str]:
    """What is to be said of prompts that are not made of token and class."""
    from .dataset.captions import bracket_advice

    own = (("The instance prompt", concept.instance_prompt), ("The class prompt", concept.class_prompt))
    return [advice for advice in (bracket_advice(*each) for each in own) if advice]


def _in_one_line(error: DreamboothError) -> str:
    return f"{error.asked}: {error.why}" + (f" ({error.instead})" if error.instead else "")
