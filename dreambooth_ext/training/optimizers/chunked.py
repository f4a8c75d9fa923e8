"""What our optimizers share: one parameter at a time, in pieces, so that no temporary is large."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

CHUNK = 2**22  # numbers: 16 MiB in fp32. A multiple of the 8-bit state's blocks.


class ChunkedOptimizer(torch.optim.Optimizer):
    """An optimizer whose parameters can be updated one by one, as their gradients arrive.

    Weights may be fp32 or bf16 (then rounded stochastically, with draws of (seed, parameter, step)); arithmetic is
    fp32. State is loaded exactly as it was saved: torch's own would cast it to the weights' dtype.
    """

    def __init__(self, groups: Iterable[Any], defaults: dict[str, Any], seed: int = 0) -> None:
        super().__init__(groups, defaults)
        self.seed = seed
        self._numbers = {parameter: number for number, parameter in enumerate(self._parameters())}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.step_parameter(parameter, group)

    def step_parameter(self, parameter: torch.nn.Parameter, group: dict[str, Any]) -> None:
        """Update one parameter from its gradient."""
        raise NotImplementedError

    def finish(self) -> None:
        """Wait until every update has landed in the weights."""

    def draws_for(self, parameter: torch.nn.Parameter, step: int) -> torch.Generator:
        seed = ((self.seed * 1_000_003 + step) * 1_000_003 + self._numbers[parameter]) % 2**63
        return torch.Generator(parameter.device).manual_seed(seed)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        parameters = list(self._parameters())
        self.state.clear()
        for number, values in state_dict["state"].items():
            parameter = parameters[int(number)]
            self.state[parameter] = {name: self._placed(value, parameter) for name, value in values.items()}
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            # Prodigy keeps numbers of its own there, which belong where its parameters are.
            group.update({name: self._placed(value, parameters[0]) for name, value in saved.items() if name != "params"})

    def _placed(self, value: Any, parameter: torch.nn.Parameter) -> Any:
        return value.to(parameter.device, copy=True) if isinstance(value, torch.Tensor) else value

    def _parameters(self) -> Iterator[torch.nn.Parameter]:
        return (parameter for group in self.param_groups for parameter in group["params"])


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """A dense tensor's numbers in the order of its memory, whatever that is (channels last, say); not a copy."""
    return tensor.detach().as_strided((tensor.numel(),), (1,))


def flat_gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    """The gradient's numbers in the order of the parameter's memory."""
    gradient = parameter.grad
    assert gradient is not None
    if gradient.stride() != parameter.stride():
        gradient = torch.empty_like(parameter).copy_(gradient)
    return flat(gradient)


def pieces(count: int) -> Iterator[slice]:
    return (slice(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK))
