"""Optimizers as rows of a table. One that is not there is an error, never another one in its place."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..config import TrainConfig
from .memory import BITSANDBYTES, Plan
from .optimizers import vendor
from .optimizers.adafactor import Adafactor
from .optimizers.adafactor import empty_state as adafactor_state
from .optimizers.adamw import AdamW, is_fused_on
from .optimizers.adamw import empty_state as adamw_state
from .optimizers.copied_adamw import CopiedAdamW
from .optimizers.copied_adamw_8bit import CopiedAdamW8bit
from .optimizers.lion import Lion
from .optimizers.offloaded import OffloadedAdamW
from .optimizers.prodigy import Prodigy

HOW_TORCH_COMPUTES = ("foreach", "fused")
Groups = list[dict[str, Any]]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """An optimizer: how it is made, and the bytes of its state for a weight of a given shape."""

    name: str
    build: Callable[[Groups, TrainConfig, Plan], torch.optim.Optimizer]
    state_bytes: Callable[[Shape], int]
    use: str


def build(groups: Groups, config: TrainConfig, plan: Plan,
          copies: Mapping[torch.nn.Parameter, torch.nn.Parameter] | None = None) -> torch.optim.Optimizer:
    """The optimizer of the plan, for groups of {"params", "lr", "name"}; `copies` have the gradients if they are narrow."""
    if plan.narrow_gradients and copies is not None:
        if plan.optimizer == "adamw_8bit":
            return CopiedAdamW8bit(groups, copies, **_adam_arguments(config), seed=config.seed)
        return CopiedAdamW(groups, copies, **_adam_arguments(config))
    return OPTIMIZERS[plan.optimizer].build(groups, config, plan)


def load(optimizer: Any, state: Mapping[str, Any]) -> None:
    """Go on from what `optimizer.state_dict()` was. How torch's own computes is told there, too, and is this run's choice:
    a state that was made by kernels of ours would have it launch operation by operation, weight by weight."""
    groups = [{**saved, **{name: own[name] for name in HOW_TORCH_COMPUTES if name in own}}
              for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=True)]
    optimizer.load_state_dict({**state, "param_groups": groups})
    lay_out(optimizer)


@torch.no_grad()
def lay_out(optimizer: Any) -> None:
    """Let moments that were loaded lie in memory as their weights do.

    torch's fused AdamW goes over both in the order of memory: it refuses other layouts on a GPU, and mistakes them on a CPU.
    A state that several processes had in pieces, say, is joined without a layout.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _adamw(groups: Groups, config: TrainConfig, plan: Plan) -> torch.optim.Optimizer:
    if groups[0]["params"][0].dtype == torch.bfloat16:  # torch's own would lose updates by rounding to nearest
        return AdamW(groups, **_adam_arguments(config), seed=config.seed)
    # The fused one rounds a little differently; diffusers' draws are there for comparing with its losses.
    fused = config.draw_order == "native" and is_fused_on(groups[0]["params"][0].device.type)
    return torch.optim.AdamW(groups, **_adam_arguments(config), **({"fused": True} if fused else {"foreach": False}))


def _betas(config: TrainConfig, second: float) -> tuple[float, float]:
    """`second` is the paper's, if no other is wished."""
    return config.adam_beta1, second if config.adam_beta2 is None else config.adam_beta2


def _adam_arguments(config: TrainConfig) -> dict[str, Any]:
    return {"lr": config.learning_rate, "betas": _betas(config, 0.999), "eps": config.adam_epsilon,
            "weight_decay": config.adam_weight_decay}


def _adamw_8bit(groups: Groups, config: TrainConfig, plan: Plan) -> torch.optim.Optimizer:
    if plan.eight_bit == BITSANDBYTES:
        return vendor.adamw_8bit(groups, **_adam_arguments(config))
    return AdamW(groups, **_adam_arguments(config), seed=config.seed, bits=8, kernels=plan.kernels)


def _offloaded(groups: Groups, config: TrainConfig, plan: Plan) -> torch.optim.Optimizer:
    return OffloadedAdamW(groups, **_adam_arguments(config), seed=config.seed)


def _lion(groups: Groups, config: TrainConfig, plan: Plan) -> torch.optim.Optimizer:
    return Lion(groups, config.learning_rate, _betas(config, 0.99), config.adam_weight_decay, config.seed)


def _adafactor(groups: Groups, config: TrainConfig, plan: Plan) -> torch.optim.Optimizer:
    return Adafactor(groups, config.learning_rate, config.adam_weight_decay, config.seed, plan.kernels)


def _prodigy(groups: Groups, config: TrainConfig, plan: Plan) -> torch.optim.Optimizer:
    return Prodigy(groups, **_adam_arguments(config), seed=config.seed)


def _tensor_bytes(state: dict[str, Any]) -> int:
    return sum(value.numel() * value.element_size() for value in state.values() if isinstance(value, torch.Tensor))


OPTIMIZERS = {row.name: row for row in (
    Row("adamw", _adamw, lambda shape: 8 * math.prod(shape),
        "8 bytes a parameter. The reference: use it where it fits."),
    Row("adamw_8bit", _adamw_8bit, lambda shape: _tensor_bytes(adamw_state(math.prod(shape), 8, "meta")),
        "2 bytes a parameter. AdamW in all but its memory."),
    Row("adafactor", _adafactor, lambda shape: _tensor_bytes(adafactor_state(shape, "meta")),
        "Less than 0.01 bytes a parameter: when even 8 bits are too many. No momentum."),
    Row("lion", _lion, lambda shape: 4 * math.prod(shape),
        "4 bytes a parameter. Wants a learning rate 3 to 10 times below AdamW's, and larger batches."),
    Row("prodigy", _prodigy, lambda shape: 16 * math.prod(shape),
        "16 bytes a parameter. Finds its own learning rate: set --learning-rate 1. For LoRA rather than whole models."),
    Row("offloaded_adamw", _offloaded, lambda shape: 0,
        "12 bytes a parameter in RAM, none on the device. Of the memory profile `offload`."),
)}
