"""Two steps, a snapshot and a preview of the real thing, in a folder that is removed: what the estimate is worth."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..config import Concept, TrainConfig
from ..dataset.manifest import TrainingImage, TrainingSet, sha256_of
from ..gpu import release
from ..progress import Progress, Report
from ..ram import give_back_ram
from ..run_folder import RunFolder
from . import precision
from .estimate import estimate, profile_that_fits
from .loop import train
from .memory import forget_peak, load_model

STEPS = 2
SAMPLE_S = 0.02


@dataclass(frozen=True)
class Trial:
    """What a dry run took: `peak` bytes of the device (on a CPU of the process, above what it had before)."""

    profile: str
    peak: int
    estimated: int
    seconds_a_step: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def dry_run(config: TrainConfig, progress: Progress) -> Trial:
    """Train `config.base` for two steps on noise, as the settings say. Raises the errors of `load_checkpoint` and `train`."""
    device = torch.device(precision.device_of(config))
    seconds: list[float] = []
    with tempfile.TemporaryDirectory(prefix="dreambooth-trial-") as name, _peak(device) as peak:
        if config.memory_profile == "auto":
            config = replace(config, memory_profile=profile_that_fits(config))
        model, profile = load_model(config), config.memory_profile
        config = _short(config, Path(name), model.resolution)
        estimated = next(row.total - row.context for row in estimate(config, model) if row.profile == profile)
        run = RunFolder.for_config(config)
        run.create(config)
        listener = progress.apart()
        listener.listen(lambda report: seconds.append(_pace(report)) if "steps_per_s" in report.figures else None)
        train(config, model, _noise(config, Path(name)), run, listener)
        del model
    release()
    return Trial(profile, peak[0], estimated, seconds[-1] if seconds else 0.0)


def _pace(report: Report) -> float:
    return 1 / max(1e-9, float(report.figures["steps_per_s"]))


def _short(config: TrainConfig, folder: Path, resolution: int) -> TrainConfig:
    """The same settings for two steps that end with a snapshot and a preview, all in `folder`."""
    return replace(
        config, runs_dir=str(folder / "runs"), models_dir=str(folder / "models"), output_name="trial", steps=STEPS,
        snapshot_every=1, preview_every=STEPS, preview_steps=2, keep_snapshots=1, lr_warmup_steps=0, text_encoder_stop_step=None,
        resolution=config.resolution or resolution,
        concepts=config.concepts or (Concept(instance_dir=str(folder), token="rxz", class_noun="dog"),))


def _noise(config: TrainConfig, folder: Path) -> TrainingSet:
    """As many pictures as a batch has, and as many class images."""
    draws, side = np.random.default_rng(0), config.resolution or 0
    images = []
    for number in range(2 * config.train_batch_size):
        path = folder / f"{number}.png"
        Image.fromarray(draws.integers(0, 255, (side, side, 3), dtype=np.uint8)).save(path)
        prompt = config.concepts[0].uncaptioned_text if number % 2 == 0 else config.concepts[0].class_texts[0]
        images.append(TrainingImage(path, prompt, sha256_of(path), side, side))
    return TrainingSet(tuple(images[::2]), tuple(images[1::2]) if config.with_prior_preservation else ())


@contextmanager
def _peak(device: torch.device) -> Iterator[list[int]]:
    """[bytes] at the most inside the block: the allocator's own figure on a GPU, else the process's memory, looked at often."""
    found = [0]
    if device.type == "cuda":
        forget_peak(device)
        yield found
        found[0] = torch.cuda.max_memory_allocated(device)
        return
    import psutil  # comes with accelerate

    process, over = psutil.Process(), threading.Event()
    give_back_ram()  # what was freed before would be used again, and not be counted
    before = process.memory_info().rss

    def watch() -> None:
        while not over.wait(SAMPLE_S):
            found[0] = max(found[0], process.memory_info().rss - before)

    watcher = threading.Thread(target=watch, name="dreambooth trial")
    watcher.start()
    try:
        yield found
    finally:
        over.set()
        watcher.join()
