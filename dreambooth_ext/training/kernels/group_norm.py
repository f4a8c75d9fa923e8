"""Group normalization (Wu and He 2018) with SiLU after it, of tensors whose channels lie last in memory.

torch's kernels want channels first: it copies such tensors there and back, in the backward pass as well, and keeps the result for
SiLU's gradient. Here nothing is copied, and x is all that is kept. Moments are taken over pieces of a picture and joined after
Chan et al. (1979), without the cancellation of a mean of squares.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from .jit import jit

CHANNELS = 64  # of a program: 128 bytes of bf16 side by side
PLACES = 128  # of a program, at most


@jit
def _norm_moments(x: tl.tensor, means: tl.tensor, squares: tl.tensor, area: tl.tensor, channels: tl.tensor, places: tl.constexpr,
                  width: tl.constexpr) -> None:
    """Of each channel over one piece: its mean, and the sum of squared differences from it."""
    picture, piece, pieces = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    place = piece * places + tl.arange(0, places)
    channel = tl.program_id(2) * width + tl.arange(0, width)
    inside = (place < area)[:, None] & (channel < channels)[None, :]
    at = (picture.to(tl.int64) * area + place)[:, None] * channels + channel[None, :]
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    count = tl.minimum(area - piece * places, places)
    mean = tl.sum(values, axis=0) / count
    apart = tl.where(inside, values - mean[None, :], 0.0)
    to = (picture * pieces + piece) * channels + channel
    tl.store(means + to, mean, mask=channel < channels)
    tl.store(squares + to, tl.sum(apart * apart, axis=0), mask=channel < channels)


@jit
def _norm_statistics(means: tl.tensor, squares: tl.tensor, of_groups: tl.tensor, area: tl.tensor, channels: tl.tensor,
                     pieces: tl.tensor, eps: tl.tensor, places: tl.constexpr, many: tl.constexpr, width: tl.constexpr) -> None:
    """Of each group of a picture: its mean and 1 / its standard deviation."""
    picture, group, groups = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    size = channels // groups
    piece, channel = tl.arange(0, many), tl.arange(0, width)
    count = tl.minimum(area - piece * places, places).to(tl.float32)[:, None]
    inside = (piece < pieces)[:, None] & (channel < size)[None, :]
    at = (picture * pieces + piece)[:, None] * channels + (group * size + channel)[None, :]
    mean_of_piece = tl.load(means + at, mask=inside, other=0.0)
    mean = tl.sum(tl.sum(tl.where(inside, mean_of_piece * count, 0.0), axis=1), axis=0) / (area * size)
    apart = mean_of_piece - mean
    square = tl.load(squares + at, mask=inside, other=0.0) + tl.where(inside, apart * apart * count, 0.0)
    variance = tl.sum(tl.sum(square, axis=1), axis=0) / (area * size)
    to = 2 * (picture * groups + group)
    tl.store(of_groups + to, mean)
    tl.store(of_groups + to + 1, 1 / tl.sqrt(variance + eps))


@jit
def _norm_apply(x: tl.tensor, of_groups: tl.tensor, weight: tl.tensor, bias: tl.tensor, y: tl.tensor, area: tl.tensor,
                channels: tl.tensor, groups: tl.tensor, silu: tl.constexpr, places: tl.constexpr, width: tl.constexpr) -> None:
    picture = tl.program_id(0)
    place = tl.program_id(1) * places + tl.arange(0, places)
    channel = tl.program_id(2) * width + tl.arange(0, width)
    real = channel < channels
    inside = (place < area)[:, None] & real[None, :]
    at = (picture.to(tl.int64) * area + place)[:, None] * channels + channel[None, :]
    group = 2 * (picture * groups + channel // (channels // groups))
    factor = tl.load(of_groups + group + 1, mask=real, other=0.0) * tl.load(weight + channel, mask=real, other=0.0).to(tl.float32)
    offset = tl.load(bias + channel, mask=real, other=0.0).to(tl.float32)
    mean = tl.load(of_groups + group, mask=real, other=0.0)
    values = (tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - mean[None, :]) * factor[None, :] + offset[None, :]
    if silu:
        values = values / (1 + tl.exp(-values))
    tl.store(y + at, values.to(y.dtype.element_ty), mask=inside)


@jit
def _norm_sums(x: tl.tensor, grad: tl.tensor, of_groups: tl.tensor, weight: tl.tensor, bias: tl.tensor, sums: tl.tensor,
               area: tl.tensor, channels: tl.tensor, groups: tl.tensor, silu: tl.constexpr, places: tl.constexpr,
               width: tl.constexpr) -> None:
    """Of each channel over one piece: the gradient's sum, and that of its product with what was normalized."""
    picture, piece, pieces = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    place = piece * places + tl.arange(0, places)
    channel = tl.program_id(2) * width + tl.arange(0, width)
    real = channel < channels
    inside = (place < area)[:, None] & real[None, :]
    at = (picture.to(tl.int64) * area + place)[:, None] * channels + channel[None, :]
    group = 2 * (picture * groups + channel // (channels // groups))
    mean = tl.load(of_groups + group, mask=real, other=0.0)
    scale = tl.load(of_groups + group + 1, mask=real, other=0.0)
    normal = (tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - mean[None, :]) * scale[None, :]
    change = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
    if silu:
        values = normal * tl.load(weight + channel, mask=real, other=0.0).to(tl.float32)[None, :]
        values += tl.load(bias + channel, mask=real, other=0.0).to(tl.float32)[None, :]
        gate = 1 / (1 + tl.exp(-values))
        change *= gate * (1 + values * (1 - gate))
    to = 2 * (picture * pieces + piece) * channels + channel
    tl.store(sums + to, tl.sum(change, axis=0), mask=real)
    tl.store(sums + to + channels, tl.sum(tl.where(inside, change * normal, 0.0), axis=0), mask=real)


@jit
def _norm_joined_sums(sums: tl.tensor, weight: tl.tensor, of_channels: tl.tensor, of_groups: tl.tensor, channels: tl.tensor,
                      pieces: tl.tensor, many: tl.constexpr, width: tl.constexpr) -> None:
    """Over a picture: both sums of each channel, and of each group by its channels' weights."""
    picture, group, groups = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    size = channels // groups
    piece, channel = tl.arange(0, many), tl.arange(0, width)
    real = channel < size
    inside = (piece < pieces)[:, None] & real[None, :]
    at = 2 * (picture * pieces + piece)[:, None] * channels + (group * size + channel)[None, :]
    plain = tl.load(sums + at, mask=inside, other=0.0)
    product = tl.load(sums + at + channels, mask=inside, other=0.0)
    of_channel, product_of_channel = tl.sum(plain, axis=0), tl.sum(product, axis=0)
    to = 2 * picture * channels + group * size + channel
    tl.store(of_channels + to, of_channel, mask=real)
    tl.store(of_channels + to + channels, product_of_channel, mask=real)
    factor = tl.load(weight + group * size + channel, mask=real, other=0.0).to(tl.float32)
    tl.store(of_groups + 2 * (picture * groups + group), tl.sum(of_channel * factor, axis=0))
    tl.store(of_groups + 2 * (picture * groups + group) + 1, tl.sum(product_of_channel * factor, axis=0))


@jit
def _norm_input_gradient(x: tl.tensor, grad: tl.tensor, of_groups: tl.tensor, sums: tl.tensor, weight: tl.tensor, bias: tl.tensor,
                         grad_x: tl.tensor, area: tl.tensor, channels: tl.tensor, groups: tl.tensor, silu: tl.constexpr,
                         places: tl.constexpr, width: tl.constexpr) -> None:
    picture = tl.program_id(0)
    place = tl.program_id(1) * places + tl.arange(0, places)
    channel = tl.program_id(2) * width + tl.arange(0, width)
    real = channel < channels
    inside = (place < area)[:, None] & real[None, :]
    at = (picture.to(tl.int64) * area + place)[:, None] * channels + channel[None, :]
    group = 2 * (picture * groups + channel // (channels // groups))
    mean = tl.load(of_groups + group, mask=real, other=0.0)
    scale = tl.load(of_groups + group + 1, mask=real, other=0.0)
    factor = tl.load(weight + channel, mask=real, other=0.0).to(tl.float32)
    count = area * (channels // groups)
    sum_of_group = tl.load(sums + group, mask=real, other=0.0) / count
    product_of_group = tl.load(sums + group + 1, mask=real, other=0.0) / count
    normal = (tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - mean[None, :]) * scale[None, :]
    change = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
    if silu:
        values = normal * factor[None, :] + tl.load(bias + channel, mask=real, other=0.0).to(tl.float32)[None, :]
        gate = 1 / (1 + tl.exp(-values))
        change *= gate * (1 + values * (1 - gate))
    change = (change * factor[None, :] - sum_of_group[None, :] - normal * product_of_group[None, :]) * scale[None, :]
    tl.store(grad_x + at, change.to(grad_x.dtype.element_ty), mask=inside)


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, groups: int, weight: torch.Tensor, bias: torch.Tensor, eps: float,
                silu: bool) -> torch.Tensor:
        (pictures, channels), area = x.shape[:2], x.shape[2] * x.shape[3]
        tile, grid = _tiles(x)
        means = torch.empty(2, pictures, grid[1], channels, device=x.device, dtype=torch.float32)
        of_groups = torch.empty(pictures, groups, 2, device=x.device, dtype=torch.float32)
        y = torch.empty_like(x)
        _norm_moments[grid](x, means[0], means[1], area, channels, **tile)
        _norm_statistics[(pictures, groups)](means[0], means[1], of_groups, area, channels, grid[1], eps, places=tile["places"],
                                        **_joining(grid[1], channels // groups))
        _norm_apply[grid](x, of_groups, weight, bias, y, area, channels, groups, silu=silu, **tile)
        ctx.save_for_backward(x, of_groups, weight, bias)
        ctx.groups, ctx.silu = groups, silu
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        x, of_groups, weight, bias = ctx.saved_tensors
        (pictures, channels), area = x.shape[:2], x.shape[2] * x.shape[3]
        grad = grads[0].contiguous(memory_format=torch.channels_last)
        tile, grid = _tiles(x)
        sums = torch.empty(pictures, grid[1], 2, channels, device=x.device, dtype=torch.float32)
        of_channels = torch.empty(pictures, 2, channels, device=x.device, dtype=torch.float32)
        sums_of_groups = torch.empty_like(of_groups)
        _norm_sums[grid](x, grad, of_groups, weight, bias, sums, area, channels, ctx.groups, silu=ctx.silu, **tile)
        _norm_joined_sums[(pictures, ctx.groups)](sums, weight, of_channels, sums_of_groups, channels, grid[1],
                                             **_joining(grid[1], channels // ctx.groups))
        by_x = by_weight = by_bias = None
        if ctx.needs_input_grad[0]:
            by_x = torch.empty_like(x)
            _norm_input_gradient[grid](x, grad, of_groups, sums_of_groups, weight, bias, by_x, area, channels, ctx.groups,
                                  silu=ctx.silu, **tile)
        if ctx.needs_input_grad[2]:
            by_bias, by_weight = of_channels.sum(0).to(weight.dtype).unbind()
        return by_x, None, by_weight, by_bias, None, None


def _tiles(x: torch.Tensor) -> tuple[dict[str, int], tuple[int, int, int]]:
    """What a program works on, and how many of them there are: (pictures, pieces of their area, pieces of their channels)."""
    channels, area = x.shape[1], x.shape[2] * x.shape[3]
    places = min(PLACES, triton.next_power_of_2(area))
    width = min(CHANNELS, triton.next_power_of_2(channels))
    return {"places": places, "width": width}, (x.shape[0], triton.cdiv(area, places), triton.cdiv(channels, width))


def _joining(pieces: int, size: int) -> dict[str, int]:
    return {"many": triton.next_power_of_2(pieces), "width": triton.next_power_of_2(size)}


def group_norm(x: torch.Tensor, groups: int, weight: torch.Tensor, bias: torch.Tensor, eps: float,
               silu: bool = False) -> torch.Tensor:
    """(B, C, h, w), channels last in memory, any float dtype -> the same, computed in fp32; SiLU of it if `silu`."""
    return _GroupNorm.apply(x, groups, weight, bias, eps, silu)  # type: ignore[no-any-return]
