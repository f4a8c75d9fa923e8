"""Render the same prompts and seeds with the base and with each snapshot, by the host, and measure what came of it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import recipe
from .comparison import (
    BASE,
    Column,
    Comparison,
    Wishes,
    folder_of,
    forget_pictures,
    known_comparison,
    prompts_for,
    small_of,
    step_of_snapshot,
)
from .config import TrainConfig
from .errors import ConfigError, OutOfMemory, ResumeError
from .files import DAMAGED, is_link, make_folder, require_safe_name, write_atomically
from .host import Host, Txt2Img, on_device_of
from .inputs import require_same_models
from .likeness import measure
from .patience import patiently
from .progress import Progress
from .record import reported
from .run_folder import RunFolder

if TYPE_CHECKING:
    from PIL.Image import Image

BORROWED = "dreambooth-comparing-"  # begins the names of the files that stand in the models folder meanwhile
_OWN = f"{BORROWED}{uuid.uuid4().hex[:8]}-"  # this process's: another one may be comparing, too, with the same folder
_FORGOTTEN_S = 24 * 3600  # no snapshot's pictures take that long: what is older was left behind by a process that was killed
SMALL_PX = 192  # the longer side of the copies that pages show


def publishable_snapshots(run: RunFolder) -> list[str]:
    """Names of the snapshots that hold a model, oldest first."""
    if not run.checkpoints_dir.is_dir() or is_link(run.checkpoints_dir):
        return []
    found = [path.name for path in run.checkpoints_dir.iterdir() if not path.is_symlink() and recipe.is_publishable(path)]
    return sorted((name for name in found if step_of_snapshot(name)), key=step_of_snapshot)


def snapshot_folder(run: RunFolder, name: str) -> Path:
    """Where a snapshot that can be published is. Raises ResumeError, UnsafePath."""
    folder = run.checkpoints_dir / require_safe_name(name, "the snapshot")
    if not recipe.is_publishable(folder):
        raise ResumeError(f"{name} of {run.path.name} is to be published", "there is no such snapshot any more",
                          "Choose one of: " + (", ".join(publishable_snapshots(run)) or "none is left"))
    return folder


def plan(run: RunFolder, wishes: Wishes, host: Host) -> Comparison:
    """What will be rendered, without measures. Raises ResumeError without snapshots, ConfigError for unknown ones."""
    from .models.load import inspect
    from .models.vae_file import borrowed_vae

    config, kept = run.config(), publishable_snapshots(run)
    if not kept:
        raise ResumeError(f"{run.path.name} is to be compared with its base", "it has no snapshot yet",
                          "Let it train on until its first snapshot, or ask for one now.")
    unknown = [name for name in wishes.snapshots if name not in kept]
    if unknown:
        raise ConfigError([f"--snapshots: {name} is not there" for name in unknown], "Choose among: " + ", ".join(kept))
    prompts, kinds = prompts_for(config, wishes.prompts)
    base = Path(config.base).expanduser()
    side = config.resolution or inspect(base, check_numbers=False, vae=borrowed_vae(base, config.vae)).resolution
    names = [name for name in kept if name in wishes.snapshots] if wishes.snapshots else kept
    columns = tuple(Column(name, step_of_snapshot(name)) for name in (BASE, *names))
    return Comparison(prompts, kinds, tuple(range(wishes.seed, wishes.seed + wishes.count)), wishes.render_steps,
                      wishes.guidance_scale or config.preview_guidance_scale, side, columns, host.name)


def compare(run: RunFolder, host: Host, progress: Progress, wishes: Wishes) -> Comparison:
    """Render what is missing, measure, and write RUN/comparison. Raises ResumeError, ConfigError, HostError, UnsafePath,
    Cancelled.

    What was rendered before with the same prompts, seeds and settings is not rendered again.
    """
    run.require_own()
    asked, config = plan(run, wishes, host), run.config()
    with reported(run, progress), host.job(run.path.name, progress):
        require_same_models(run, config, "compared with its base")
        _forget_other(run, asked)
        patiently(lambda: asked.write(run), progress, config.storage_wait_min)
        missing = {column.name: _missing(run, asked, column) for column in asked.columns}
        done, total = 0, sum(len(places) for places in missing.values())
        progress.start("comparing", total)
        for column in asked.columns:
            if missing[column.name]:
                with _as_checkpoint(run, config, column, host, progress) as model:
                    for place, image in _rendered(host, model, config, asked, missing[column.name], progress):
                        _save(image, asked.path(run, column.name, *place))
                        done += 1
                        progress.report(done, total)
        with host.free_gpu():
            measured = _measured(run, on_device_of(host, config), asked, progress)
        patiently(lambda: measured.write(run), progress, config.storage_wait_min)
    if measured.why:
        progress.log(measured.why)
    progress.report(total, total)
    return measured


Place = tuple[int, int]  # number of the prompt, seed


def _missing(run: RunFolder, asked: Comparison, column: Column) -> list[Place]:
    return [(number, seed) for number in range(len(asked.prompts)) for seed in asked.seeds
            if not asked.path(run, column.name, number, seed).is_file()]


def _forget_other(run: RunFolder, asked: Comparison) -> None:
    """Pictures of other prompts or settings are removed. Raises StorageError."""
    before = known_comparison(run)
    if before is None or not before.asks_the_same(asked):
        forget_pictures(folder_of(run))


@contextmanager
def _as_checkpoint(run: RunFolder, config: TrainConfig, column: Column, host: Host, progress: Progress) -> Iterator[Path]:
    """A file that the host can load: the base's own, or one written for the while, as publishing would write it."""
    if column.name == BASE:
        yield Path(config.base).expanduser()
        return
    folder = host.models_dir
    _remove_borrowed(folder)
    # Its own name for each snapshot: hosts take a file of the same name for the model that they have loaded already.
    name = f"{_OWN}{run.path.name[:60].strip(' .')}-{column.name}"
    try:
        yield recipe.as_checkpoint(config, run.checkpoints_dir / column.name, folder, name, progress.apart())
    finally:
        _remove_borrowed(folder)


def _remove_borrowed(folder: Path) -> None:
    """This process's own, and those that another one must have left behind, half written ones among them."""
    for path in (*folder.glob(f"{BORROWED}*"), *folder.glob(f".{BORROWED}*.partial")):
        with suppress(OSError):  # Windows keeps a file that is still open; the next comparison removes it
            if path.name.startswith(_OWN) or time.time() - path.stat().st_mtime > _FORGOTTEN_S:
                path.unlink()


def _rendered(
    host: Host, model: Path, config: TrainConfig, asked: Comparison, places: Sequence[Place], progress: Progress
) -> Iterator[tuple[Place, Image]]:
    from .models.vae_file import borrowed_vae

    vae = borrowed_vae(model, config.vae)
    batch = config.class_batch_size or host.batch_size(asked.side, asked.side)
    for number, prompt in enumerate(asked.prompts):
        seeds = [seed for wanted, seed in places if wanted == number]
        for start in range(0, len(seeds), batch):
            progress.check()
            some = tuple(seeds[start : start + batch])
            request = Txt2Img(prompt, some, steps=asked.render_steps, guidance_scale=asked.guidance_scale, width=asked.side,
                              height=asked.side, clip_skip=config.clip_skip, prediction_type=config.prediction_type, vae=vae)
            for seed, image in zip(some, host.txt2img(model, request, progress.apart()), strict=True):
                yield (number, seed), image


def _save(image: Image, path: Path) -> None:
    """The small copy first: a picture that is there has one."""
    make_folder(path.parent)
    small = image.convert("RGB")
    small.thumbnail((SMALL_PX, SMALL_PX))
    with write_atomically(small_of(path)) as stream:
        small.save(stream, "JPEG", quality=90)
    with write_atomically(path) as stream:
        image.save(stream, "PNG")


def _measured(run: RunFolder, config: TrainConfig, asked: Comparison, progress: Progress) -> Comparison:
    """With the base as the eye. What cannot be measured (no prompt of the subject, no prepared picture) stays None."""
    subjects = _pictures(run.prepared())
    if not subjects:
        progress.log("The run's prepared pictures are gone, so that nothing can be measured against them.")
        return asked
    paths = {column.name: [[asked.path(run, column.name, number, seed) for seed in asked.seeds]
                           for number in range(len(asked.prompts))] for column in asked.columns}
    flat = [path for rows in paths.values() for row in rows for path in row]
    progress.log(f"Measuring: {len(flat)} pictures, seen through the base.")
    seen = _features(config, asked.side, [*subjects, *_pictures(flat)], progress)
    own, rest = seen[: len(subjects)], seen[len(subjects):]
    shape = (len(asked.columns), len(asked.prompts), len(asked.seeds))
    measures = measure(own, rest.reshape(*shape, *rest.shape[1:]), asked.kinds)
    columns = tuple(replace(column, nearness=one.nearness, drift=one.drift, error=one.error)
                    for column, one in zip(asked.columns, measures, strict=True))
    return replace(asked, columns=columns)


def _pictures(paths: Sequence[Path]) -> list[Image]:
    """Raises ResumeError for one that is damaged."""
    from PIL import Image

    opened = []
    for path in paths:
        try:
            opened.append(Image.open(path).convert("RGB"))
        except DAMAGED as error:
            raise ResumeError(f"{path.name} is to be measured", "it is damaged, or no picture",
                              f"Delete it from {path.parent.name} in the run's folder, and compare again.") from error
    return opened


def _features(config: TrainConfig, side: int, images: list[Image], progress: Progress) -> Any:
    import torch

    from .models.features import features
    from .models.load import load_checkpoint
    from .models.vae_file import borrowed_vae
    from .training.precision import device_of

    device = device_of(config) if torch.cuda.is_available() else "cpu"  # a run may have come from elsewhere
    dtype = torch.float32 if device == "cpu" else torch.float16
    base = Path(config.base).expanduser()
    model = load_checkpoint(base, vae=borrowed_vae(base, config.vae),
                            dtypes={"unet": dtype, "text_encoder": dtype, "text_encoder_2": dtype})
    try:
        return features(model.to(device), images, side, progress.apart())
    except torch.cuda.OutOfMemoryError as error:
        raise OutOfMemory("pictures are to be measured", f"the GPU ran out of memory ({error})",
                          "Close what else uses the GPU; the pictures are kept, so compare again.") from error
    finally:
        model.to("cpu")
