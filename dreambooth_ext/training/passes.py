"""Forward and backward pass of a batch: launched operation by operation, or recorded once and played again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any, TypeVar

import torch

from ..errors import ConfigError
from ..gpu import release
from .data import Batch
from .objective import Inputs, Objective
from .session import Session

Losses = dict[str, torch.Tensor]
Result = TypeVar("Result")
WARM_UPS = 3  # passes before the recording: libraries choose their kernels and take their workspaces


class Pass:
    """Leaves gradients of share x loss in the parameters, added to those that are there; returns the losses."""

    def __init__(self, session: Session, objective: Objective) -> None:
        self._session, self._objective = session, objective

    def __call__(self, batch: Batch, share: float, last: bool) -> Losses:
        return self._run(self._objective.inputs(batch), share, last)

    def making_room(self, work: Callable[[], Result]) -> Result:
        """What `work` returns, which is no pass; memory that passes hold between them is given up for it if there is too little."""
        return work()

    def _run(self, inputs: Inputs, share: float, last: bool = True) -> Losses:
        with self._session.backward_pass(last):
            losses = self._objective.losses(inputs)
            self._session.accelerator.backward(losses["loss"] * share)
        self._session.collect_gradients()
        return losses


class RecordedPass(Pass):
    """A pass as one CUDA graph: the CPU launches it as a whole, which at batch 1 takes it longer than the GPU computes.

    The shape of batches that comes first `WARM_UPS` times is recorded; others (the smaller last batch of a round, say)
    are launched as usual. Gradients must not be accumulated: they always lie in the same place, and are overwritten.
    What cannot be recorded is an error if it was asked for; else it is launched as usual, too, and the log says so. So are all
    passes once memory is too short for anything beside the recording, which holds all that its pass takes.
    """

    def __init__(self, session: Session, objective: Objective, log: Callable[[str], None]) -> None:
        super().__init__(session, objective)
        self._log = log
        self._asked_for, self._given_up = session.config.speed_up == "graphs", False
        self._parameters = session.parameters_with_gradients()
        self._seen: Counter[tuple[object, ...]] = Counter()
        self._beside = Beside(session.device)
        self._recording: _Recording | None = None
        self._played_shape: tuple[object, ...] = ()

    def __call__(self, batch: Batch, share: float, last: bool) -> Losses:
        inputs = self._objective.inputs(batch)
        shape = (share, *inputs.shape)
        if self._recording is not None and shape == self._played_shape:
            return self._recording.play(inputs)
        self._seen[shape] += 1
        if self._recording is not None or self._given_up:
            return self.making_room(lambda: self._run(inputs, share))
        if self._seen[shape] <= WARM_UPS:
            return self._beside(lambda: self._run(inputs, share))
        self._recording, self._played_shape = self._recorded_if_possible(inputs, share), shape
        if self._recording is None:
            return self._run(inputs, share)
        self._log(f"forward and backward pass recorded as a CUDA graph, for batches of {inputs.count} pictures")
        return self._recording.play(inputs)

    def _recorded_if_possible(self, inputs: Inputs, share: float) -> _Recording | None:
        try:
            return self._recorded(inputs, share)
        except (ConfigError, torch.cuda.OutOfMemoryError) as error:
            if self._asked_for:
                raise
            why = " ".join(str(error).split())
        self._give_up(f"passes are launched operation by operation, since they could not be recorded as a CUDA graph ({why})")
        return None

    def making_room(self, work: Callable[[], Result]) -> Result:
        try:
            return work()
        except torch.cuda.OutOfMemoryError:
            if self._asked_for or self._recording is None:
                raise
        self._give_up("passes are launched operation by operation from now on: their CUDA graph left too little memory")
        return work()

    def _give_up(self, why: str) -> None:
        """For good. What a pass that was cut short has left would be added to the next one's gradients."""
        self._recording, self._given_up = None, True
        self._session.forget_gradients()
        release()
        self._log(why)

    def _recorded(self, inputs: Inputs, share: float) -> _Recording:
        kept = inputs.cloned()
        try:
            return _Recording(CudaGraph(self._session.device), kept, lambda: self._run(kept, share), self._parameters)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ConfigError([f"--speed-up: CUDA cannot record this pass as a graph ({error})"],
                              "Resume with --speed-up none: what was learnt up to the last snapshot is kept.") from error


class CudaGraph:
    """torch.cuda.CUDAGraph: work is recorded without being done; playing does it, on the same addresses."""

    def __init__(self, device: torch.device) -> None:
        self._graph, self._device = torch.cuda.CUDAGraph(), device

    def record(self, work: Callable[[], Losses]) -> Losses:
        torch.cuda.synchronize(self._device)
        try:
            return self._recorded(self._graph, stream_of(self._device), work)
        except RuntimeError:
            # Else many a torch would draw no random number on this GPU any more, not for the host's pictures either, until some
            # recording ends well.
            with suppress(RuntimeError):
                device = self._device
                self._recorded(torch.cuda.CUDAGraph(), torch.cuda.Stream(device), lambda: torch.zeros((), device=device))
            raise

    @staticmethod
    def _recorded(graph: Any, stream: Any, work: Callable[[], Result]) -> Result:
        # torch's own stream would be one of the GPU on which this process recorded first; and where a recording ends in an error,
        # torch leaves its stream the current one. By default CUDA would give up for what any other thread does meanwhile.
        with torch.cuda.stream(stream), torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            return work()

    def play(self) -> None:
        self._graph.replay()


class _Recording:
    """A recorded pass: what it reads and where its results and gradients lie."""

    def __init__(self, graph: Any, kept: Inputs, work: Callable[[], Losses], parameters: list[torch.nn.Parameter]) -> None:
        self._graph, self._kept, self._parameters = graph, kept.tensors(), parameters
        for parameter in parameters:
            parameter.grad = None  # the recording makes its own
        self._losses = {name: loss.detach() for name, loss in graph.record(work).items()}
        self._gradients = [parameter.grad for parameter in parameters]

    def play(self, inputs: Inputs) -> Losses:
        for kept, new in zip(self._kept, inputs.tensors(), strict=True):
            kept.copy_(new, non_blocking=True)
        self._graph.play()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        return self._losses


class Beside:
    """Work on a stream of its own, as CUDA wants what is recorded later; whoever comes after waits for it.

    Always the same stream: each has its own store of freed memory, and a pass may need most of the card.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = stream_of(device) if device.type == "cuda" else None

    def __call__(self, work: Callable[[], Losses]) -> Losses:
        if self._stream is None:
            return work()
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            losses = work()
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        return losses


def stream_of(device: torch.device) -> Any:
    """The one that passes and recordings of this process have on a GPU: cuBLAS keeps memory for each that it ever worked on."""
    return _stream(torch.cuda.current_device() if device.index is None else device.index)


@cache
def _stream(number: int) -> Any:
    return torch.cuda.Stream(number)


def pass_for(session: Session, objective: Objective, log: Callable[[str], None]) -> Pass:
    """What the settings ask for."""
    if session.plan.speed_up == "graphs":
        return RecordedPass(session, objective, log)
    return Pass(session, objective)
