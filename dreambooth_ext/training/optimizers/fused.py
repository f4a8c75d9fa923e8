"""The optimizer's step as a part of the backward pass: a gradient lives only until its parameter is updated.

After "LOMO" (Lv et al. 2023) and torch's own tutorial on the hook. Only one gradient exists at a time, so there is
no global norm to clip by. Each tensor may have an equal share of it instead: with n tensors, each one's own norm is
limited to max_grad_norm / sqrt(n). Their common norm never exceeds max_grad_norm either, and stays about as even from step
to step as a clipped one, which AdamW's memory of the large first gradients needs.
"""

from __future__ import annotations

import math

import torch

from ...ram import trim_heap
from .chunked import ChunkedOptimizer, flat, pieces

TRIM_BYTES = 64 * 2**20


class FusedBackward:
    """Hooks that update each parameter of `optimizer` as soon as its gradient is whole.

    `max_grad_norm` limits the norm of all gradients together, by equal shares for each tensor; 0 does not. Gradients must
    not be accumulated.
    """

    def __init__(self, optimizer: ChunkedOptimizer, max_grad_norm: float) -> None:
        self._optimizer = optimizer
        self._groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
        self._share = max_grad_norm / math.sqrt(len(self._groups))
        self._hooks = [parameter.register_post_accumulate_grad_hook(self._update) for parameter in self._groups]
        self._squares: list[torch.Tensor] = []
        self._freed = 0  # bytes of gradients in RAM since the heap was trimmed

    def finish(self) -> torch.Tensor:
        """Wait for the updates of this backward pass; returns the norm of all its gradients together, unclipped."""
        self._optimizer.finish()
        squares, self._squares = self._squares, []
        return torch.stack(squares).sum().sqrt() if squares else torch.zeros(())

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    @torch.no_grad()
    def _update(self, parameter: torch.Tensor) -> None:
        assert isinstance(parameter, torch.nn.Parameter) and parameter.grad is not None
        gradient = flat(parameter.grad)
        square = torch.stack([gradient[piece].float().square().sum() for piece in pieces(gradient.numel())]).sum()
        self._squares.append(square)
        if self._share:
            gradient.mul_((self._share / (square.sqrt() + 1e-6)).clamp(max=1.0))
        self._optimizer.step_parameter(parameter, self._groups[parameter])
        parameter.grad = None
        if parameter.device.type == "cpu":
            self._freed += gradient.numel() * gradient.element_size()
            if self._freed >= TRIM_BYTES:  # or freed pieces of many sizes add up to the size of another gradient and more
                self._freed = 0
                trim_heap()
