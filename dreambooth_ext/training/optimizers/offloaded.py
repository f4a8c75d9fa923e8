"""AdamW whose fp32 weights and state live in RAM: the device holds bf16 copies (Ren et al. 2021, "ZeRO-Offload")."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch.optim.adamw import adamw

from .adamw import adam_step, is_fused_on
from .chunked import ChunkedOptimizer, flat, flat_gradient, pieces

LEAVING_BYTES = 128 * 2**20  # gradients that wait on the device for their way down; a fast backward pass would pile them up


class OffloadedAdamW(ChunkedOptimizer):
    """12 bytes a parameter in RAM, none on the device.

    Gradients travel down, are worked on by a thread and come back as bf16 weights while the device goes on with the
    backward pass; `finish` waits for the last of them. On a CPU it all happens in place, in order. What travels does so
    through memory that a GPU reads by itself; the state stays in ordinary RAM, which the system may use for others.
    """

    def __init__(self, groups: Iterable[Any], lr: float, betas: tuple[float, float], eps: float,
                 weight_decay: float, seed: int = 0) -> None:
        """To be made while the weights are still fp32 in RAM; they may then be cast and moved."""
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}, seed)
        self._thread: ThreadPoolExecutor | None = None
        self._streams: tuple[Any, Any] | None = None
        self._under_way: list[Future[None]] = []
        self._leaving: deque[tuple[Any, int]] = deque()  # (event of its arrival, bytes) of gradients on their way down
        for parameter in self._parameters():
            self.state[parameter] = self._master_state(parameter)

    def step_parameter(self, parameter: torch.nn.Parameter, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        state["step"] += 1
        gradient = flat_gradient(parameter)
        if not parameter.is_cuda:
            _update(flat(parameter), gradient, state, group)
            return
        down, _ = self._start()
        host = torch.empty(gradient.shape, dtype=gradient.dtype, pin_memory=True)
        down.wait_stream(torch.cuda.current_stream(parameter.device))
        with torch.cuda.stream(down):
            host.copy_(gradient, non_blocking=True)
            gradient.record_stream(down)
            arrived = torch.cuda.Event()
            arrived.record(down)
        assert self._thread is not None
        self._under_way.append(self._thread.submit(self._update_from_afar, parameter, host, arrived, state, dict(group)))
        self._leaving.append((arrived, host.numel() * host.element_size()))
        self._hold_up()

    def _hold_up(self) -> None:
        """The pass goes on when few enough gradients are still on the device."""
        while len(self._leaving) > 1 and sum(size for _, size in self._leaving) > LEAVING_BYTES:
            self._leaving.popleft()[0].synchronize()

    def joins(self, parameter: torch.nn.Parameter) -> bool:
        return False

    def finish(self) -> None:
        for update in self._under_way:
            update.result()
        self._under_way.clear()
        self._leaving.clear()
        if self._streams is not None:
            torch.cuda.current_stream(self._streams[1].device).wait_stream(self._streams[1])

    def _start(self) -> tuple[Any, Any]:
        if self._streams is None:
            device = next(self._parameters()).device
            self._streams = torch.cuda.Stream(device), torch.cuda.Stream(device)
            self._thread = ThreadPoolExecutor(1, "offloaded optimizer")
        return self._streams

    @torch.no_grad()
    def _update_from_afar(self, parameter: torch.nn.Parameter, gradient: torch.Tensor, arrived: Any,
                          state: dict[str, Any], group: dict[str, Any]) -> None:
        arrived.synchronize()
        with torch.cuda.device(parameter.device):  # a thread begins on the first GPU
            weights = torch.empty(gradient.shape, dtype=parameter.dtype, pin_memory=True)
        _update(weights, gradient, state, group)
        assert self._streams is not None
        with torch.cuda.stream(self._streams[1]):
            flat(parameter).copy_(weights, non_blocking=True)

    def _placed(self, value: Any, parameter: torch.nn.Parameter) -> Any:
        return value.clone() if isinstance(value, torch.Tensor) else value

    def _master_state(self, parameter: torch.nn.Parameter) -> dict[str, Any]:
        # No copy of weights that are fp32 in RAM already: casting the module leaves it theirs.
        values = {"master": flat(parameter).to("cpu", torch.float32)}
        values |= {name: torch.zeros_like(values["master"]) for name in ("first", "second")}
        return {"step": 0, **values}


def _update(weights: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    """Adam on the fp32 copy; `weights` becomes its rounding to nearest, which cannot drift."""
    for piece in pieces(gradient):
        master = state["master"][piece]
        _adam_step(master, gradient[piece].float(), state["first"][piece], state["second"][piece], state["step"], group)
        weights[piece] = master.to(weights.dtype)


def _adam_step(values: torch.Tensor, gradient: torch.Tensor, first: torch.Tensor, second: torch.Tensor, step: int,
               group: dict[str, Any]) -> None:
    """`adam_step`, in one pass over memory where torch has it for CPUs."""
    if not is_fused_on("cpu"):
        adam_step(values, gradient, first, second, step, group)
        return
    beta1, beta2 = group["betas"]
    adamw([values], [gradient], [first], [second], [], [torch.tensor(step - 1.0)], foreach=False, fused=True, amsgrad=False,
          beta1=beta1, beta2=beta2, lr=group["lr"], weight_decay=group["weight_decay"], eps=group["eps"], maximize=False)
