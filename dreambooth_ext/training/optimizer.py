"""Optimizers, as rows of a table. One that is not there is an error, never another one in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from ..config import TrainConfig

Groups = list[dict[str, Any]]


class Lion(torch.optim.Optimizer):
    """Chen et al. (2023), algorithm 2: the sign of an interpolated momentum, decoupled weight decay. 4 bytes a parameter."""

    def __init__(self, groups: Iterable[Any], lr: float, betas: tuple[float, float], weight_decay: float) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                momentum = state.setdefault("momentum", torch.zeros_like(parameter))
                direction = (beta1 * momentum + (1 - beta1) * parameter.grad).sign_()
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])
                momentum.lerp_(parameter.grad, 1 - beta2)


class Adafactor(torch.optim.Optimizer):
    """Shazeer and Stern (2018), algorithm 4, with a fixed learning rate and no first moment.

    Weights of more than two dimensions are viewed as (out, rest): a 3x3 convolution's second moment then needs one
    number for each row and each column instead of one for each tap's row, which is where nearly all memory went.
    """

    EPS_SQUARED_GRADIENT = 1e-30
    CLIP_THRESHOLD = 1.0
    DECAY_EXPONENT = -0.8

    def __init__(self, groups: Iterable[Any], lr: float, weight_decay: float) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: torch.nn.Parameter, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        state["step"] = state.get("step", 0) + 1
        decay = 1.0 - state["step"] ** self.DECAY_EXPONENT
        gradient = parameter.grad.float()  # type: ignore[union-attr]
        flat = gradient.reshape(len(gradient), -1) if gradient.dim() >= 2 else gradient
        squared = flat.square() + self.EPS_SQUARED_GRADIENT
        if flat.dim() == 2:
            rows = state.setdefault("rows", torch.zeros(flat.shape[0], device=flat.device))
            columns = state.setdefault("columns", torch.zeros(flat.shape[1], device=flat.device))
            rows.lerp_(squared.mean(dim=1), 1 - decay)
            columns.lerp_(squared.mean(dim=0), 1 - decay)
            update = flat * (rows / rows.mean()).rsqrt()[:, None] * columns.rsqrt()[None]
        else:
            second = state.setdefault("second", torch.zeros_like(flat))
            second.lerp_(squared, 1 - decay)
            update = flat * second.rsqrt()
        update = update / max(1.0, float(update.square().mean().sqrt()) / self.CLIP_THRESHOLD)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update.reshape(parameter.shape).to(parameter.dtype), alpha=-group["lr"])


def _adamw(groups: Groups, config: TrainConfig) -> torch.optim.Optimizer:
    on_gpu = groups[0]["params"][0].is_cuda
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.adam_beta1, config.adam_beta2),
                             eps=config.adam_epsilon, weight_decay=config.adam_weight_decay,
                             **({"fused": True} if on_gpu else {"foreach": False}))


def _lion(groups: Groups, config: TrainConfig) -> torch.optim.Optimizer:
    return Lion(groups, config.learning_rate, (config.adam_beta1, config.adam_beta2), config.adam_weight_decay)


def _adafactor(groups: Groups, config: TrainConfig) -> torch.optim.Optimizer:
    return Adafactor(groups, config.learning_rate, config.adam_weight_decay)


OPTIMIZERS: dict[str, Callable[[Groups, TrainConfig], torch.optim.Optimizer]] = {
    "adamw": _adamw, "lion": _lion, "adafactor": _adafactor,
}


def build(groups: Groups, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer that the settings name, for groups of {"params", "lr", "name"}."""
    return OPTIMIZERS[config.optimizer](groups, config)
