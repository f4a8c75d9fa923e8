"""What our optimizers share: large parameters are updated in pieces, so that no temporary is large, small ones together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

# Numbers of a piece, multiples of the 8-bit state's blocks: 16 MiB in fp32 on a GPU, elsewhere what a
# processor's cache holds with weights and moments: AdamW is 3 times as fast as with 2^22 of them.
CHUNK, IN_CACHE = 2**22, 2**18
# Numbers of a parameter whose update takes longer to launch, operation by operation, than to compute.
SMALL_ON_A_GPU, SMALL_ON_A_CPU = 2**20, 2**14


class ChunkedOptimizer(torch.optim.Optimizer):
    """An optimizer whose parameters can be updated one by one, as their gradients arrive.

    Weights may be fp32 or bf16 (then rounded stochastically, with draws of (seed, parameter, step)); arithmetic is
    fp32. State is loaded exactly as it was saved: torch's own would cast it to the weights' dtype.
    """

    kernels = False  # Triton's, where there are some for the purpose: one launch for many weights, and no temporaries

    def __init__(self, groups: Iterable[Any], defaults: dict[str, Any], seed: int = 0) -> None:
        super().__init__(groups, defaults)
        self.seed = seed
        self._numbers = {parameter: number for number, parameter in enumerate(self._parameters())}
        self._groups = {parameter: group for group in self.param_groups for parameter in group["params"]}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.step_parameters([parameter for parameter in self._parameters() if parameter.grad is not None])

    def step_parameters(self, parameters: Iterable[torch.nn.Parameter], scale: torch.Tensor | None = None) -> None:
        """Update these from their gradients times `scale`, which may change the gradients."""
        if self.kernels:
            parameters = self._without_kernels(parameters, scale)
        for together in self._together(parameters):
            if len(together) > 1:
                self._step_joined(together, scale)
                continue
            (parameter,) = together
            if scale is not None and parameter.grad is not None:
                flat(parameter.grad).mul_(scale)
            self.step_parameter(parameter, self._groups[parameter])

    def step_parameter(self, parameter: torch.nn.Parameter, group: dict[str, Any]) -> None:
        """Update one parameter from its gradient."""
        state = self._state_of(parameter)
        state["step"] += 1
        draws = self.draws_for(parameter, state["step"])
        self.update(flat(parameter), flat_gradient(parameter), state, group, draws, (parameter.numel(),))

    def update(self, weights: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], group: dict[str, Any],
               draws: torch.Generator, sizes: tuple[int, ...]) -> None:
        """One step of (N,) weights, in place; `state["step"]` is its number. `sizes` of parameters make up N."""
        raise NotImplementedError

    def empty_state(self, parameter: torch.nn.Parameter) -> dict[str, Any]:
        """A parameter's state before its first step: {"step": 0} and tensors."""
        raise NotImplementedError

    def has_kernel(self, parameter: torch.nn.Parameter) -> bool:
        """Whether `step_by_kernels` can update it."""
        return False

    def step_by_kernels(self, parameters: list[torch.nn.Parameter], step: int, group: dict[str, Any],
                        scale: torch.Tensor | None) -> None:
        """Step number `step` of parameters of one group, from their gradients times `scale`."""
        raise NotImplementedError

    def joins(self, parameter: torch.nn.Parameter) -> bool:
        """Whether a small parameter may be updated as a part of a longer one: each number, or block, for itself."""
        return True

    def _without_kernels(self, parameters: Iterable[torch.nn.Parameter], scale: torch.Tensor | None) -> list[torch.nn.Parameter]:
        """Update by kernels what can be; returns the others."""
        others: list[torch.nn.Parameter] = []
        alike: dict[tuple[int, int], list[torch.nn.Parameter]] = {}
        for parameter in parameters:
            if not self.has_kernel(parameter):
                others.append(parameter)
                continue
            state = self._state_of(parameter)
            state["step"] += 1
            alike.setdefault((id(self._groups[parameter]), state["step"]), []).append(parameter)
        for (_, step), some in alike.items():
            self.step_by_kernels(some, step, self._groups[some[0]], scale)
        return others

    def _together(self, parameters: Iterable[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
        """Which are updated at once: small ones that are alike, up to a piece of them; each other one alone."""
        waiting: dict[Any, list[torch.nn.Parameter]] = {}
        numbers: dict[Any, int] = {}
        for parameter in parameters:
            if parameter.numel() > (SMALL_ON_A_GPU if parameter.is_cuda else SMALL_ON_A_CPU) or not self.joins(parameter):
                yield [parameter]
                continue
            state = self._state_of(parameter)
            like = id(self._groups[parameter]), parameter.dtype, state["step"], tuple(state)
            if numbers.get(like, 0) + parameter.numel() > piece_numbers(parameter):
                yield waiting.pop(like)
                numbers[like] = 0
            waiting.setdefault(like, []).append(parameter)
            numbers[like] = numbers.get(like, 0) + parameter.numel()
        yield from waiting.values()

    def _step_joined(self, parameters: list[torch.nn.Parameter], scale: torch.Tensor | None) -> None:
        """As if they were one."""
        states = [self._state_of(parameter) for parameter in parameters]
        weights = torch.cat([flat(parameter) for parameter in parameters])
        gradient = torch.cat([flat_gradient(parameter) for parameter in parameters])
        if scale is not None:
            gradient.mul_(scale)
        joined = {name: torch.cat([state[name] for state in states]) for name in states[0] if name != "step"}
        joined["step"] = states[0]["step"] + 1
        draws, sizes = self.draws_for(parameters[0], joined["step"]), tuple(parameter.numel() for parameter in parameters)
        self.update(weights, gradient, joined, self._groups[parameters[0]], draws, sizes)
        split(weights, [flat(parameter) for parameter in parameters])
        for name in states[0]:
            if name != "step":
                split(joined[name], [state[name] for state in states])
        for state in states:
            state["step"] = joined["step"]

    def _state_of(self, parameter: torch.nn.Parameter) -> dict[str, Any]:
        state: dict[str, Any] = self.state[parameter]
        if not state:
            state.update(self.empty_state(parameter))
        return state

    def finish(self) -> None:
        """Wait until every update has landed in the weights."""

    def draws_for(self, parameter: torch.nn.Parameter, step: int) -> torch.Generator:
        return torch.Generator(parameter.device).manual_seed(self.seed_for(parameter, step))

    def seed_for(self, parameter: torch.nn.Parameter, step: int) -> int:
        return ((self.seed * 1_000_003 + step) * 1_000_003 + self._numbers[parameter]) % 2**63

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
    return flat(laid_as(gradient, parameter))


def laid_as(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The tensor itself if its numbers lie in memory in the order of the other's, else a copy that does."""
    strides = zip(other.shape, tensor.stride(), other.stride(), strict=True)
    if all(one == another for size, one, another in strides if size > 1):  # of one number it does not matter
        return tensor
    return torch.empty_like(other).copy_(tensor)


def split(joined: torch.Tensor, parts: list[torch.Tensor]) -> None:
    """Copy what was joined into its parts."""
    torch._foreach_copy_(parts, list(joined.split([len(part) for part in parts])))


def pieces(tensor: torch.Tensor) -> Iterator[slice]:
    """Slices of its first dimension, one row each at least."""
    rows = max(1, piece_numbers(tensor) * len(tensor) // max(1, tensor.numel()))
    return (slice(start, min(start + rows, len(tensor))) for start in range(0, len(tensor), rows))


def piece_numbers(tensor: torch.Tensor) -> int:
    return CHUNK if tensor.is_cuda else IN_CACHE


def write_norm(numbers: torch.Tensor, norm: torch.Tensor) -> None:
    """(N,) in any precision -> its norm, () fp32, without a wide copy of more than a piece."""
    parts = list(pieces(numbers)) or [slice(0)]
    norms = [norm] if len(parts) == 1 else list(norm.new_empty(len(parts)).unbind())
    for part, of_part in zip(parts, norms, strict=True):
        torch.linalg.vector_norm(numbers[part], dtype=torch.float32, out=of_part)
    if len(norms) > 1:
        torch.linalg.vector_norm(torch.stack(norms), out=norm)
