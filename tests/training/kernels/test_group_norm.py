"""Against torch's own in fp64. Triton's interpreter computes: the same code as on a GPU, number by number."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton", minversion="3", reason="Triton 3, whose interpreter computes here, is missing")

from dreambooth_ext.training.kernels.group_norm import group_norm

SHAPES = [(2, 64, 8, 8), (1, 320, 12, 13), (3, 96, 16, 16), (2, 32, 1, 3), (1, 64, 24, 24)]  # one, two and five pieces of area


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.double() - theirs).norm() / theirs.norm())


def inputs(shape, dtype, offset=5.0):
    draws = torch.Generator().manual_seed(0)
    x = (torch.randn(shape, generator=draws) * 2 + offset).to(dtype).contiguous(memory_format=torch.channels_last)
    weight, bias = (torch.randn(shape[1], generator=draws).to(dtype).requires_grad_() for _ in range(2))
    return x.requires_grad_(), weight, bias, torch.randn(shape, generator=draws).to(dtype)


def expected(x, weight, bias, grad, silu):
    x, weight, bias = (tensor.detach().double().requires_grad_() for tensor in (x, weight, bias))
    y = F.group_norm(x, 32, weight, bias, 1e-5)
    y = F.silu(y) if silu else y
    return y, torch.autograd.grad(y, (x, weight, bias), grad.double())


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-6), (torch.bfloat16, 5e-3), (torch.float16, 1e-3)])
@pytest.mark.parametrize("shape", SHAPES)
def test_output_and_gradients_are_those_of_torch(shape, dtype, near, silu):
    x, weight, bias, grad = inputs(shape, dtype)
    y = group_norm(x, 32, weight, bias, 1e-5, silu)
    gradients = torch.autograd.grad(y, (x, weight, bias), grad)
    wanted, wanted_gradients = expected(x, weight, bias, grad, silu)
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    assert apart(y, wanted) < near
    for ours, theirs in zip(gradients, wanted_gradients, strict=True):
        assert ours.dtype == dtype and apart(ours, theirs) < near


def test_a_mean_far_from_zero_costs_no_digits():
    x, weight, bias, grad = inputs((1, 32, 16, 16), torch.float32, offset=1000.0)
    y = group_norm(x, 32, weight, bias, 1e-5)
    assert apart(y, expected(x, weight, bias, grad, False)[0]) < 1e-4  # a mean of squares would be off by a tenth


def test_gradients_of_another_layout_are_taken():
    x, weight, bias, grad = inputs((2, 64, 8, 8), torch.float32)
    y = group_norm(x, 32, weight, bias, 1e-5, True)
    last = torch.autograd.grad(y, x, grad.contiguous(memory_format=torch.channels_last), retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(y, x, grad.contiguous())[0], last)


def test_frozen_weights_get_no_gradients():
    x, weight, bias, grad = inputs((2, 64, 8, 8), torch.float32)
    whole = torch.autograd.grad(group_norm(x, 32, weight, bias, 1e-5), x, grad)[0]
    frozen = group_norm(x, 32, weight.detach(), bias.detach(), 1e-5)
    assert torch.equal(torch.autograd.grad(frozen, x, grad)[0], whole)


def test_what_is_not_a_number_stays_so():
    x, weight, bias, _ = inputs((1, 32, 4, 4), torch.float32)
    with torch.no_grad():
        x[0, 0, 0, 0] = float("nan")
    assert group_norm(x, 32, weight, bias, 1e-5, True).isnan().sum() == 16  # its group, and no other
