"""How much memory a forward and backward pass holds at once, found without doing it: on the meta device."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

# What torch is changed by belongs to the whole process: a form's estimate and a run's own may be wanted at once.
_ONE_AT_A_TIME = threading.Lock()


class Held:
    """Bytes that are held besides, and grow while something runs."""

    bytes = 0


def peak_bytes(run: Callable[[], Any], factor: float = 1.0, held: Held | None = None) -> int:
    """The most bytes of meta tensors, made by `run` itself, that were alive at one time. Exact but for library buffers.

    They are counted times `factor`, and what is `held` at that time is added. Attention is counted as the fused kernels do
    it: no matrix of (tokens, tokens) is ever held.
    """
    held = held or Held()
    with _ONE_AT_A_TIME, _fused_attention(), _device_module(), _LiveStorages(factor, held) as live:
        run()
    return max(live.peak, held.bytes)


class _LiveStorages(TorchDispatchMode):
    """Adds up storages as operations make them; those that died are left out before a new peak is believed.

    By torch's own weak references: finalizers of Python's storage objects run too late, and crash, in torch 2.1.
    """

    def __init__(self, factor: float, held: Held) -> None:
        super().__init__()
        self._factor, self._held = factor, held
        self.peak = self._now = 0
        self._known: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 0  # a number is asked for, as in transformers' masks; memory does not depend on it
        result = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage()._cdata for leaf in tree_flatten((args, kwargs))[0] if _is_meta(leaf)}
        for leaf in tree_flatten(result)[0]:
            if _is_meta(leaf) and leaf.untyped_storage()._cdata not in given:
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._known:  # alive: an address is not used again while it is weakly referenced
            return
        self._known[key] = (StorageWeakRef(storage), storage.nbytes())
        self._now += storage.nbytes()
        if self._bytes() > self.peak:
            self._known = {key: entry for key, entry in self._known.items() if not entry[0].expired()}
            self._now = sum(size for _, size in self._known.values())
            self.peak = max(self.peak, self._bytes())

    def _bytes(self) -> int:
        return int(self._now * self._factor) + self._held.bytes


def _is_meta(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_meta


@contextmanager
def _fused_attention() -> Iterator[None]:
    """On the meta device torch would fall back to attention with its whole matrix, which no GPU does.

    A function mode would not reach the backward pass. Whoever else calls it meanwhile gets torch's own.
    """
    own = F.scaled_dot_product_attention

    def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if query.is_meta:
            return _Attention.apply(query, key, value)
        return own(query, key, value, *args, **kwargs)

    F.scaled_dot_product_attention = attention  # type: ignore[assignment]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = own


@contextmanager
def _device_module() -> Iterator[None]:
    """Gradient checkpointing in torch 2.1 asks for `torch.meta`, which only newer versions do without."""
    missing = not hasattr(torch, "meta")
    if missing:
        torch.meta = SimpleNamespace()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        if missing:
            del torch.meta  # type: ignore[attr-defined]


class _Attention(torch.autograd.Function):
    """Shapes of fused attention: keeps query, key, value, its output and one number a row."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = query.new_empty((*query.shape[:-1], value.shape[-1]))
        rows = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, rows)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        query, key, value, _, _ = ctx.saved_tensors
        return (torch.empty_like(query), torch.empty_like(key), torch.empty_like(value))
