"""What a run learns from, as hashes: whoever goes on with it, publishes or compares it is told if that has changed since."""

from __future__ import annotations

from pathlib import Path

from .config import TrainConfig
from .dataset.manifest import sha256_of
from .errors import ResumeError
from .files import unreadable
from .run_folder import RunFolder

SIDECAR = "sidecar"  # of the base; its hash is empty where there is none, and runs of earlier versions know nothing of it


def inputs_of(config: TrainConfig) -> dict[str, str]:
    """sha256 of everything a run learns from: the base with its sidecar, another VAE, each picture and its caption.

    Raises PictureError, StorageError.
    """
    from .dataset.captions import caption_path
    from .dataset.choices import orders_of
    from .dataset.pictures import pictures_of

    hashes = _models_of(config)
    for index, concept in enumerate(config.concepts):
        if concept.choices:
            hashes[f"{index}/choices"] = _hash_of(Path(concept.choices).expanduser())
        folder = Path(concept.instance_dir).expanduser()
        for path in pictures_of(folder, orders_of(concept.choices, folder)[0]):
            hashes[f"{index}/{path.name}"] = _hash_of(path)
            if config.use_captions and (caption := caption_path(path)).is_file():
                hashes[f"{index}/{caption.name}"] = _hash_of(caption)
    return hashes


def require_same_inputs(run: RunFolder, now: dict[str, str]) -> None:
    """Raise ResumeError where the run learnt from something else."""
    before = run.known_inputs()
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    changed = [name for name in changed if name != SIDECAR or name in before]
    if changed:
        raise ResumeError(f"{run.path.name} is to be continued", f"what it learns from has changed since: {_named(changed[:5])}",
                          "Put the former files back, or start a new run under another name.")


def require_same_models(run: RunFolder, config: TrainConfig, asked: str) -> None:
    """Raise ResumeError where the base, its sidecar or the VAE of these settings is not what the run learnt from.

    `asked` is what the run is to be. Of a VAE that was named afterwards nothing is to be known.
    """
    before, now = run.known_inputs(), _models_of(config)
    changed = [name for name, value in now.items() if name in before and before[name] != value]
    if config.vae != run.config().vae:
        changed = [name for name in changed if name != "vae"]
    if changed:
        raise ResumeError(f"{run.path.name} is to be {asked}", f"what it learnt from has changed since: {_named(changed)}",
                          "Put the former files back: over others it is another model.")


def _models_of(config: TrainConfig) -> dict[str, str]:
    from .models.sidecar import sidecar_path

    models = {"base": config.base, "vae": config.vae}
    hashes = {name: _hash_of(Path(file).expanduser()) for name, file in models.items() if file}
    beside = sidecar_path(Path(config.base).expanduser())  # which says what the base predicts
    return {**hashes, SIDECAR: _hash_of(beside) if beside.is_file() else ""}


def _named(names: list[str]) -> str:
    told = {"base": "the base", "vae": "the VAE", SIDECAR: "the base's .yaml file"}
    return ", ".join(told.get(name, name.split("/", 1)[-1]) for name in names)


def _hash_of(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise unreadable(path, error) from error
