"""Each kind of kernel on a few numbers, beside torch's operations: compilers differ, and so do cards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from ..optimizers.adafactor import Adafactor
from ..optimizers.adamw import LEAST_QUANTIZED, AdamW
from ..optimizers.copied_adamw import CopiedAdamW
from ..optimizers.copied_adamw_8bit import CopiedAdamW8bit
from ..precision import has_bf16
from .geglu import geglu
from .group_norm import group_norm

NEAR = 0.02  # of the length of what torch finds, in half precision
LEARNING_RATE = 0.1
ARGUMENTS: dict[str, Any] = {"lr": LEARNING_RATE, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}


def wrong_ones(device: str) -> list[str]:
    """Which do not find what torch's operations find. Raises what Triton or its compiler raises."""
    trials: dict[str, Callable[[str], bool]] = {
        "group norm": _group_norm, "GEGLU": _geglu, "AdamW of copies": _copied_adamw, "8-bit AdamW": _quantized_adamw,
        "8-bit AdamW of copies": _copied_quantized_adamw, "Adafactor": _adafactor}
    return [name for name, is_right in trials.items() if not is_right(device)]


def _numbers(device: str, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    """In half precision if not told otherwise: fp16 for cards without bf16, for which Triton 2.1 and 3.1 compile none."""
    count = torch.Size(shape).numel()
    dtype = dtype or (torch.bfloat16 if has_bf16(device) else torch.float16)
    return torch.sin(torch.arange(1, count + 1, device=device) * 1.7).view(shape).to(dtype)


def _near(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return bool((ours.float() - theirs.float()).norm() < NEAR * theirs.float().norm())


def _group_norm(device: str) -> bool:
    x = (_numbers(device, 2, 64, 4, 4) + 1).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight, bias = _numbers(device, 64).requires_grad_(), _numbers(device, 64).requires_grad_()
    y = group_norm(x, 32, weight, bias, 1e-5, True)
    expected = F.silu(F.group_norm(x.float(), 32, weight.float(), bias.float(), 1e-5))
    grad = _numbers(device, *y.shape)
    ours, theirs = (torch.autograd.grad(of, (x, weight, bias), grad.to(of.dtype)) for of in (y, expected))
    return _near(y, expected) and all(_near(*pair) for pair in zip(ours, theirs, strict=True))


def _geglu(device: str) -> bool:
    x = _numbers(device, 4, 32).requires_grad_()
    hidden, gate = x.float().chunk(2, dim=-1)
    y, expected = geglu(x), hidden * F.gelu(gate)
    grad = _numbers(device, *y.shape)
    ours, theirs = (torch.autograd.grad(of, x, grad.to(of.dtype))[0] for of in (y, expected))
    return _near(y, expected) and _near(ours, theirs)


def _weight(device: str, *shape: int) -> torch.nn.Parameter:
    weight = torch.nn.Parameter(_numbers(device, *shape, dtype=torch.float32))
    weight.grad = torch.cos(weight.detach())
    return weight


def _copy(weight: torch.nn.Parameter) -> torch.nn.Parameter:
    copy = torch.nn.Parameter(weight.detach().bfloat16())
    copy.grad = torch.cos(weight.detach()).bfloat16()
    return copy


def _copied_adamw(device: str) -> bool:
    weight, other = _weight(device, 40), _weight(device, 40)
    copy = _copy(weight)
    optimizer = CopiedAdamW([{"params": [weight]}], {weight: copy}, lr=LEARNING_RATE)
    optimizer.clip(1.0)
    optimizer.step()
    torch.optim.AdamW([other], lr=LEARNING_RATE).step()  # which does not depend on the gradient's size
    return _near(weight, other) and torch.equal(copy, weight.bfloat16())


def _quantized_adamw(device: str) -> bool:
    def stepped(kernels: bool) -> torch.Tensor:
        weight = _weight(device, LEAST_QUANTIZED + 16)
        AdamW([{"params": [weight], "lr": LEARNING_RATE}], **ARGUMENTS, bits=8, kernels=kernels).step()
        return weight.detach()

    return _near(stepped(True), stepped(False))


def _copied_quantized_adamw(device: str) -> bool:
    weight, other = (_weight(device, LEAST_QUANTIZED + 16) for _ in range(2))
    copy = _copy(weight)
    optimizer = CopiedAdamW8bit([{"params": [weight], "lr": LEARNING_RATE}], {weight: copy}, **ARGUMENTS)
    optimizer.clip(1.0)
    optimizer.step()
    AdamW([{"params": [other], "lr": LEARNING_RATE}], **ARGUMENTS, bits=8).step()
    return _near(weight, other) and torch.equal(copy, weight.bfloat16())


def _adafactor(device: str) -> bool:
    def stepped(kernels: bool) -> torch.Tensor:
        weight = _weight(device, 16, 32)
        Adafactor([{"params": [weight], "lr": LEARNING_RATE}], LEARNING_RATE, 0.0, kernels=kernels).step()
        return weight.detach()

    return _near(stepped(True), stepped(False))
