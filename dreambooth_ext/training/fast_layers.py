"""diffusers' blocks with channels last in memory all the way, and with our kernels for norms and gates.

Their own forward passes turn the layout round at each norm and behind each transformer, divide by factors of 1, and keep more for
the backward pass. The numbers are theirs but for rounding. What is configured otherwise than Stable Diffusion's UNets keeps its
own forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

Place = tuple[nn.Module, str]  # a layer, and the name of its method
Faster = dict[Place, Callable[..., Any]]


def install(unet: Any) -> list[Place]:
    """Give the blocks of a UNet2DConditionModel their faster forward passes; returns where, for `remove`."""
    from diffusers.models.activations import GEGLU
    from diffusers.models.attention_processor import Attention
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    of_kind: dict[type, Callable[[Any], Faster]] = {
        ResnetBlock2D: _of_resnet, Attention: _of_attention, GEGLU: _of_geglu, Transformer2DModel: _of_transformer}
    faster = _of_output(unet)
    for layer in unet.modules():
        if type(layer) in of_kind:
            faster |= of_kind[type(layer)](layer)
    for (layer, name), method in faster.items():
        setattr(layer, name, method)
    return list(faster)


def remove(places: list[Place]) -> None:
    for layer, name in places:
        delattr(layer, name)


def _of_resnet(block: Any) -> Faster:
    as_expected = (block.time_embedding_norm == "default" and block.upsample is None and block.downsample is None
                   and _is_plain(block.norm1) and _is_plain(block.norm2) and isinstance(block.nonlinearity, nn.SiLU)
                   and block.output_scale_factor == 1 and block.time_emb_proj is not None and not block.skip_time_act)
    return {(block, "forward"): partial(_resnet, block)} if as_expected else {}


def _of_attention(layer: Any) -> Faster:
    from diffusers.models.attention_processor import AttnProcessor2_0

    as_expected = (type(layer.processor) is AttnProcessor2_0 and layer.spatial_norm is None and layer.group_norm is None
                   and not layer.norm_cross and layer.rescale_output_factor == 1 and not layer.residual_connection
                   and getattr(layer, "norm_q", None) is None and getattr(layer, "norm_k", None) is None)
    return {(layer, "forward"): partial(_attention, layer)} if as_expected else {}


def _of_geglu(layer: Any) -> Faster:
    return {(layer, "forward"): partial(_geglu, layer)}


def _of_transformer(layer: Any) -> Faster:
    if not (layer.is_input_continuous and _is_plain(layer.norm)):
        return {}
    return {(layer.norm, "forward"): partial(normalized, layer.norm),
            (layer, "_get_output_for_continuous_inputs"): partial(_transformer_output, layer)}


def _of_output(unet: Any) -> Faster:
    """The last norm. Its activation may be an object that all of diffusers shares."""
    return {(unet.conv_norm_out, "forward"): partial(normalized, unet.conv_norm_out)} if _is_plain(unet.conv_norm_out) else {}


def _is_plain(norm: Any) -> bool:
    return type(norm) is nn.GroupNorm and norm.affine


def _resnet(block: Any, x: torch.Tensor, temb: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    hidden = block.conv1(normalized(block.norm1, x, silu=True))
    hidden = hidden + block.time_emb_proj(F.silu(temb))[:, :, None, None]
    hidden = block.conv2(block.dropout(normalized(block.norm2, hidden, silu=True)))
    return hidden + (x if block.conv_shortcut is None else block.conv_shortcut(x))


def _attention(layer: Any, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor | None = None,
               attention_mask: torch.Tensor | None = None, **more: Any) -> torch.Tensor:
    """(B, N, d) -> the same."""
    if attention_mask is not None or hidden_states.dim() != 3:
        return type(layer).forward(layer, hidden_states, encoder_hidden_states, attention_mask, **more)  # type: ignore[no-any-return]
    read = hidden_states if encoder_hidden_states is None else encoder_hidden_states
    query, key, value = (projected.unflatten(-1, (layer.heads, -1)).transpose(1, 2)
                         for projected in (layer.to_q(hidden_states), layer.to_k(read), layer.to_v(read)))
    seen = F.scaled_dot_product_attention(query, key, value)
    return layer.to_out[1](layer.to_out[0](seen.transpose(1, 2).flatten(2)))  # type: ignore[no-any-return]


def _geglu(layer: Any, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return gated(layer.proj(hidden_states))


def _transformer_output(layer: Any, hidden_states: torch.Tensor, residual: torch.Tensor, batch_size: int, height: int, width: int,
                        inner_dim: int) -> torch.Tensor:
    """(B, h w, d) -> (B, C, h, w). Only the view is turned round."""
    if layer.use_linear_projection:
        return residual + layer.proj_out(hidden_states).unflatten(1, (height, width)).permute(0, 3, 1, 2)  # type: ignore[no-any-return]
    return residual + layer.proj_out(hidden_states.unflatten(1, (height, width)).permute(0, 3, 1, 2))  # type: ignore[no-any-return]


def normalized(layer: nn.GroupNorm, x: torch.Tensor, silu: bool = False) -> torch.Tensor:
    """(B, C, h, w) -> its group normalization, and SiLU of that if `silu`."""
    if _kernels_serve(x) and x.is_contiguous(memory_format=torch.channels_last):
        from .kernels.group_norm import group_norm

        return group_norm(x, layer.num_groups, layer.weight, layer.bias, layer.eps, silu)
    y = F.group_norm(x, layer.num_groups, layer.weight, layer.bias, layer.eps)
    return F.silu(y) if silu else y


def gated(x: torch.Tensor) -> torch.Tensor:
    """(..., 2 d) -> (..., d): GEGLU."""
    if _kernels_serve(x):
        from .kernels.geglu import geglu

        return geglu(x)
    hidden, gate = x.chunk(2, dim=-1)
    return hidden * F.gelu(gate)


def _kernels_serve(x: torch.Tensor) -> bool:
    return x.is_cuda
