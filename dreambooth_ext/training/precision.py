"""Accelerate, set up for one job and cleaned up after it: the host's process is left as it was found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..config import TrainConfig
from ..errors import ConfigError


def faults(config: TrainConfig) -> list[str]:
    """What of the precision the device cannot do."""
    device = device_of(config)
    if config.mixed_precision == "fp16" and not device.startswith("cuda"):
        return [f"--mixed-precision: fp16 needs an NVIDIA or AMD GPU, and this run is on {device}; use no or bf16"]
    if config.mixed_precision == "bf16" and device.startswith("cuda") and not torch.cuda.is_bf16_supported():
        return ["--mixed-precision: this card has no bf16; use fp16"]
    return []


def device_of(config: TrainConfig) -> str:
    """The device a run trains on: the one named, else the first GPU, else the CPU."""
    if config.device != "auto":
        return config.device
    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def accelerator_for(config: TrainConfig) -> Iterator[Any]:
    """An Accelerator for this job. Its process-wide state and torch's global flags are restored afterwards."""
    from accelerate import Accelerator

    reset_accelerate()
    flags = _read_flags()
    random_state = torch.random.get_rng_state()
    try:
        accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=device_of(config) == "cpu")
        if accelerator.device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = True
            torch.backends.cudnn.allow_tf32 = True
        yield accelerator
    except ValueError as error:
        raise ConfigError([f"--mixed-precision: {error}"]) from error
    finally:
        _write_flags(flags)
        torch.random.set_rng_state(random_state)
        reset_accelerate()


def reset_accelerate() -> None:
    """Forget the precision and device of a former job in this process; a distributed launch keeps its group."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        AcceleratorState._shared_state.clear()
        GradientState._shared_state.clear()
        return
    for state in (AcceleratorState, GradientState, PartialState):
        state._shared_state.clear()


def _read_flags() -> tuple[bool, bool, bool, bool, str]:
    return (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark,
            torch.is_grad_enabled(), torch.get_float32_matmul_precision())


def _write_flags(flags: tuple[bool, bool, bool, bool, str]) -> None:
    torch.set_float32_matmul_precision(flags[4])
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = flags[:3]
    torch.set_grad_enabled(flags[3])
