"""Networks split over the processes of `accelerate launch --use_fsdp`: torch's FullyShardedDataParallel (Zhao et al. 2023).

Each process keeps a piece of every trained weight, of its gradient and of the optimizer's state, and gathers a block's
weights while it computes with them. Snapshots are joined in the first process and are those of any other run.

FSDP's first version is used, with the original parameters: every supported Accelerate and torch has it. Accelerate itself
would split on GPUs only, and wrap all networks by the names of one's layers: it is handed networks that are split already.
"""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed, nn

from ..models.networks import fill, names_of
from ..models.stable_diffusion import StableDiffusion

Weights = dict[str, dict[str, torch.Tensor]]

# What is gathered as a whole; what is in none of them, as the layers that they are.
BLOCKS = {"BasicTransformerBlock", "ResnetBlock2D", "CLIPEncoderLayer", "CLIPTextEmbeddings"}
ELEMENTWISE = ("adamw", "lion")  # optimizers whose step of a piece is that piece of the step
VARIABLE = "ACCELERATE_USE_FSDP"
TO_BE_LEFT = {  # variable of `accelerate launch`: (values that are as here, what to do instead)
    "FSDP_VERSION": (("1",), "launch with --fsdp_version 1"),
    "FSDP_SHARDING_STRATEGY": (("1", "full_shard"), "launch with --fsdp_sharding_strategy FULL_SHARD"),
    "FSDP_RESHARD_AFTER_FORWARD": (("true", "full_shard"), "leave --fsdp_reshard_after_forward out"),
    "FSDP_OFFLOAD_PARAMS": (("false",), "launch with --fsdp_offload_params false"),
    "FSDP_ACTIVATION_CHECKPOINTING": (("false",), "leave it out, and train with --gradient-checkpointing"),
}


def launched() -> bool:
    """Whether `accelerate launch --use_fsdp` started this process."""
    return os.environ.get(VARIABLE, "false").lower() in ("true", "1")


@contextmanager
def hidden() -> Iterator[None]:
    """In the block Accelerate does not see that it is to split: its versions differ in what they do then."""
    before = os.environ.pop(VARIABLE, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[VARIABLE] = before


def faults_of_launch(processes: int) -> list[str]:
    """What a launch asks of FSDP that is not done, one sentence each."""
    if not launched():
        return []
    found = [f"accelerate launch: {name}={value} is not what is done here; {instead}"
             for name, (same, instead) in TO_BE_LEFT.items()
             if (value := os.environ.get(name, "")) and value.lower() not in same]
    if processes < 2:
        found.append("accelerate launch: FSDP splits the networks over several processes, and this launch has one; "
                     "launch with --num_processes 2 or more, or without --use_fsdp")
    return found


def runs_on(device: str) -> bool:
    """Whether this torch's FSDP runs there: that of the WebUI's torch 2.1 asks a CPU for a stream that it does not have."""
    if device != "cpu":
        return True
    try:
        torch.cpu.Stream(priority=0)
    except TypeError:
        return False
    return True


def _outline(module: nn.Module) -> nn.Module:
    """The module without weights, on the meta device."""
    return copy.deepcopy(module, {id(parameter): nn.Parameter(parameter.to("meta"), requires_grad=False)
                                  for parameter in module.parameters()})


def _units(module: nn.Module) -> set[nn.Module]:
    """The modules that are gathered each by itself; the root is left with no weights, since it would stay gathered."""
    found: set[nn.Module] = set()

    def visit(each: nn.Module) -> None:
        own = any(True for _ in each.parameters(recurse=False))
        if type(each).__name__ in BLOCKS or own:
            found.add(each)
            return
        for child in each.children():
            visit(child)

    visit(module)
    return found - {module}


def _split(module: nn.Module, device: torch.device) -> nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import lambda_auto_wrap_policy

    units = _units(module)
    policy = functools.partial(lambda_auto_wrap_policy, lambda_fn=lambda each: each in units)
    there = torch.device("cpu") if device.type == "cpu" else device  # newer Accelerate gives a CPU a number
    return FullyShardedDataParallel(module, auto_wrap_policy=policy, use_orig_params=True, device_id=there)


class Sharding:
    """The split networks of one run. All processes call its methods that say "joined", in the same order."""

    def __init__(self, modules: Mapping[str, nn.Module], device: torch.device) -> None:
        self._leads, self._count = distributed.get_rank() == 0, distributed.get_world_size()
        self._outlines = {part: _outline(module) for part, module in modules.items()}
        self._named: dict[str, dict[str, nn.Parameter]] = {}
        for part, module in modules.items():
            state = module.state_dict(keep_vars=True)
            self._named[part] = {ours: state[theirs] for ours, theirs in names_of(module).items()}
        self._shapes = {parameter: parameter.shape for named in self._named.values() for parameter in named.values()}
        self.wrapped = {part: _split(module, device) for part, module in modules.items()}
        self._starts = self._found_starts()

    def _found_starts(self) -> dict[nn.Parameter, int]:
        """Where this process's piece of each flat weight begins: the pieces follow one another in the processes' order."""
        parts: list[Any] = [None] * self._count
        distributed.all_gather_object(parts, [parameter.numel() for parameter in self._shapes])
        rank = distributed.get_rank()
        for place, shape in enumerate(self._shapes.values()):
            if sum(part[place] for part in parts) != shape.numel():
                raise RuntimeError(f"FSDP of torch {torch.__version__} keeps other pieces than consecutive ones")
        return {parameter: sum(part[place] for part in parts[:rank]) for place, parameter in enumerate(self._shapes)}

    def piece(self, parameter: nn.Parameter, whole: torch.Tensor) -> torch.Tensor:
        """This process's piece of something as large as the whole parameter: one dimension, a copy."""
        start = self._starts[parameter]
        return whole.reshape(-1)[start : start + parameter.numel()].clone()

    def joined_weights(self) -> Weights:
        """In the first process all trained weights, in RAM; elsewhere nothing."""
        found: Weights = {part: {} for part in self._named}
        for part, named in self._named.items():
            for name, parameter in named.items():
                whole = self._joined(parameter, {"": parameter.detach()})
                if whole is not None:
                    found[part][name] = whole[""]
        return found if self._leads else {}

    def load_weights(self, weights: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        with torch.no_grad():
            for part, named in self._named.items():
                for name, parameter in named.items():
                    parameter.copy_(self.piece(parameter, weights[part][name]))

    def joined_optimizer_state(self, state: Mapping[str, Any], parameters: Iterable[nn.Parameter], flat: bool) -> dict[str, Any]:
        """An optimizer's state_dict as that of whole networks. `flat`: it keeps its numbers in one dimension."""
        found = {}
        for index, parameter in enumerate(parameters):
            whole = self._joined(parameter, state["state"].get(index, {}), flat)
            if whole:
                found[index] = whole
        return {"state": found, "param_groups": state["param_groups"]} if self._leads else {}

    def own_optimizer_state(self, state: Mapping[str, Any], parameters: Iterable[nn.Parameter]) -> dict[str, Any]:
        """This process's pieces of the state of whole networks."""
        own = {}
        for index, parameter in enumerate(parameters):
            if index in state["state"]:
                own[index] = {name: self.piece(parameter, value) if _has_pieces(value) else value
                              for name, value in state["state"][index].items()}
        return {"state": own, "param_groups": state["param_groups"]}

    def joined_each(self, parameters: Iterable[nn.Parameter], pieces: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        """Something that is kept for each parameter, such as its average: whole, in the first process."""
        wholes = [self._joined(parameter, {"": piece}) for parameter, piece in zip(parameters, pieces, strict=True)]
        return [whole[""] for whole in wholes if whole is not None]

    def whole_model(self, model: StableDiffusion, weights: Weights, averages: list[torch.Tensor],
                    averaged: Iterable[nn.Parameter]) -> StableDiffusion:
        """The model on the CPU with joined weights, and in the place of those `averaged` their averages, if any."""
        instead = dict(zip(averaged, averages, strict=True)) if averages else {}
        for part, outline in self._outlines.items():
            fill(outline, {name: instead.get(parameter, weights[part][name]) for name, parameter in self._named[part].items()})
        return model.with_parts(self._outlines)

    def forget_whole(self) -> None:
        """Give back what `whole_model` holds."""
        for outline in self._outlines.values():
            outline.to("meta")

    def _joined(self, parameter: nn.Parameter, own: Mapping[str, Any], flat: bool = False) -> dict[str, Any] | None:
        """Entries of a parameter, their pieces joined, in the first process. Where a piece is empty, entries may be missing."""
        parts: list[Any] | None = [None] * self._count if self._leads else None
        # A view would take along all that it is a view of.
        distributed.gather_object({name: value.cpu().clone() if isinstance(value, torch.Tensor) else value
                                   for name, value in own.items()}, parts, dst=0)
        if parts is None:
            return None
        shape = (-1,) if flat else self._shapes[parameter]
        found = {}
        for name in dict.fromkeys(name for part in parts for name in part):
            values = [part[name] for part in parts if name in part]
            found[name] = torch.cat(values).view(shape) if _has_pieces(values[0]) else values[0]
        return found


def _has_pieces(value: Any) -> bool:
    """Counters are the same in all processes."""
    return isinstance(value, torch.Tensor) and value.dim() > 0


def clipped(gradients: list[torch.Tensor], most: float, summed: Callable[[torch.Tensor], torch.Tensor],
            device: torch.device) -> torch.Tensor:
    """Limit pieces of gradients by the norm of the whole, as torch's clip_grad_norm_ does; returns it.

    `summed` adds up a number over the processes.
    """
    squares = torch.stack([gradient.float().square().sum() for gradient in gradients]).sum() if gradients \
        else torch.zeros((), device=device)
    norm = summed(squares).sqrt()
    if gradients:
        torch._foreach_mul_(gradients, (most / (norm + 1e-6)).clamp(max=1.0))
    return norm
