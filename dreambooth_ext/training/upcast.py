"""bf16 weights, fp32 arithmetic, layer by layer: for CPUs, whose bf16 convolutions are some 60 times slower.

Each layer's weights are widened for its own forward and backward pass and forgotten in between, so that memory holds
one layer in fp32 at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

Compute = Callable[..., torch.Tensor]


def install(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Let every bf16 layer in `modules` compute in fp32; returns the layers, for `remove`.

    Raises KeyError for a kind of layer that it does not know: it would compute in bf16.
    """
    layers = [layer for module in modules for layer in module.modules()
              if any(parameter.dtype == torch.bfloat16 for parameter in layer.parameters(recurse=False))]
    for layer in layers:
        layer.forward = partial(_FORWARDS[type(layer)], layer)  # type: ignore[method-assign]
    return layers


def remove(layers: Iterable[nn.Module]) -> None:
    for layer in layers:
        del layer.forward


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.biased = bias is not None
        return F.linear(x.float(), weight.float(), None if bias is None else bias.float())

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad,), (x, weight) = grads, ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        by_x = (rows @ weight.float()).view_as(x).to(x.dtype) if ctx.needs_input_grad[0] else None
        by_weight = (rows.t() @ x.reshape(-1, x.shape[-1]).float()).to(weight.dtype) if ctx.needs_input_grad[1] else None
        by_bias = rows.sum(0).to(weight.dtype) if ctx.biased and ctx.needs_input_grad[2] else None
        return by_x, by_weight, by_bias


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layer: nn.Conv2d, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.layer, ctx.biased = layer, bias is not None
        return layer._conv_forward(x.float(), weight.float(), None if bias is None else bias.float())

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        (grad,), (x, weight), layer = grads, ctx.saved_tensors, ctx.layer
        wanted_x, wanted_weight = ctx.needs_input_grad[1], ctx.needs_input_grad[2]
        shape_alone = torch.zeros((), dtype=torch.float32).expand(weight.shape)

        def gradients(wide: torch.Tensor, mask: list[bool]) -> list[torch.Tensor | None]:
            return torch.ops.aten.convolution_backward(  # type: ignore[no-any-return]
                grad, x.float(), wide, [weight.shape[0]], layer.stride, layer.padding, layer.dilation, False, [0, 0],
                layer.groups, mask)

        # One after the other: the wide weight and its wide gradient never exist together.
        by_x = gradients(weight.float(), [True, False, False])[0] if wanted_x else None
        _, by_weight, by_bias = gradients(shape_alone, [False, wanted_weight, ctx.biased and ctx.needs_input_grad[3]])
        return (None, None if by_x is None else by_x.to(x.dtype), None if by_weight is None else by_weight.to(weight.dtype),
                None if by_bias is None else by_bias.to(weight.dtype))


def _linear(layer: nn.Linear, x: torch.Tensor, *_: Any) -> torch.Tensor:
    return _Linear.apply(x, layer.weight, layer.bias)


def _conv2d(layer: nn.Conv2d, x: torch.Tensor, *_: Any) -> torch.Tensor:
    return _Conv2d.apply(layer, x, layer.weight, layer.bias)


def _group_norm(layer: nn.GroupNorm, x: torch.Tensor) -> torch.Tensor:
    return F.group_norm(x.float(), layer.num_groups, layer.weight.float(), layer.bias.float(), layer.eps)


def _layer_norm(layer: nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
    weight, bias = (None if each is None else each.float() for each in (layer.weight, layer.bias))
    return F.layer_norm(x.float(), layer.normalized_shape, weight, bias, layer.eps)


def _embedding(layer: nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
    return F.embedding(ids, layer.weight, layer.padding_idx).float()


_FORWARDS: dict[type, Compute] = {nn.Linear: _linear, nn.Conv2d: _conv2d, nn.GroupNorm: _group_norm,
                                  nn.LayerNorm: _layer_norm, nn.Embedding: _embedding}
