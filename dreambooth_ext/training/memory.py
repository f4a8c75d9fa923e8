"""Memory profiles: what a run does to fit, as rows of a table; and what cannot be combined."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..config import TrainConfig
from ..errors import OutOfMemory
from ..gpu import free_and_total, imagined_gpu, release, why_not
from ..models.load import load_checkpoint
from ..models.stable_diffusion import StableDiffusion
from . import precision, sharding
from .kernels.probe import why_none as why_no_kernels
from .optimizers import vendor

OWN, BITSANDBYTES = "own", "bitsandbytes"  # whose 8-bit AdamW
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Plan:
    """The memory techniques of one run.

    weights: dtype of the trained networks on the device, "fp32" or "bf16" (stored by stochastic rounding); under adapters, which
    are fp32 always, "fp16" too.
    autocast: Accelerate's mixed precision, "no", "fp16" or "bf16".
    half_copies: fp32 weights are trained through bf16 copies of the networks, instead of autocast.
    narrow_gradients: gradients stay the copies' own, in bf16: our kernels read them and write the copies.
    """

    name: str
    optimizer: str
    weights: str = "fp32"
    autocast: str = "no"
    half_copies: bool = False
    narrow_gradients: bool = False
    fused_backward: bool = False
    gradient_checkpointing: bool = False
    channels_last: bool = False
    averages_in_ram: bool = False  # the EMA's shadows
    unet_yields: bool = False  # it leaves the device while frozen text encoders or the VAE are there
    device: str = "cpu"  # or cuda, cuda:1, ...
    use: str = ""
    eight_bit: str = OWN
    speed_up: str = "none"
    kernels: bool = False  # our own, where there is one for the purpose
    sharded: bool = False  # over the processes of one launch

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def computes_in_bf16(self) -> bool:
        """The networks that passes go through have bf16 weights."""
        return self.half_copies or self.weights == "bf16"

    @property
    def precision(self) -> str:
        """In which it computes, as `--mixed-precision` names it."""
        return "bf16" if self.computes_in_bf16 and self.on_gpu else self.autocast

    @property
    def sentence(self) -> str:
        """What is in effect, for the log."""
        parts = [f"{self.weights} weights"]
        parts += ["bf16 copies of them that compute"] if self.half_copies else []
        parts += [f"{self.autocast} autocast"] if self.autocast != "no" else []
        maker = f" of bitsandbytes {vendor.version_that_works(self.device)}" if self.eight_bit == BITSANDBYTES else ""
        parts += [self.optimizer.replace("_", " ") + maker]
        parts += ["updated during the backward pass, gradients clipped by the norm foreseen"] if self.fused_backward else []
        parts += ["gradient checkpointing"] if self.gradient_checkpointing else []
        parts += [f"speed-up {self.speed_up}"] if self.speed_up != "none" else []
        parts += ["own kernels"] if self.kernels else []
        parts += ["networks split over the processes (FSDP)"] if self.sharded else []
        return f"memory profile {self.name} on {self.device}: {', '.join(parts)}"


_BF16 = {"weights": "bf16", "fused_backward": True, "gradient_checkpointing": True, "averages_in_ram": True,
         "unet_yields": True}
# Leanest last: `auto` takes the first that fits. "amp" becomes what the device and the run can do.
PROFILES = {row.name: row for row in (
    Plan("fast", "adamw", autocast="amp", channels_last=True, use="24 GB and more: nothing is saved, nothing is slow."),
    Plan("balanced", "adamw_8bit", autocast="amp", gradient_checkpointing=True, averages_in_ram=True,
         use="12 GB: AdamW with 8-bit state, gradient checkpointing."),
    Plan("low", "adamw_8bit", **_BF16,  # type: ignore[arg-type]
         use="8 GB: bf16 weights, 8-bit state, the optimizer's step fused into the backward pass."),
    Plan("ultra", "adafactor", **_BF16,  # type: ignore[arg-type]
         use="6 GB and less: the same with Adafactor, which keeps almost no state."),
    Plan("offload", "offloaded_adamw", **_BF16,  # type: ignore[arg-type]
         use="6 GB and less, with 16 GB of RAM to spare: AdamW's fp32 weights and state stay in RAM."),
)}
FLAT_ON_THE_DEVICE = ("adamw_8bit", "adafactor")  # optimizers whose state lies there in the order of the weights' memory
AUTO_ORDER = ("fast", "balanced", "low", "ultra")


def plan_for(config: TrainConfig, profile: str | None = None, optimizer: str | None = None, eight_bit: str | None = None,
             channels_last: bool | None = None) -> Plan:
    """The plan of the settings; `profile` takes the place of "auto", `optimizer` and what follows are what a run has already."""
    device = precision.device_of(config)
    name = profile or config.memory_profile
    if name == "none":
        plan = Plan("none", config.optimizer, autocast=config.mixed_precision)
    else:
        plan = PROFILES[name]
    plan = replace(plan, device=device, optimizer=optimizer or plan.optimizer, speed_up=config.speed_up,
                   kernels=config.kernels == "auto" and _has_kernels(device), eight_bit=eight_bit or plan.eight_bit,
                   gradient_checkpointing=plan.gradient_checkpointing or config.gradient_checkpointing)
    if plan.autocast == "amp":
        plan = _with_mixed_precision(plan, config)
    if config.lora_rank:
        plan = _under_adapters(plan, config, optimizer)
    if plan.kernels and plan.optimizer in FLAT_ON_THE_DEVICE and plan.computes_in_bf16 and not config.lora_rank:
        plan = replace(plan, channels_last=True)
    if channels_last is not None:  # in whose order the state lies
        plan = replace(plan, channels_last=channels_last)
    if sharding.launched():  # pieces of weights have one dimension: there is no layout to keep
        plan = replace(plan, sharded=True, channels_last=False)
    if config.speed_up == "auto":
        plan = replace(plan, speed_up="graphs" if _can_be_recorded(config, plan) else "none")
    if (plan.optimizer == "adamw_8bit" and not eight_bit and not plan.narrow_gradients
            and (plan.weights == "fp32" or config.lora_rank)):
        plan = replace(plan, eight_bit=BITSANDBYTES if vendor.version_that_works(device) else OWN)
    return plan


def _has_kernels(device: str) -> bool:
    """Of a card that is not here nobody knows: as on Linux, then, where torch brings Triton."""
    return (imagined_gpu() is not None and device == "cuda") or not why_no_kernels(device)


def _can_be_recorded(config: TrainConfig, plan: Plan) -> bool:
    """Whether a step may be launched as a graph without having been asked for: autocast's copies and AMD's graphs may not."""
    return (not _faults_of_speed_up(config, replace(plan, speed_up="graphs")) and not plan.sharded and plan.autocast == "no"
            and torch.version.hip is None)


def _with_mixed_precision(plan: Plan, config: TrainConfig) -> Plan:
    """By bf16 copies instead of autocast where they fit: they stay while the optimizer works, and autocast's do not.

    With our kernels gradients stay as narrow as the copies', and both together take no more than autocast's fp32 gradients. But
    what several processes or passes add up is added in fp32. Frozen weights under adapters need no second copy. Several processes
    average the copies' gradients, which gloo (Windows has no NCCL) cannot do in bf16 in all versions of torch; and they could add
    up those of several passes in bf16 alone.
    """
    best = precision.best_autocast(plan.device)
    one_pass = config.gradient_accumulation_steps == 1
    fits_launch = processes() == 1 or (one_pass and torch.distributed.is_nccl_available() and not sharding.launched())
    narrow = (plan.kernels and one_pass and processes() == 1 and config.draw_order == "native"
              and plan.optimizer in ("adamw", "adamw_8bit") and plan.eight_bit == OWN)
    if best == "bf16" and not config.lora_rank and (narrow or (plan.name == "fast" and fits_launch)):
        return replace(plan, autocast="no", half_copies=True, narrow_gradients=narrow)
    return replace(plan, autocast=best)


def _under_adapters(plan: Plan, config: TrainConfig, optimizer: str | None) -> Plan:
    """A LoRA trains little: gradients and state are small whatever is done, and the optimizer is the user's choice. What is frozen
    is kept as narrow as it computes: autocast would cast it in each pass, and keep both."""
    # SDXL's text encoders or VAE beside the UNet would outweigh a step.
    plan = replace(plan, fused_backward=False, optimizer=optimizer or config.optimizer, unet_yields=plan.gradient_checkpointing)
    if plan.autocast == "no" or not plan.on_gpu:
        return plan
    return replace(plan, weights=plan.autocast, autocast="no" if plan.autocast == "bf16" else plan.autocast)


def load_model(config: TrainConfig) -> StableDiffusion:
    """The base of settings whose memory profile is not "auto", in RAM. Raises the errors of `load_checkpoint`."""
    return load_checkpoint(Path(config.base).expanduser(), vae=config.vae_path, prediction_type=config.prediction_type,
                           dtypes=loaded_dtypes(config))


def loaded_dtypes(config: TrainConfig) -> dict[str, torch.dtype]:
    """In which the trained networks are best loaded, so that RAM never holds them wider than they are trained."""
    plan = plan_for(config)
    if plan.weights == "fp32" or plan.optimizer == "offloaded_adamw":  # that one starts from fp32
        return {}
    trained = ("unet", "text_encoder", "text_encoder_2") if config.train_text_encoder else ("unet",)
    return dict.fromkeys(trained, DTYPES[plan.weights])


def saves_nothing(config: TrainConfig) -> bool:
    """On a CPU, where memory need not be saved, "auto" is the settings as they are."""
    return precision.device_of(config).split(":")[0] == "cpu"


def _first_plan(config: TrainConfig) -> Plan:
    """That of the settings; of "auto" the one that is tried first."""
    return plan_for(config, ("none" if saves_nothing(config) else "fast") if config.memory_profile == "auto" else None)


def faults(config: TrainConfig) -> list[str]:
    """Combinations of settings that cannot work, one plain sentence each."""
    found = precision.faults(config)
    if why_not(precision.device_of(config)):
        return found  # the rest depends on what the device can do
    if config.memory_profile not in ("none", "auto"):
        found += _faults_of_profile(config, plan_for(config))
    if config.memory_profile == "auto" and not saves_nothing(config):
        best = precision.best_autocast(precision.device_of(config))
        found += _faults_of_own_choice(config, "auto", config.optimizer if config.lora_rank else "adamw", best)
    if config.speed_up not in ("auto", "none"):
        found += _faults_of_speed_up(config, _first_plan(config))
    if config.optimizer == "prodigy":
        found += _faults_of_prodigy(config)
    for name in ("DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() in ("true", "1"):
            found.append(f"accelerate launch: {name} splits the networks in a way that this trainer does not know; "
                         "launch with --multi_gpu or --use_fsdp instead")
    if sharding.launched():
        found += sharding.faults_of_launch(processes())
        found += _faults_of_sharding(config, _first_plan(config))
    if processes() > 1 and config.draw_order == "diffusers":
        found.append("--draw-order: diffusers' draws are those of one process")
    return found


def _faults_of_profile(config: TrainConfig, plan: Plan) -> list[str]:
    name = plan.name
    fused = plan.fused_backward
    rules = [
        (plan.weights == "bf16" and not precision.has_bf16(plan.device),
         f"--memory-profile: {name} keeps bf16 weights, and this card has no bf16; fast and balanced run on it"),
        (fused and config.gradient_accumulation_steps > 1,
         f"--gradient-accumulation-steps: memory profile {name} updates each weight as soon as its gradient is there, "
         "so that nothing can be accumulated; set 1, or choose balanced"),
        (fused and processes() > 1,
         f"--memory-profile: {name} updates weights before several processes could average their gradients; "
         f"choose {'fast' if plan.sharded else 'balanced'}"),
        (name == "offload" and config.lora_rank > 0,
         "--memory-profile: offload keeps the optimizer's state in RAM, and a LoRA has next to none; choose low"),
    ]
    found = [text for wrong, text in rules if wrong]
    return found + _faults_of_own_choice(config, name, plan.optimizer, plan.precision)


def _faults_of_own_choice(config: TrainConfig, profile: str, optimizer: str, computes: str = "no") -> list[str]:
    """What was chosen by itself, and the profile would replace."""
    instead = "leave it out, or choose --memory-profile none"
    rules = [
        (config.optimizer not in ("adamw", optimizer), f"--optimizer: memory profile {profile} brings its own; {instead}"),
        (config.mixed_precision not in ("no", computes), f"--mixed-precision: memory profile {profile} brings its own; {instead}"),
    ]
    return [text for wrong, text in rules if wrong]


def _faults_of_speed_up(config: TrainConfig, plan: Plan) -> list[str]:
    flag = f"--speed-up: {plan.speed_up}"
    rules = [
        (plan.fused_backward or plan.gradient_checkpointing,
         f"{flag} is for runs that save no memory; choose --memory-profile fast, or none without gradient checkpointing"),
        (plan.speed_up == "graphs" and not plan.on_gpu, f"{flag} needs an NVIDIA GPU, and this run is on {plan.device}"),
        (plan.speed_up == "graphs" and config.gradient_accumulation_steps > 1,
         f"{flag} overwrites its gradients in each pass; set --gradient-accumulation-steps 1, and a larger batch"),
        (plan.speed_up == "graphs" and processes() > 1, f"{flag} is for one process"),
    ]
    found = [text for wrong, text in rules if wrong]
    if plan.speed_up == "compile" and not found and (why := precision.why_not_compiled(plan.device)):
        found.append(f"{flag} cannot be had here: {why}")
    return found


def _faults_of_sharding(config: TrainConfig, plan: Plan) -> list[str]:
    rules = [
        (not sharding.runs_on(plan.device),
         f"accelerate launch: FSDP of torch {torch.__version__} runs on GPUs alone; launch without --use_fsdp"),
        (plan.optimizer not in sharding.ELEMENTWISE and not plan.fused_backward,
         f"--{'optimizer' if plan.name == 'none' else 'memory-profile'}: FSDP gives each process pieces of the weights, and "
         f"{plan.optimizer.replace('_', ' ')} has to see them whole; choose --memory-profile fast, or none with --optimizer "
         "adamw or lion, and --gradient-checkpointing to save memory"),
        (config.lora_rank > 0, "--lora-rank: a LoRA is small, and FSDP would split next to nothing; launch with --multi_gpu"),
        (plan.speed_up != "none", f"--speed-up: {plan.speed_up} is for networks that are whole; leave it out under FSDP"),
        (plan.autocast == "fp16", "--mixed-precision: fp16 is not for networks that FSDP splits; use a card with bf16, or no"),
    ]
    return [text for wrong, text in rules if wrong]


def _faults_of_prodigy(config: TrainConfig) -> list[str]:
    rules = [
        (config.learning_rate < 0.01,
         "--learning-rate: prodigy finds the rate itself and takes this as a factor on it; set 1 "
         f"instead of {config.learning_rate:g}"),
        (config.text_encoder_learning_rate not in (None, config.learning_rate),
         "--text-encoder-learning-rate: prodigy finds one rate for all that is trained"),
    ]
    return [text for wrong, text in rules if wrong]


def processes() -> int:
    """As `accelerate launch` tells it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def on_device(module: Any, device: torch.device | str, instead_of: Any = None) -> Iterator[None]:
    """The module is on `device` inside the block, and afterwards where it was.

    If it has to be moved, the module `instead_of` leaves the device for RAM meanwhile.
    """
    before, there = next(module.parameters()).device, torch.device(device)
    # To "move" split networks to where they are brings the gradients of the step before back to life.
    if before == there or before.type == there.type == "cpu":
        yield
        return
    with ExitStack() as stack:
        if instead_of is not None:
            stack.enter_context(_moved(instead_of, "cpu", there))
        stack.enter_context(_moved(module, device, before))
        yield


@contextmanager
def _moved(module: Any, there: torch.device | str, back: torch.device | str) -> Iterator[None]:
    moves = torch.device(there).type != torch.device(back).type  # else nothing is left behind
    try:
        module.to(there)  # a part of which may be there when memory runs out
        if moves:
            release()
        yield
    finally:
        module.to(back)
        if moves:
            release()


@contextmanager
def out_of_memory_told(config: TrainConfig) -> Iterator[None]:
    """Raises OutOfMemory with plain advice. Nothing of the settings is changed: a smaller batch is the user's to choose."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise OutOfMemory(
            f"training with memory profile {config.memory_profile}, batch size {config.train_batch_size}",
            f"the GPU ran out of memory ({error})",
            "Close what else uses the GPU, and resume: what was learnt up to the last snapshot is kept. A leaner memory profile "
            "(low, then ultra), or a smaller batch size or resolution, is for a new run, under another name.") from error


def forget_peak(device: torch.device) -> None:
    """From now on `device_memory_gib` counts: the process may have rendered pictures before, or trained another model."""
    if device.type == "cuda":
        torch.cuda.init()  # before it there is nothing to reset, which is an error
        torch.cuda.reset_peak_memory_stats(device)


def device_memory_gib(device: torch.device) -> float | None:
    """The most that torch has held on this GPU since `forget_peak`; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None


def free_bytes(device: str) -> int:
    """Memory that could be had now on the device, or in RAM."""
    if device.startswith("cuda"):
        return free_and_total(device)[0]
    import psutil  # comes with accelerate

    return int(psutil.virtual_memory().available)
