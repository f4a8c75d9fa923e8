"""What a run will need of the device's memory, worked out beforehand: nothing is loaded, nothing is computed."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..config import TrainConfig
from ..errors import OutOfMemory
from ..models.family import FAMILIES
from ..models.load import load_outline, model_of
from ..models.networks import in_dtype
from ..models.specimen import modules_of
from ..models.stable_diffusion import StableDiffusion
from ..models.text_encoder import encode_tokens
from ..models.unet import predict
from . import precision
from .activations import Held, peak_bytes
from .gradient_checkpointing import checkpoint_gradients
from .half_copies import COLLECTED_BYTES
from .lora import Lora
from .memory import AUTO_ORDER, PROFILES, Plan, faults, free_bytes, plan_for, processes, saves_nothing
from .optimizer import OPTIMIZERS
from .optimizers.chunked import CHUNK, IN_CACHE
from .optimizers.fused import held_bytes
from .optimizers.offloaded import LEAVING_BYTES

GIB = 2**30
CONTEXT_BYTES = int(0.5 * GIB)  # what a GPU's driver takes for a process, whatever it does
# Of an optimizer, for each number of a chunk, counted on the meta device; with AdamW and Lion of a chunk that is joined.
TEMPORARY_BYTES = {"adamw_8bit": 36, "lion": 24, "adafactor": 12}
OTHERS_TEMPORARY_BYTES = 16
# Autocast keeps half-precision copies for matrix products, and fp32 ones for norms: measured against plain bf16.
AUTOCAST_FACTOR = 1.6
SHARE_OF_FREE = 0.95


@dataclass(frozen=True)
class Estimate:
    """Bytes on the device, for one memory profile. `why_not` names what else forbids it; empty if nothing does."""

    profile: str
    weights: int
    gradients: int
    optimizer_state: int
    averages: int
    activations: int
    caches: int
    context: int
    free: int
    why_not: str = ""

    @property
    def total(self) -> int:
        return (self.weights + self.gradients + self.optimizer_state + self.averages + self.activations + self.caches
                + self.context)

    @property
    def fits(self) -> bool:
        return not self.why_not and self.total <= self.free * SHARE_OF_FREE

    @property
    def verdict(self) -> str:
        if self.why_not:
            return self.why_not
        return "fits" if self.fits else f"needs {(self.total - self.free * SHARE_OF_FREE) / GIB:.1f} GiB more"

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "total": self.total, "fits": self.fits, "verdict": self.verdict}


def estimate(config: TrainConfig, model: StableDiffusion | None = None,
             profiles: Sequence[str] | None = None) -> list[Estimate]:
    """One estimate for each memory profile, and first for the settings as they are ("none"); or for `profiles` alone.

    `model` may be weightless; without it the base is looked at, and without a base Stable Diffusion 1.5 is meant.
    Raises the errors of `models.load.inspect`.
    """
    model = weightless(model) if model else _outline(config)
    trained = model.trained_parts(config.train_text_encoder)
    numbers = sum(parameter.numel() for module in trained.values() for parameter in module.parameters())
    if config.lora_rank:
        for module in trained.values():
            module.requires_grad_(False)
        Lora(trained, config.lora_rank, config.lora_alpha, config.lora_conv_rank, config.seed)
    free = free_bytes(precision.device_of(config))
    rows = profiles or [*(["none"] if config.memory_profile in ("none", "auto") else []), *PROFILES]
    peaks: dict[tuple[Any, ...], int] = {}  # profiles that differ in other things share their activations
    found = []
    for name in rows:
        asked = replace(config, memory_profile=name)
        plan = plan_for(asked)
        key = (plan.weights, plan.half_copies, plan.narrow_gradients, plan.autocast, plan.gradient_checkpointing,
               plan.fused_backward)
        if key not in peaks:
            peaks[key] = _activations(asked, plan, model, trained)
        found.append(_estimate(asked, plan, trained, numbers, peaks[key], free))
    return found


def least_snapshot_bytes(config: TrainConfig, model: StableDiffusion | None = None) -> int:
    """What a run's first snapshot takes on the disk at least: trained weights and optimizer state; a LoRA's hardly anything.

    Raises as `estimate`, which counts what memory holds besides.
    """
    if config.lora_rank:
        return 0
    if config.memory_profile == "auto":  # what it will stand for is not known yet
        config = replace(config, memory_profile="none" if saves_nothing(config) else "ultra")
    plan = plan_for(config)
    model = model or _outline(config)
    learnt = [parameter for module in model.trained_parts(config.train_text_encoder).values() for parameter in module.parameters()]
    state_bytes = OPTIMIZERS[plan.optimizer].state_bytes
    return sum((4 if plan.weights == "fp32" else 2) * each.numel() + state_bytes(tuple(each.shape)) for each in learnt)


def profile_that_fits(config: TrainConfig, model: StableDiffusion | None = None) -> str:
    """What "auto" stands for now; of several processes' cards the one with least room decides. Raises OutOfMemory if nothing
    fits, and as `estimate`."""
    if saves_nothing(config):
        return "none"
    found = of_all_processes(in_effect(config, estimate(config, model)))
    least = max(found, key=lambda row: (not row.fits, AUTO_ORDER.index(row.profile)))
    if least.fits:
        return least.profile
    raise OutOfMemory("training with memory profile auto",
                      f"even {least.profile} needs {least.total / GIB:.1f} GiB, and {least.free / GIB:.1f} GiB are free",
                      "Close what else uses the card, or choose a smaller resolution or a LoRA.")


def in_effect(config: TrainConfig, rows: Sequence[Estimate]) -> Estimate:
    """The row of the settings' profile. "auto": the first of AUTO_ORDER that fits, else the leanest that may be used; on a
    CPU, where nothing needs to be saved, the settings as they are."""
    by_name = {row.profile: row for row in rows}
    if config.memory_profile != "auto":
        return by_name[config.memory_profile]
    if saves_nothing(config):
        return by_name["none"]
    candidates = [by_name[name] for name in AUTO_ORDER]
    return next((row for row in candidates if row.fits), min(candidates, key=lambda row: (bool(row.why_not), row.total)))


def of_all_processes(row: Estimate) -> list[Estimate]:
    """That of each process of a launch, in each of them."""
    if processes() == 1:
        return [row]
    rows: list[Any] = [None] * processes()
    torch.distributed.all_gather_object(rows, row)
    return rows


def weightless(model: StableDiffusion) -> StableDiffusion:
    """The model's shapes on the meta device; the model itself is not copied."""
    with torch.device("meta"):
        parts = {part: type(module).from_config(module.config) if hasattr(module, "from_config") else
                 type(module)(copy.deepcopy(module.config)) for part, module in model.parts.items()}
    return model.with_parts(parts)


def _outline(config: TrainConfig) -> StableDiffusion:
    if config.base:
        return load_outline(Path(config.base).expanduser(), prediction_type=config.prediction_type, vae=config.vae_path)
    return full_size("sd1")


def full_size(key: str) -> StableDiffusion:
    """The outline of a family's own models: "sd1", "sd2" or "sdxl"."""
    family = next(family for family in FAMILIES if family.key == key)
    return model_of(family, None, modules_of(family), "epsilon", False, Path(family.name))


def _estimate(config: TrainConfig, plan: Plan, trained: dict[str, Any], numbers: int, activations: int, free: int) -> Estimate:
    """One row. `numbers`: how many the trained networks have, adapters left out."""
    learnt = [parameter for module in trained.values() for parameter in module.parameters() if parameter.requires_grad]
    width = 4 if plan.weights == "fp32" else 2
    sizes = [parameter.numel() * (4 if config.lora_rank else width) for parameter in learnt]
    copy_width = 2 if plan.half_copies or (_casts(plan) and not _gradients_grow(plan)) else 0
    pieces = processes() if plan.sharded else 1
    piece = min(CHUNK if plan.on_gpu else IN_CACHE, max(each.numel() for each in learnt))
    temporary = TEMPORARY_BYTES.get(plan.optimizer, OTHERS_TEMPORARY_BYTES) * piece
    return Estimate(
        profile=plan.name, weights=(numbers * (width + copy_width) + (sum(sizes) if config.lora_rank else 0)) // pieces,
        gradients=_gradients(config, plan, sizes, pieces),
        optimizer_state=sum(OPTIMIZERS[plan.optimizer].state_bytes(tuple(each.shape)) for each in learnt) // pieces + temporary,
        averages=0 if plan.averages_in_ram or not config.ema_decay else 4 * sum(each.numel() for each in learnt) // pieces,
        activations=activations, caches=0, context=CONTEXT_BYTES if plan.on_gpu else 0, free=free,
        why_not="; ".join(fault.partition(": ")[2] for fault in faults(config)))


def _gradients(config: TrainConfig, plan: Plan, sizes: list[int], pieces: int) -> int:
    """Bytes; `sizes` are those of what is learnt, weight by weight."""
    if plan.fused_backward:  # one that comes, and those that wait: to be clipped together, or for their way to RAM
        waiting = held_bytes(sum(sizes)) if config.max_grad_norm else 0
        waiting += LEAVING_BYTES if plan.optimizer == "offloaded_adamw" and plan.device != "cpu" else 0
        return (max(sizes) + waiting) // pieces
    if plan.narrow_gradients:
        return sum(sizes) // 2 // pieces
    as_they_come = 0  # in bf16, beside those that they become
    if plan.half_copies:
        as_they_come = 3 * COLLECTED_BYTES if processes() == 1 else sum(sizes) // 2
    return sum(sizes) // pieces + as_they_come


def _casts(plan: Plan) -> bool:
    """Autocast keeps the weights in half precision as well, until their gradients are there."""
    return plan.autocast != "no" and plan.weights == "fp32"


def _gradients_grow(plan: Plan) -> bool:
    """They take the place of activations while the pass goes back; several processes have room for all from the start."""
    return not plan.fused_backward and processes() == 1


def _activations(config: TrainConfig, plan: Plan, model: StableDiffusion, trained: dict[str, Any]) -> int:
    """What one forward and backward pass holds at its peak beyond all gradients; of those that do not stay, beyond none."""
    # On a CPU bf16 weights are widened layer by layer, and everything between the layers is fp32.
    half = (plan.computes_in_bf16 and plan.device != "cpu") or plan.autocast != "no"
    dtype = torch.bfloat16 if half else torch.float32
    hooks = []
    for module in trained.values():
        in_dtype(module, dtype).train()
        hooks += checkpoint_gradients(module, plan.gradient_checkpointing)
    weights = [parameter for module in trained.values() for parameter in module.parameters()]
    learnt = [parameter for parameter in weights if parameter.requires_grad]
    gradient = cast = 0  # bytes of a number: of its gradient, and of its copy by autocast, which goes as the gradient comes
    if _gradients_grow(plan):
        gradient, cast = 2 if plan.narrow_gradients else 4, 2 if _casts(plan) else 0
    held = Held()
    held.bytes = cast * sum(parameter.numel() for parameter in weights)

    def come(parameter: torch.Tensor) -> None:
        parameter.grad = None
        held.bytes += (gradient - cast) * parameter.numel()

    hooks += [parameter.register_post_accumulate_grad_hook(come) for parameter in learnt]
    side = (config.resolution or model.resolution) // 8
    pictures = config.train_batch_size * (2 if config.with_prior_preservation else 1)
    channels = model.unet.config.in_channels

    def step() -> None:
        ids = [torch.empty((pictures, 77), dtype=torch.int64, device="meta") for _ in model.text_encoders]
        noisy = torch.empty((pictures, channels, side, side), dtype=dtype, device="meta")
        timesteps = torch.empty((pictures,), dtype=torch.int64, device="meta")
        with torch.set_grad_enabled(config.train_text_encoder):
            conditioning = encode_tokens(model, ids, config.clip_skip).to(dtype=dtype)
        if not config.train_text_encoder:  # read from the cache: only what the UNet is given is there
            conditioning = conditioning.detach()
        predict(model.unet, noisy, timesteps, conditioning).float().square().mean().backward()

    with torch.enable_grad():
        peak = peak_bytes(step, AUTOCAST_FACTOR if plan.autocast != "no" else 1.0, held)
    for hook in hooks:
        hook.remove()
    return peak - gradient * sum(parameter.numel() for parameter in learnt)
