"""Dreambooth training: setup, steps, save, cleanup (Ruiz et al. 2023)."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..config import TrainConfig
from ..dataset.manifest import TrainingSet
from ..errors import Cancelled, Diverged, ResumeError
from ..files import replace_folder
from ..models.load import StableDiffusion, save_diffusers
from ..models.unet import predict
from ..progress import Progress
from ..run_folder import RunFolder
from . import checkpoint
from .data import Batch, DiffusersBatches, LatentCache, NativeBatches
from .loss import dreambooth_loss
from .memory import device_memory_gib, on_device, release
from .noise_schedule import NoiseSchedule
from .precision import accelerator_for
from .preview import write_previews
from .session import Session

LATENT_FACTOR = 8  # pixels per latent, a side
EXPLODED = 1e4  # no loss of a latent diffusion model is ever near it


@dataclass(frozen=True)
class TrainResult:
    """What a run ended in; `losses` are those of the steps taken now."""

    steps: int
    losses: tuple[float, ...]
    diffusers_dir: Path


def train(config: TrainConfig, model: StableDiffusion, dataset: TrainingSet, run: RunFolder, progress: Progress, *,
          resume: bool = False) -> TrainResult:
    """Train to `config.steps` and write run.diffusers_dir. Raises Cancelled after a snapshot, Diverged, StorageError."""
    with torch.inference_mode(False), torch.enable_grad(), accelerator_for(config) as accelerator:
        session: Session | None = None
        try:
            # Zero terminal SNR changes what the model is, for previews and whoever loads it, as well as its training.
            model = replace(model, zero_terminal_snr=model.zero_terminal_snr or config.zero_terminal_snr)
            cache = _encode(config, model, dataset, accelerator.device, progress)
            session = Session(config, model, accelerator)
            loop = _Loop(config, session, dataset, cache, run, progress)
            losses = loop.run(resume)
            loop.save_result()
        finally:
            if session is not None:
                session.close()
            model.to("cpu")
            release()
    return TrainResult(config.steps or 0, tuple(losses), run.diffusers_dir)


def _encode(
    config: TrainConfig, model: StableDiffusion, dataset: TrainingSet, device: Any, progress: Progress
) -> LatentCache:
    with on_device(model.vae, device):
        return LatentCache(model.vae, [*dataset.instance, *dataset.prior], config.random_flip, progress)


class _Loop:
    """The steps of one run."""

    def __init__(self, config: TrainConfig, session: Session, dataset: TrainingSet, cache: LatentCache, run: RunFolder,
                 progress: Progress) -> None:
        self._config, self._session, self._run, self._progress = config, session, run, progress
        self._steps = config.steps or 0
        accelerator, scaling = session.accelerator, session.model.vae.config.scaling_factor
        if config.draw_order == "diffusers":
            self._batches: Any = DiffusersBatches(config, dataset, session.model.vae)
        else:
            self._batches = NativeBatches(config, dataset, cache, scaling, accelerator.process_index,
                                          accelerator.num_processes)
        self._schedule = NoiseSchedule(session.model.alphas_cumprod().float()).to(session.device)
        prompts = [(image.prompt, (image.height, image.width)) for image in (*dataset.instance, *dataset.prior)]
        session.cache_prompts([*prompts, *(("", size) for _, size in prompts)] if config.caption_dropout else prompts)
        self._losses: list[float] = []
        self._snapshot_step = -1
        self._writes = accelerator.is_main_process

    def run(self, resume: bool) -> list[float]:
        first = self._restore() if resume else 0
        self._progress.start("training", self._steps)
        if first == 0:
            self._preview(0)
        started = time.perf_counter()
        for step in range(first, self._steps):
            if self._config.text_encoder_stop_step is not None and step >= self._config.text_encoder_stop_step:
                self._session.stop_text_encoder()
            figures = self._step(step)
            self._tell(step + 1, figures, (step + 1 - first) / (time.perf_counter() - started))
            if self._progress.cancelled:
                self._snapshot(step + 1)
                raise Cancelled
            self._due(step + 1)
        return self._losses

    def save_result(self) -> None:
        """The finished model as a folder that diffusers loads."""
        self._snapshot(self._steps)
        if self._writes:
            with self._session.published_weights():
                replace_folder(self._run.diffusers_dir, lambda folder: save_diffusers(self._session.model, folder))

    def _step(self, step: int) -> dict[str, float]:
        session, config, started = self._session, self._config, time.perf_counter()
        rates = session.set_learning_rates(step)
        sums: dict[str, torch.Tensor] = {}
        for micro in range(config.gradient_accumulation_steps):
            losses = self._losses_of(self._batches.batch(step, micro))
            session.accelerator.backward(losses["loss"] / config.gradient_accumulation_steps)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.detach() / config.gradient_accumulation_steps
        norm = 0.0
        if config.max_grad_norm:
            norm = float(session.accelerator.clip_grad_norm_(session.trained_parameters(), config.max_grad_norm))
        figures = {name: float(value) for name, value in sums.items()}
        self._require_sane(step + 1, figures["loss"])
        session.optimizer.step()
        session.optimizer.zero_grad()
        if session.ema is not None:
            session.ema.update()
        self._losses.append(figures["loss"])
        return {**figures, "lr": rates["unet"], "lr_text_encoder": rates.get("text_encoder", 0.0), "grad_norm": norm,
                "seconds": time.perf_counter() - started}

    def _losses_of(self, batch: Batch) -> dict[str, torch.Tensor]:
        session = self._session
        latents, noise = batch.latents.to(session.device), batch.noise.to(session.device)
        timesteps = batch.timesteps.to(session.device)
        noisy = self._schedule.add_noise(latents, noise, timesteps)
        size = latents.shape[-2] * LATENT_FACTOR, latents.shape[-1] * LATENT_FACTOR
        output = predict(session.prepared["unet"], noisy, timesteps, session.conditioning(batch.prompts, size))
        kind = session.model.prediction_type
        target = noise if kind == "epsilon" else self._schedule.velocity(latents, noise, timesteps)
        return dreambooth_loss(output, target, timesteps, batch.instances, self._schedule, kind, self._config)

    def _require_sane(self, step: int, loss: float) -> None:
        if not math.isfinite(loss) or loss > EXPLODED:
            kept = checkpoint.snapshots(self._run.checkpoints_dir)
            where = f"The last good snapshot is of step {kept[-1][0]}." if kept else "No snapshot was made before."
            raise Diverged(f"training at learning rate {self._config.learning_rate:g}",
                           f"the loss became {loss:g} at step {step}",
                           f"{where} Train again with a lower learning rate, or with bf16 or fp32 instead of fp16.")

    def _tell(self, step: int, figures: dict[str, float], steps_per_s: float) -> None:
        if self._writes:
            self._run.append_metrics({"step": step, **figures})
        self._progress.report(step, self._steps, loss=figures["loss"], steps_per_s=steps_per_s,
                              seconds_left=(self._steps - step) / steps_per_s,
                              memory_gib=device_memory_gib(self._session.device))

    def _due(self, step: int) -> None:
        config = self._config
        snapshot_every = config.snapshot_every or max(1, self._steps // 2)
        preview_every = config.preview_every or snapshot_every
        if step % snapshot_every == 0 or self._progress.take_request("snapshot"):
            self._snapshot(step)
        if step % preview_every == 0 or step == self._steps or self._progress.take_request("preview"):
            self._preview(step)

    def _snapshot(self, step: int) -> None:
        if step == self._snapshot_step or not self._writes:
            return
        session, published = self._session, None
        if session.ema is not None:
            with session.published_weights():
                published = {part: {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}
                             for part, module in session.modules.items()}
        checkpoint.write(self._run.checkpoints_dir, step, session.modules, published, session.state_dict(step),
                         self._config.keep_snapshots)
        self._snapshot_step = step

    def _preview(self, step: int) -> None:
        if not self._config.preview_steps or not self._writes:
            return
        session, vae = self._session, self._session.model.vae
        with on_device(vae, session.device), session.published_weights():
            session.move_text_encoders(session.device)
            write_previews(session.model, self._config, self._run.previews_dir, step, self._progress)
        if not session.trains_text:
            session.move_text_encoders("cpu")

    def _restore(self) -> int:
        if self._config.draw_order == "diffusers":
            raise ResumeError(f"{self._run.path.name} is to be continued", "its draws are diffusers', which have no resume",
                              "Start it again under another name.")
        kept = checkpoint.snapshots(self._run.checkpoints_dir)
        if not kept:
            self._run.truncate_metrics(0)
            return 0
        step, folder = kept[-1]
        self._session.load_state_dict(checkpoint.read(folder, self._session.modules))
        self._run.truncate_metrics(step)
        self._snapshot_step = step
        self._progress.log(f"continued from step {step}")
        return step
