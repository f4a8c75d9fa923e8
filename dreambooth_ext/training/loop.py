"""Dreambooth training: setup, steps, save, cleanup (Ruiz et al. 2023)."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..config import TrainConfig
from ..dataset.manifest import TrainingSet
from ..errors import Cancelled, ConfigError, ResumeError
from ..files import replace_folder
from ..gpu import release
from ..models.stable_diffusion import StableDiffusion
from ..patience import patiently
from ..progress import Progress
from ..run_folder import RunFolder
from . import checkpoint
from .conditioning import masks_without_waiting
from .data import DiffusersBatches, LatentCache, NativeBatches
from .estimate import profile_that_fits
from .figures import Figures
from .kernels.probe import why_none
from .memory import BITSANDBYTES, PROFILES, Plan, device_memory_gib, forget_peak, on_device, plan_for
from .objective import Objective
from .optimizers.vendor import version_that_works
from .passes import pass_for
from .precision import accelerator_for
from .prefetch import Prefetched
from .preview import render_previews, write_previews
from .session import Session, diverged
from .validation import Validation

EXPLODED = 1e4  # no loss of a latent diffusion model is ever near it


@dataclass(frozen=True)
class TrainResult:
    """What this process trained: `steps` the run has in all, `losses` are those of the steps taken now."""

    steps: int
    losses: tuple[float, ...]


def train(config: TrainConfig, model: StableDiffusion, dataset: TrainingSet, run: RunFolder, progress: Progress, *,
          resume: bool = False) -> TrainResult:
    """Train to `config.steps` and write run.diffusers_dir. Raises Cancelled after a snapshot, Diverged, StorageError."""
    if model.inpainting and config.draw_order == "diffusers":
        raise ConfigError(["--draw-order: diffusers' script trains no inpainting models"], "Leave it at native.")
    config = replace(config, memory_profile=profile_of(config, run, resume, model))
    plan = _plan(config, run, resume)
    progress.log(plan.sentence)
    if plan.on_gpu and config.kernels == "auto" and not plan.kernels:
        progress.log(f"torch's operations do what kernels of our own would do faster: {why_none(plan.device)}")
    with (torch.inference_mode(False), torch.enable_grad(), masks_without_waiting(),
          accelerator_for(config, plan.autocast) as accelerator):
        session: Session | None = None
        forget_peak(accelerator.device)
        try:
            # Zero terminal SNR changes what the model is, for previews and whoever loads it, as well as its training.
            model = replace(model, zero_terminal_snr=model.zero_terminal_snr or config.zero_terminal_snr)
            with on_device(model.vae, accelerator.device):
                cache = LatentCache(model.vae, [*dataset.instance, *dataset.prior], config.random_flip, progress,
                                    inpainting=model.inpainting)
            session = Session(config, plan, model, accelerator)
            with _Loop(session, dataset, cache, run, progress) as loop:
                losses = loop.run(resume)
                loop.save_result()
        finally:
            if session is not None:
                session.close()
            if not plan.sharded:
                model.to("cpu")
            release()
    return TrainResult(config.steps or 0, tuple(losses))


def profile_of(config: TrainConfig, run: RunFolder, resume: bool, model: StableDiffusion | None = None) -> str:
    """The settings' memory profile; for "auto" that with which the run began, else what it stands for now.
    What began on a CPU has none: a GPU's is taken if it has the same state.

    Without `model` the base file is looked at. Raises as `profile_that_fits`, and ResumeError.
    """
    if config.memory_profile != "auto":
        return config.memory_profile
    before = _made(run, resume)
    if before and before.profile != "none":
        return before.profile
    found = profile_that_fits(config, model)
    if before and found != "none" and PROFILES[found].fused_backward and not config.lora_rank:
        raise ResumeError(f"{run.path.name} is to be continued", "it began on a CPU, with fp32 weights, and this GPU has room for "
                          f"memory profile {found} at most, which cannot take over the optimizer's state",
                          "Go on where it began (WebUI: --use-cpu all), or start it again under another name.")
    return found


def _made(run: RunFolder, resume: bool) -> checkpoint.Made | None:
    kept = checkpoint.snapshots(run.checkpoints_dir) if resume else []
    return checkpoint.made_of(kept[-1][1]) if kept else None


def _plan(config: TrainConfig, run: RunFolder, resume: bool) -> Plan:
    """A run that is resumed keeps its optimizer, and whose state it has. Raises ResumeError."""
    before = _made(run, resume)
    plan = plan_for(config, optimizer=before.optimizer, eight_bit=before.eight_bit,
                    channels_last=before.channels_last) if before else plan_for(config)
    if plan.eight_bit == BITSANDBYTES and not version_that_works(plan.device):
        raise ResumeError(f"{run.path.name} is to be continued", "its optimizer's state is bitsandbytes', which does not work here",
                          "Install the bitsandbytes that it was started with, or start it again under another name.")
    return plan


@dataclass
class _Pending:
    """A step whose figures may still be on their way from the device."""

    step: int
    figures: Figures
    more: dict[str, float]


class _Loop:
    """The steps of one run."""

    def __init__(self, session: Session, dataset: TrainingSet, cache: LatentCache, run: RunFolder,
                 progress: Progress) -> None:
        self._config, self._session, self._run, self._progress = session.config, session, run, progress
        self._steps = self._config.steps or 0
        self._stack = ExitStack()  # what ends with the loop
        accelerator = session.accelerator
        if self._config.draw_order == "diffusers":
            self._batches: Any = DiffusersBatches(self._config, dataset, session.model.vae)
        else:
            native = NativeBatches(self._config, dataset, cache, accelerator.process_index, accelerator.num_processes)
            self._batches = self._stack.enter_context(Prefetched(
                native, self._steps, self._config.gradient_accumulation_steps, session.device))
        self._objective = Objective(session)
        self._pass = pass_for(session, self._objective, progress.log)
        self._validation = Validation(self._config, dataset.instance, cache, self._objective)
        images = [*dataset.instance, *dataset.prior]
        self._prompts = sorted({"", *(image.prompt for image in images)})
        self._sizes = sorted({(image.height, image.width) for image in images})
        if not session.prompts.are_trained:
            session.prompts.freeze(self._prompts, self._sizes, session.plan.unet_yields)
        self._losses: list[float] = []
        self._shown: dict[str, Any] = {}  # figures that not every run or step has, as they were last
        self._pending: deque[_Pending] = deque()
        # Figures of a GPU are read while the next step is under way.
        self._behind = 1 if session.device.type == "cuda" else 0
        self._snapshot_step = -1
        self._started, self._first = time.perf_counter(), 0
        self._clock = self._started  # when the last step's figures were there; what is no step does not count
        self._writes = accelerator.is_main_process

    def __enter__(self) -> _Loop:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def run(self, resume: bool) -> list[float]:
        self._first = first = self._restore() if resume else 0
        self._progress.start("training", self._steps)
        if first == 0:
            self._preview(0)
        self._started = self._clock = time.perf_counter()
        for step in range(first, self._steps):
            stop = self._config.text_encoder_stop_step
            if stop is not None and step >= stop and self._session.prompts.are_trained:
                self._session.stop_text_encoders(self._prompts, self._sizes)
                self._pass = pass_for(self._session, self._objective, self._progress.log)  # another pass from now on
            self._step(step)
            stopped, snapshot, preview = self._session.any_process(
                self._progress.cancelled, self._progress.take_request("snapshot"), self._progress.take_request("preview"))
            if stopped:
                self._snapshot(step + 1)
                raise Cancelled
            self._do_what_is_due(step + 1, snapshot, preview)
        self._tell(0)
        return self._losses

    def save_result(self) -> None:
        """The finished model as a folder that diffusers loads."""
        self._snapshot(self._steps)
        save = self._session.saving()
        if self._writes:
            self._patiently(replace_folder, self._run.diffusers_dir, save)
        self._session.accelerator.wait_for_everyone()

    def _step(self, step: int) -> None:
        session = self._session
        rates = session.set_learning_rates(step)
        share = 1 / self._config.gradient_accumulation_steps
        sums: dict[str, torch.Tensor] = {}
        for micro in range(self._config.gradient_accumulation_steps):
            batch = self._batches.batch(step, micro)
            losses = self._pass(batch, batch.weight * share, micro + 1 == self._config.gradient_accumulation_steps)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.detach() * (batch.weight * share)
        norm = session.gradient_norm()
        session.update(last=step + 1 == self._steps)
        values = session.mean_over_processes({**sums, "grad_norm": norm})
        encoders = rates.get("text_encoder", 0.0) if session.prompts.are_trained else 0.0  # none once they have stopped
        more = {"lr": rates["unet"], "lr_text_encoder": encoders}
        if self._validation.due(step + 1):
            more["validation_loss"] = self._pass.making_room(self._validation.loss)
        self._pending.append(_Pending(step + 1, Figures(values), more))
        self._tell(self._behind)

    def _tell(self, behind: int) -> None:
        """Read, judge and report the steps that are over, but for the last `behind` of them."""
        while len(self._pending) > behind:
            pending = self._pending.popleft()
            figures, step = pending.figures.read(), pending.step
            seconds, self._clock = time.perf_counter() - self._clock, time.perf_counter()
            self._require_sane(step, figures)
            self._losses.append(figures["loss"])
            line = {"step": step, **figures, **pending.more, "seconds": seconds, **self._session.scaler_figures()}
            if self._writes:
                self._patiently(self._run.append_metrics, line)
            self._shown |= {name: line[name] for name in ("skipped_updates", "validation_loss") if name in line}
            steps_per_s = (step - self._first) / (time.perf_counter() - self._started)
            self._progress.report(step, self._steps, loss=figures["loss"], steps_per_s=steps_per_s,
                                  seconds_left=(self._steps - step) / steps_per_s,
                                  learning_rate=pending.more["lr"], memory_gib=device_memory_gib(self._session.device),
                                  **self._shown)

    def _require_sane(self, step: int, figures: dict[str, float]) -> None:
        loss, norm = figures["loss"], figures["grad_norm"]
        # Rounding to bf16 may make a number again of what is none. (fp16's scaler takes an infinite norm in its stride.)
        lost = self._session.plan.fused_backward and not math.isfinite(norm)
        if math.isfinite(loss) and loss < EXPLODED and not lost:
            return
        kept = checkpoint.snapshots(self._run.checkpoints_dir)
        where = f"The last good snapshot is of step {kept[-1][0]}." if kept else "No snapshot was made before."
        what = f"the gradients' norm became {norm:g}" if lost else f"the loss became {loss:g}"
        raise diverged(self._config, f"{what} at step {step}", where, "go on" if kept else "start anew")

    def _do_what_is_due(self, step: int, snapshot_wanted: bool, preview_wanted: bool) -> None:
        snapshot_every = self._config.snapshot_every or max(1, self._steps // 2)
        preview_every = self._config.preview_every or snapshot_every
        if step % snapshot_every == 0 or snapshot_wanted:
            self._snapshot(step)
        if step % preview_every == 0 or step == self._steps or preview_wanted:
            self._preview(step)

    def _snapshot(self, step: int) -> None:
        if step == self._snapshot_step:
            return
        self._tell(0)
        session = self._session
        session.require_finite(step)
        kept = session.kept(step)
        if self._writes:
            self._patiently(self._run.sync_metrics)
            self._patiently(checkpoint.write, self._run.checkpoints_dir, step, kept, self._config.keep_snapshots)
        self._snapshot_step = step
        session.accelerator.wait_for_everyone()
        self._clock = time.perf_counter()

    def _preview(self, step: int) -> None:
        plan = self._session.plan
        if not self._config.preview_steps or not (self._writes or plan.sharded):
            return
        self._tell(0)
        with self._session.published_weights():
            images = self._pass.making_room(
                lambda: render_previews(self._session.model, self._config, unet_yields=plan.unet_yields))
        if self._writes:
            self._patiently(write_previews, images, self._run.previews_dir, step)
            self._progress.report(step, self._steps, "preview", image=images[0])
        self._clock = time.perf_counter()

    def _patiently(self, write: Callable[..., Any], *arguments: Any) -> None:
        """Write to the run's folder, again and again while its disk is full or gone."""
        def there() -> None:
            self._run.require_there()
            write(*arguments)

        patiently(there, self._progress, self._config.storage_wait_min)

    def _restore(self) -> int:
        if self._config.draw_order == "diffusers":
            raise ResumeError(f"{self._run.path.name} is to be continued", "its draws are diffusers', which have no resume",
                              "Start it again under another name.")
        kept = checkpoint.snapshots(self._run.checkpoints_dir)
        if not kept:
            if self._writes:
                self._patiently(self._run.truncate_metrics, 0)
            return 0
        step, folder = kept[-1]
        weights, state = checkpoint.read(folder)
        try:
            self._session.load_trained_weights(weights)
            self._session.load_state_dict(state)
        except torch.cuda.OutOfMemoryError:  # a RuntimeError, too, for which the snapshot cannot help
            raise
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError, MemoryError) as error:
            raise checkpoint.unusable(folder, error, "it is not of this run") from error
        if self._writes:
            self._patiently(self._run.truncate_metrics, step)
        self._snapshot_step = step
        self._progress.log(f"continued from step {step}")
        before, now = state.get("processes"), self._session.accelerator.num_processes  # earlier versions did not write it
        if before not in (None, now):
            size = self._config.train_batch_size
            self._progress.log(f"Processes up to here: {before}, from now on: {now}. A step sees {now * size} pictures in a pass "
                               f"instead of {before * size}.")
        return step
