"""The corridor from pictures to a model in the host, and its parts, one function a command."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from . import __version__, rollback
from .card import write_cards
from .check import Checked, check, require_new_model, require_our_model
from .config import TrainConfig
from .dataset.manifest import TrainingImage, TrainingSet
from .errors import ConfigError, DreamboothError, HostError, ResumeError, StorageError
from .files import require_space, sweep, write_json
from .host import Host, on_device_of
from .inputs import inputs_of, require_same_inputs, require_same_models
from .ledger import ledger
from .patience import patiently
from .progress import Progress
from .record import reported, told_in_the_run_folder
from .run_folder import RunFolder, resume_command, step_in
from .team import Team, TrainOrder
from .tensorboard_log import tensorboard_log
from .watchdog import watched

LORA_FILE = "lora.safetensors"  # as training/lora.py names it
FINDINGS_TOLD = 10

T = TypeVar("T")


@dataclass(frozen=True)
class Finished:
    """What a whole run ended in."""

    run: RunFolder
    published: tuple[Path, ...]
    steps: int
    seconds: float


def train(config: TrainConfig, host: Host, progress: Progress) -> Finished:
    """Pictures in, selected model out. Raises ConfigError and its like before anything is written."""
    team = Team.launched(config.device)
    if team.follows:
        return _follow(team, host, progress)
    with team.led():
        return _lead(config, team, host, progress)


def _lead(config: TrainConfig, team: Team, host: Host, progress: Progress) -> Finished:
    checked = check(on_device_of(host, config))
    run = RunFolder.for_config(checked.config)
    run.require_free()
    require_new_model(config)
    with run.lock():
        run.require_free()  # nobody made one meanwhile
        checked = replace(checked, config=_with_own_choices(checked.config, run))
        run.create(replace(checked.config, device=config.device), inputs_of(checked.config))
        for warning in checked.warnings:
            progress.log(warning)
        return _corridor(checked, run, team, host, progress, resume=False)


def _with_own_choices(config: TrainConfig, run: RunFolder) -> TrainConfig:
    """The choices on the pictures as they are now, kept with the run: others may be made while it lasts."""
    concepts = []
    for index, concept in enumerate(config.concepts):
        if concept.choices:
            write_json(run.choices_path(index), json.loads(Path(concept.choices).expanduser().read_text(encoding="utf-8-sig")))
            concept = replace(concept, choices=str(run.choices_path(index)))
        concepts.append(concept)
    return replace(config, concepts=tuple(concepts))


def resume(run: RunFolder, host: Host, progress: Progress, *, snapshot: str = "", steps: int | None = None,
           learning_rate: float | None = None) -> Finished:
    """Continue a run that was interrupted, killed or failed; or from `snapshot`, or otherwise than before (see rollback.go_back).

    Raises ResumeError if its base or pictures have changed, or it would fail again, and the errors of `rollback.go_back`.
    """
    team = Team.launched(run.config().device)
    if team.follows:
        return _follow(team, host, progress)
    with team.led():
        rollback.require_another_way(run, learning_rate)
        rollback.require_possible(run, snapshot, steps, learning_rate)
        config, state = rollback.changed(run.config(), steps, learning_rate), run.known_state()
        if state.state == "finished" and not snapshot and steps is None:
            with suppress(DreamboothError), run.lock():
                sweep(run.path)  # half a report, if it was killed at its very end
            raise ResumeError(f"{run.path.name} is to be continued", f"it is finished, with all its {state.steps} steps",
                              "`publish` writes its model again; `train` under another name starts anew.")
        checked = check(on_device_of(host, config), goes_on=True)
        with run.lock():
            run.require_own()
            sweep(run.path)
            require_same_inputs(run, inputs_of(config))
            rollback.go_back(run, snapshot, steps, learning_rate)  # only now: it takes away what nobody brings back
            return _corridor(checked, run, team, host, progress, resume=True)


def publish(
    run: RunFolder, progress: Progress, *, snapshot: Path | None = None, name: str = "", config: TrainConfig | None = None
) -> list[Path]:
    """Convert a run's result, or one of its snapshots' folders, into model files in the models folder.

    Raises ResumeError if the run has no result yet or its base has changed, ConfigError for another name or folder where somebody
    else's model is, CheckpointError and StorageError of models/publish.py.
    """
    own = run.config()
    config, name = config or own, name or own.output_name
    if (name, config.models_dir) != (own.output_name, own.models_dir):
        require_our_model(config, name)
    run.require_own()
    source = snapshot or run.diffusers_dir
    if not is_publishable(source):
        raise ResumeError(f"{run.path.name} is to be published", "it has no finished model yet",
                          f"Continue it first: {resume_command(run.path.name, str(run.path.parent))}")
    progress.start("publishing", 0)
    require_same_models(run, config, "published")
    for suffix in ("ckpt", "safetensors", "yaml", "json", "preview.png"):
        sweep(Path(config.models_dir).expanduser(), f"{name}.{suffix}")
    make = _publish_lora if config.lora_rank else _publish_model
    made = provenance(_at_its_rate(config, snapshot), run, step_in(source.name))
    paths = make(config, source, name, made, progress)
    for path in paths:
        progress.log(f"published {path}")
    try:
        write_cards(paths, config, run, made)
    except StorageError as error:
        progress.log(f"The model is there, but not its card: {error.why}")
    return paths


def _at_its_rate(config: TrainConfig, snapshot: Path | None) -> TrainConfig:
    """The settings with the learning rate that a snapshot was trained at: the run may have gone on at another."""
    from .training.checkpoint import made_of

    try:
        rate = made_of(snapshot).learning_rate if snapshot else None
    except ResumeError:  # its state is damaged, and is not what is published
        return config
    return replace(config, learning_rate=rate) if isinstance(rate, (int, float)) else config  # a file of settings may say 1


def is_publishable(folder: Path) -> bool:
    """True for a run's result and its snapshots: networks, or a LoRA."""
    return (folder / "unet").is_dir() or (folder / LORA_FILE).is_file()


def _publish_model(config: TrainConfig, source: Path, name: str, metadata: dict[str, Any], progress: Progress) -> list[Path]:
    from .models.publish import publish as publish_files

    base, models_dir = Path(config.base).expanduser(), Path(config.models_dir).expanduser()
    require_space(models_dir, base.stat().st_size * (2 if config.publish_format == "both" else 1), "The finished model")
    return publish_files(base, source, models_dir, name, publish_format=config.publish_format, dtype=config.publish_dtype,
                         vae=config.vae_path, metadata=metadata, progress=progress)


def _publish_lora(config: TrainConfig, source: Path, name: str, metadata: dict[str, Any], progress: Progress) -> list[Path]:
    from .models.lora_file import publish_lora

    told: dict[str, Any] = {} if config.prediction_type == "auto" else {"prediction_type": config.prediction_type}
    told |= {"zero_terminal_snr": True} if config.zero_terminal_snr else {}  # what the settings alone say, and no base
    return [publish_lora(source / LORA_FILE, Path(config.base).expanduser(), Path(config.models_dir).expanduser(), name,
                         dtype=config.publish_dtype, metadata={**metadata, **told}, progress=progress)]


def as_checkpoint(config: TrainConfig, source: Path, folder: Path, name: str, progress: Progress) -> Path:
    """A snapshot as one file that a host can load by itself: a LoRA is merged into its base. Raises as `publish`."""
    metadata = {"title": name, "base_name": Path(config.base).name}
    if not config.lora_rank:
        return _publish_model(replace(config, models_dir=str(folder), publish_format="safetensors"), source, name, metadata,
                              progress)[0]
    from .models.lora_file import merge_lora

    lora = _publish_lora(replace(config, models_dir=str(folder)), source, f"{name}-lora", metadata, progress)[0]
    try:
        return merge_lora(Path(config.base).expanduser(), lora, folder, name, vae=config.vae_path, metadata=metadata,
                          progress=progress)[0]
    finally:
        with suppress(OSError):  # Windows keeps a file that is still open: whoever asked for the checkpoint removes both
            lora.unlink()


def estimate(config: TrainConfig, profiles: Sequence[str] | None = None, family: str = "sd1") -> list[Any]:
    """What memory profiles will need of the device (training/estimate.py); without a base for a model of that family."""
    from .training import estimate as memory

    return memory.estimate(config, None if config.base else memory.full_size(family), profiles)


def memory_needed(config: TrainConfig, rows: Sequence[Any]) -> Any:
    """Of `estimate`'s rows that of the profile that the settings, or "auto", stand for, with what is free now."""
    from .training import memory, precision
    from .training.estimate import in_effect

    return in_effect(config, [replace(row, free=memory.free_bytes(precision.device_of(config))) for row in rows])


def dry_run(config: TrainConfig, progress: Progress) -> Any:
    """Two steps, a snapshot and a preview of the run on noise (training/trial.py): what it really takes of the device.

    Raises ConfigError before anything is loaded, OutOfMemory, CheckpointError.
    """
    from .training.memory import faults, out_of_memory_told
    from .training.trial import dry_run as try_out

    found = faults(config) if config.base else ["--base: a dry run trains a checkpoint file; name one"]
    if found:
        raise ConfigError(found)
    with out_of_memory_told(config):
        return try_out(config, progress)


def provenance(config: TrainConfig, run: RunFolder, step: int | None = None) -> dict[str, Any]:
    """What a published file tells about how it was made; `step` is a snapshot's, None the run's last."""
    step = run.known_state().step if step is None else step
    return {
        "title": config.output_name, "date": time.strftime("%Y-%m-%d"), "trainer": f"dreambooth_ext {__version__}",
        "base_name": Path(config.base).name, "base_sha256": run.known_inputs().get("base", ""),
        "instance_prompts": [concept.instance_text for concept in config.concepts],
        "class_prompts": [text for concept in config.concepts for text in concept.class_texts],
        "steps": step, "global_step": step, "learning_rate": config.learning_rate, "seed": config.seed,
        "train_text_encoder": config.train_text_encoder, "prior_preservation": config.with_prior_preservation,
    }


def audit_pictures(config: TrainConfig, run: RunFolder, resolution: int, progress: Progress) -> None:
    """Look at the original pictures, log the worst findings, and write them all into the run's folder; once a run.

    It advises, and stops no run, whatever it meets with.
    """
    from .dataset.audit import audit

    if run.audit_path.is_file():
        return
    try:
        found = []
        for concept in config.concepts:
            progress.start("preparing", 0, "looking at the pictures")
            kind = "style" if concept.kind == "style" or "style" in concept.instance_text.lower().split() else "subject"
            found.append(audit(Path(concept.instance_dir).expanduser(), kind=kind, resolution=resolution, progress=progress))
            lines = found[-1].lines()
            for line in lines[:FINDINGS_TOLD]:
                progress.log(line)
            more = len(lines) - FINDINGS_TOLD
            progress.log(found[-1].summary + (f" {more} more findings are in {run.audit_path.name}." if more > 0 else ""))
        write_json(run.audit_path, {"version": 1, "concepts": [each.to_dict() for each in found]})
    except (DreamboothError, OSError, ValueError, ArithmeticError, LookupError, TypeError, MemoryError) as error:
        progress.log(f"The pictures could not be looked at beforehand ({type(error).__name__}: {error}); the run goes on.")


def prepare(
    config: TrainConfig, run: RunFolder, resolution: int, progress: Progress, host: Host | None = None, goes_on: bool = False
) -> list[TrainingImage]:
    """The pictures of all concepts, in the run's folder; one that `goes_on` keeps its own. HostError: `host` lacks the upscaler."""
    from .dataset.prepare import prepare_concept, require_upscaler

    require_upscaler(config.upscaler, host.upscalers() if host else [])
    images: list[TrainingImage] = []
    for index, concept in enumerate(config.concepts):
        progress.start("preparing", 0)
        prepared = prepare_concept(concept, index, run.dataset_dir / f"concept-{index}", resolution=resolution, goes_on=goes_on,
                                   crop=config.crop, use_captions=config.use_captions, flatten_on=config.flatten_on,
                                   upscaler=config.upscaler, upscale=host.upscale if host else None, progress=progress)
        images += prepared * concept.repeats
    return images


def class_images(
    checked: Checked, base_sha256: str, host: Host, progress: Progress, team: Team | None = None, goes_on: RunFolder | None = None
) -> list[TrainingImage]:
    """Plan the class images of each concept, render what is missing, and return them all; those it had, of a run that `goes_on`."""
    from .dataset.class_images import ensure

    team = team or Team()
    batch = checked.config.class_batch_size or host.batch_size(checked.resolution, checked.resolution)
    images: list[TrainingImage] = []
    for plan in class_image_plans(checked, base_sha256, host.name):
        progress.log(plan.sentence)
        progress.start("class images", plan.missing)
        images += ensure(plan, Path(checked.config.base).expanduser(), team.shared(host.txt2img), host.provenance(), progress,
                         batch=batch * team.count, began=goes_on.dataset_dir / "manifest.json" if goes_on else None)
    return images


def class_image_plans(checked: Checked, base_sha256: str, host: str = "") -> list[Any]:
    """One plan for each concept: wanted, found, missing, of other origin; with the pace that this host had."""
    from .dataset.class_images import plan
    from .models.vae_file import borrowed_vae

    config = checked.config
    vae = borrowed_vae(Path(config.base).expanduser(), config.vae)
    return [
        plan(concept, base_sha256, pictures=pictures, steps=config.steps or 0, batch=config.train_batch_size,
             accumulation=config.gradient_accumulation_steps, class_steps=config.class_steps,
             guidance_scale=config.class_guidance_scale, resolution=checked.resolution, seed=config.seed,
             library=Path(config.runs_dir).expanduser() / "class-images", foreign=config.foreign_class_images,
             concept_index=index, host=host, prediction_type=config.prediction_type, clip_skip=config.clip_skip, vae=vae)
        for index, (concept, pictures) in enumerate(zip(config.concepts, checked.pictures, strict=True))
    ]


def _corridor(checked: Checked, run: RunFolder, team: Team, host: Host, progress: Progress, *, resume: bool) -> Finished:
    config, started, base_sha256 = checked.config, time.perf_counter(), run.known_inputs().get("base", "")

    def kept(write: Callable[[], T]) -> T:
        """What is written waits for a disk that is full or gone."""
        def there() -> T:
            run.require_there()
            return write()

        return patiently(there, progress, config.storage_wait_min)

    with reported(run, progress), told_in_the_run_folder(run, progress), ledger(run, progress), watched(progress), \
            tensorboard_log(run, progress), host.job(run.path.name, progress):
        kept(lambda: _enter(run, "preparing", steps=config.steps or 0))
        audit_pictures(config, run, checked.resolution, progress)
        instance = kept(lambda: prepare(config, run, checked.resolution, progress, host, resume))
        prior: list[TrainingImage] = []
        if config.with_prior_preservation:
            kept(lambda: _enter(run, "class images"))
            prior = kept(lambda: class_images(checked, base_sha256, host, progress, team, run if resume else None))
            require_same_models(run, config, "trained")  # rendering takes hours, and nothing is published over another base
        dataset = TrainingSet(tuple(instance), tuple(prior))
        kept(lambda: dataset.write(run.dataset_dir / "manifest.json"))
        kept(lambda: _enter(run, "training"))
        with host.free_gpu():
            team.train(TrainOrder(config, run.path, resume))
            steps = _train_model(config, dataset, run, progress, resume)
        kept(lambda: _enter(run, "publishing", step=steps))
        paths = kept(lambda: publish(run, progress, config=config))
        if config.auto_select:
            _select(paths[0], host, progress)
        published = tuple(str(path) for path in paths)
        sweep(run.path)
        kept(lambda: run.write_state(replace(run.known_state(), state="finished", message="", published=published)))
    return Finished(run, tuple(paths), steps, time.perf_counter() - started)


def _select(path: Path, host: Host, progress: Progress) -> None:
    """The model is written: that it cannot be selected is told, and fails no run."""
    try:
        host.select(path)
    except (HostError, StorageError) as error:
        progress.log(str(error))
    except OSError as error:  # a disk that has gone meanwhile
        progress.log(f"{path.name} is to be selected: {error.strerror or error}\nSelect it by hand once the disk is there.")


def _follow(team: Team, host: Host, progress: Progress) -> Finished:
    """Another process than the first: renders and trains its share, and writes nothing."""
    started = time.perf_counter()
    order = team.follow(host.txt2img, progress)
    run = RunFolder(order.run)
    with host.free_gpu():
        dataset = TrainingSet.read(run.dataset_dir / "manifest.json")
        steps = _train_model(order.config, dataset, run, progress, order.resume)
    return Finished(run, (), steps, time.perf_counter() - started)


def _train_model(config: TrainConfig, dataset: TrainingSet, run: RunFolder, progress: Progress, resume: bool) -> int:
    from .training import loop
    from .training.memory import load_model, out_of_memory_told

    config = replace(config, memory_profile=loop.profile_of(config, run, resume))  # before loading: it says how wide
    with out_of_memory_told(config):
        return loop.train(config, load_model(config), dataset, run, progress, resume=resume).steps


def _enter(run: RunFolder, state: str, **values: int) -> None:
    run.write_state(replace(run.known_state(), state=state, message="", failure="", **values))  # type: ignore[arg-type]
