"""Accelerate, set up for one job and cleaned up after it: the host's process is left as it was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch

from ..config import TrainConfig
from ..errors import ConfigError
from ..gpu import imagined_gpu, why_not
from . import sharding

COMPILER = "inductor"


def faults(config: TrainConfig) -> list[str]:
    """What of the device and the precision cannot be had."""
    device = device_of(config)
    why = why_not(device)
    if why:
        return [why]
    if config.mixed_precision == "fp16" and device == "cpu":
        return [f"--mixed-precision: fp16 needs an NVIDIA or AMD GPU, and this run is on {device}; use no or bf16"]
    if config.mixed_precision == "bf16" and not has_bf16(device):
        return ["--mixed-precision: this card has no bf16; use fp16"]
    return []


def device_of(config: TrainConfig) -> str:
    """The device a run trains on: the one named, else the first GPU, else the CPU. See host.on_device_of for a host's own."""
    if config.device != "auto":
        return config.device
    return "cuda" if imagined_gpu() or torch.cuda.is_available() else "cpu"


def has_bf16(device: str) -> bool:
    """Whether it computes in bf16 itself: torch also says yes where it only pretends to."""
    if not device.startswith("cuda") or torch.version.hip is not None:
        return True
    if (card := imagined_gpu()) is not None:
        return card.has_bf16
    return torch.cuda.get_device_capability(torch.device(device))[0] >= 8


def best_autocast(device: str) -> str:
    """Mixed precision where it is faster than fp32."""
    if not device.startswith("cuda"):
        return "no"
    return "bf16" if has_bf16(device) else "fp16"


@cache
def why_not_compiled(device: str) -> str:
    """What torch.compile lacks here, found by compiling a small function and its gradient; empty if nothing."""
    try:
        x = torch.ones(8, device=device, requires_grad=True)
        torch.compile(_small, backend=COMPILER)(x).sum().backward()
    except Exception as error:  # noqa: BLE001  a compiler is missing, Triton, or support for this Python
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
    return ""


def _small(x: torch.Tensor) -> torch.Tensor:
    return (x * 2).sin()


@contextmanager
def accelerator_for(config: TrainConfig, autocast: str) -> Iterator[Any]:
    """An Accelerator for this job. Its process-wide state and torch's global flags are restored afterwards.

    Networks are compiled if that is asked for.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs

    reset_accelerate()
    flags, random_states = _read_flags(), _read_random_states()
    try:
        device = torch.device(device_of(config))
        if device.index is not None:
            torch.cuda.set_device(device)
        try:
            compiler = {"dynamo_backend": COMPILER} if config.speed_up == "compile" else {}
            one_store = DistributedDataParallelKwargs(gradient_as_bucket_view=True)  # else gradients would lie there twice
            with sharding.hidden():
                accelerator = Accelerator(mixed_precision=autocast, cpu=device.type == "cpu", kwargs_handlers=[one_store],
                                          **compiler)
        except ValueError as error:
            raise ConfigError([f"--mixed-precision: {error}"]) from error
        if accelerator.device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32; with the older switch newer torch would contradict itself
            torch.backends.cudnn.allow_tf32 = True
            # To try all of cuDNN's kernels takes 10 to 18 s, and on an H100 those that it chooses unasked are as fast.
            torch.backends.cudnn.benchmark = False
        yield accelerator
    finally:
        if config.speed_up == "compile":
            torch._dynamo.reset()  # what was compiled holds on to the networks
        _write_flags(flags)
        _write_random_states(random_states)
        reset_accelerate()


def reset_accelerate() -> None:
    """Forget the precision and device of a former job in this process; a distributed launch keeps its group."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    for state in (AcceleratorState, GradientState, *(() if distributed else (PartialState,))):
        state._shared_state.clear()


def knows_newer_names() -> bool:
    """True from torch 2.9 on. torch 2.1, which WebUI 1.10.1 has, asserts that it knows the name: hasattr does not expect that."""
    try:
        return bool(torch.backends.cuda.matmul.fp32_precision)
    except (AttributeError, AssertionError):
        return False


def _flags() -> Iterator[tuple[Callable[[], Any], Callable[[Any], None]]]:
    """How to read and write each, in the order of writing: the older names of what has two say less."""
    def of(owner: Any, name: str) -> tuple[Callable[[], Any], Callable[[Any], None]]:
        return partial(getattr, owner, name), partial(setattr, owner, name)

    backends: Any = torch.backends
    yield of(backends.cudnn, "benchmark")
    yield of(backends.cuda.matmul, "allow_tf32")
    yield of(backends.cudnn, "allow_tf32")
    yield torch.get_float32_matmul_precision, torch.set_float32_matmul_precision
    if knows_newer_names():
        yield of(backends.cuda.matmul, "fp32_precision")
        yield of(backends.cudnn.conv, "fp32_precision")
        yield of(backends.cudnn.rnn, "fp32_precision")
    yield torch.is_grad_enabled, torch.set_grad_enabled
    if torch.cuda.is_available():
        yield torch.cuda.current_device, torch.cuda.set_device


def _read_flags() -> list[Any]:
    found: list[Any] = []
    for read, _ in _flags():
        try:
            found.append(read())
        except RuntimeError:  # of an older name, where the host has used the newer ones
            found.append(None)
    return found


def _write_flags(flags: list[Any]) -> None:
    for (_, write), value in zip(_flags(), flags, strict=True):
        if value is not None:
            write(value)


def _read_random_states() -> tuple[torch.Tensor, list[torch.Tensor]]:
    return torch.random.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


def _write_random_states(states: tuple[torch.Tensor, list[torch.Tensor]]) -> None:
    torch.random.set_rng_state(states[0])
    if states[1]:
        torch.cuda.set_rng_state_all(states[1])
