"""The optimizer's step as a part of the backward pass: a gradient lives only until its parameter is updated.

After "LOMO" (Lv et al. 2023) and torch's own tutorial on the hook. The global norm to clip by is known only when the last
gradient has come, and most are gone by then. It is foreseen instead: the gradients that have come in this step, by the part
that the same ones had of the squared norm in the steps before. A few are held back, so that none is judged by itself alone.
What is foreseen too low is made up for by those that come later: max_grad_norm is never exceeded.
"""

from __future__ import annotations

from typing import Any

import torch

from ...ram import trim_heap
from .chunked import ChunkedOptimizer, flat, write_norm

TRIM_BYTES = 16 * 2**20
HELD_BYTES = 64 * 2**20
HELD_SHARE = 0.03  # of all gradients. Without it the playground's were clipped twice as far from what the true norm leaves
MEMORY_STEPS = 20  # over so many steps shares are averaged
SMALL = 4096  # numbers of a gradient
TINY = 1e-30


def held_bytes(gradient_bytes: int) -> int:
    """How much of so many gradients is held back, the one that is too many not counted."""
    return min(HELD_BYTES, int(HELD_SHARE * gradient_bytes))


class FusedBackward:
    """Hooks that update the parameters of `optimizer` soon after their gradients are whole.

    `max_grad_norm` limits the norm of all gradients together; 0 does not. Gradients must not be accumulated.
    """

    def __init__(self, optimizer: ChunkedOptimizer, max_grad_norm: float) -> None:
        self._optimizer, self._limit = optimizer, max_grad_norm**2  # of the squared norm
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._norms = torch.zeros(len(parameters), device=parameters[0].device)
        self._norm_of = dict(zip(parameters, self._norms.unbind(), strict=True))
        self._shares = torch.full_like(self._norms, 1 / len(parameters))  # of the squared global norm, expected
        self._steps = 0
        self._gone, self._left = torch.zeros_like(self._norms[0]), torch.full_like(self._norms[0], self._limit)
        self._held: list[torch.nn.Parameter] = []
        self._held_bytes = 0
        all_bytes = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
        self._held_at_most = held_bytes(all_bytes) if max_grad_norm else 0
        self._made_bytes = 0  # of gradients in RAM since the heap was trimmed
        self._hooks = [parameter.register_post_accumulate_grad_hook(self._take) for parameter in parameters]

    @torch.no_grad()
    def finish(self) -> torch.Tensor:
        """Finish the updates of this backward pass; returns the norm of all its gradients together, unclipped."""
        if self._held:
            self._update()
        self._optimizer.finish()
        squares = self._norms.square()
        square = squares.sum()
        self._steps += 1
        self._shares.lerp_(squares / (square + TINY), 1 / min(self._steps, MEMORY_STEPS))
        self._norms.zero_()
        self._gone.zero_()
        self._left.fill_(self._limit)
        return square.sqrt()

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def state_dict(self) -> dict[str, Any]:
        return {"shares": self._shares, "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._shares.copy_(state["shares"])
        self._steps = state["steps"]

    @torch.no_grad()
    def _take(self, parameter: torch.Tensor) -> None:
        assert isinstance(parameter, torch.nn.Parameter) and parameter.grad is not None
        gradient = flat(parameter.grad)
        if gradient.numel() > SMALL:
            write_norm(gradient, self._norm_of[parameter])
        self._held.append(parameter)
        gradient_bytes = gradient.numel() * gradient.element_size()
        self._held_bytes += gradient_bytes
        if self._held_bytes > self._held_at_most:
            self._update()
        if self._norms.device.type == "cpu":
            self._trim_after(gradient_bytes)

    def _update(self) -> None:
        """Clip and use up the gradients that are held."""
        self._measure([parameter for parameter in self._held if parameter.numel() <= SMALL])
        self._optimizer.step_parameters(self._held, self._scale() if self._limit else None)
        for parameter in self._held:
            parameter.grad = None
        self._held.clear()
        self._held_bytes = 0

    def _trim_after(self, gradient_bytes: int) -> None:
        self._made_bytes += gradient_bytes
        if self._made_bytes >= TRIM_BYTES:  # or freed pieces of many sizes add up to more than the gradients that are held
            self._made_bytes = 0
            trim_heap()

    def _measure(self, parameters: list[torch.nn.Parameter]) -> None:
        """The norms of small gradients, all at once: one by one they would take two launches each."""
        if parameters:
            gradients = [flat(parameter.grad) for parameter in parameters if parameter.grad is not None]
            wide = torch.cat(gradients).float()
            norms = torch._foreach_norm(wide.split([len(gradient) for gradient in gradients]))
            torch._foreach_copy_([self._norm_of[parameter] for parameter in parameters], norms)

    def _scale(self) -> torch.Tensor:
        """What the held gradients are multiplied by; the host does not wait for it."""
        seen = self._norms.square().sum()
        expected = torch.where(self._norms > 0, self._shares, 0.0).sum()
        foreseen = seen / expected.clamp(TINY, 1.0)
        to_come = foreseen - self._gone  # these and later ones
        square = torch.minimum(self._limit / (foreseen + TINY), (self._left + TINY) / (to_come + TINY)).clamp(max=1.0)
        self._left.sub_(square * (seen - self._gone)).clamp_(min=0.0)
        self._gone.copy_(seen)
        return square.sqrt()
