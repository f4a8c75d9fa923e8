"""Adafactor's kernels against torch's operations, which are held to transformers' in test_optimizers."""

import math

import pytest
import torch

from dreambooth_ext.training.optimizers.adafactor import Adafactor
from dreambooth_ext.training.optimizers.fused import FusedBackward

pytest.importorskip("triton", minversion="3", reason="Triton 3, whose interpreter computes here, is missing")

from dreambooth_ext.training.kernels.tables import MANY

DECAY, RATE = 0.02, 0.01
NARROW, WIDE = torch.bfloat16, torch.float32
SHAPES = ((1, 7), (65, 64), (64, 80), (40, 5, 3, 3), (3, 257), (130, 200), (33,))


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def made(weights, kernels, decay=DECAY, seed=0):
    return Adafactor([{"params": weights, "lr": RATE}], RATE, decay, seed, kernels)


def pair(shapes, dtype=WIDE, **more):
    """The same weights twice, and an optimizer for each: with kernels and without."""
    weights = [[torch.nn.Parameter(randn(*shape, seed=number).to(dtype)) for number, shape in enumerate(shapes)] for _ in range(2)]
    return weights, [made(some, kernels, **more) for some, kernels in zip(weights, (True, False), strict=True)]


@pytest.mark.parametrize("dtype", [WIDE, NARROW])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_each_step_is_torchs(dtype, scale):
    """Of several matrices and a column at once; the third gradient is so large that it is clipped."""
    (ours, theirs), optimizers = pair(SHAPES, dtype)
    for number in range(3):
        for weight, other in zip(ours, theirs, strict=True):
            other.data.copy_(weight.data)
            weight.grad, other.grad = (30.0 ** (number == 2) * randn(*weight.shape, seed=10 + number).to(dtype) for _ in range(2))
        for weights, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.step_parameters(weights, None if scale is None else torch.tensor(scale))
        for weight, other in zip(ours, theirs, strict=True):
            # A gradient of torch's path is scaled in its own precision, the kernel's in fp32.
            near = 1e-5 if scale is None or dtype == WIDE else 2e-3
            assert bool(((weight - other).abs() <= near + (2.0**-7 * other.abs() if dtype == NARROW else 0)).all())
            state, reference = optimizers[0].state[weight], optimizers[1].state[other]
            assert state["step"] == reference["step"] == number + 1
            for name in state.keys() - {"step"}:
                torch.testing.assert_close(state[name], reference[name], rtol=max(5 * near, 1e-5), atol=0)


def test_more_tiles_than_are_added_at_once():
    """2100 columns have 33 parts of their sums; 4200 rows have more than 64 sums of averages."""
    (ours, theirs), optimizers = pair([(2, 2100), (4200, 2)])
    for weights, optimizer in zip((ours, theirs), optimizers, strict=True):
        for weight in weights:
            weight.grad = randn(*weight.shape, seed=5)
        optimizer.step()
    for weight, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(weight, other, rtol=1e-5, atol=1e-6)


def test_more_weights_than_one_launch_takes():
    (ours, theirs), optimizers = pair([(2, 3)] * (MANY + 2))
    for weights, optimizer in zip((ours, theirs), optimizers, strict=True):
        for number, weight in enumerate(weights):
            weight.grad = randn(2, 3, seed=number)
        optimizer.step()
    for weight, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(weight, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [0.0, 1e-20, 1e-8, 1e12])
def test_gradients_of_any_size_are_torchs(size):
    (ours, theirs), optimizers = pair([(65, 48)])
    for number in range(2):
        for weights, optimizer in zip((ours, theirs), optimizers, strict=True):
            weights[0].grad = size * randn(65, 48, seed=number)
            optimizer.step()
        torch.testing.assert_close(ours[0], theirs[0], rtol=1e-4, atol=1e-5)
        assert bool(ours[0].isfinite().all())


@pytest.mark.parametrize("dtype", [NARROW, WIDE])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_a_number_is_seen_in_its_weight(wrong, dtype):
    (ours, _), optimizers = pair([(40, 48)], dtype)
    ours[0].grad = torch.ones_like(ours[0])
    ours[0].grad[1, 7] = wrong
    optimizers[0].step()
    assert bool(ours[0][1, 7].isnan())


def test_draws_are_of_seed_parameter_and_step():
    def moved(seed, order=(0, 1)):
        weights = [torch.nn.Parameter(torch.ones(64, 128, dtype=NARROW)) for _ in range(2)]
        optimizer = made(weights, True, seed=seed, decay=0.0)
        after = []
        for _ in range(2):
            for weight in weights:
                weight.data.fill_(1.0)
                weight.grad = torch.ones_like(weight)
            optimizer.step_parameters([weights[number] for number in order])
            after += [weight.detach().clone() for weight in weights]
        return after

    first = moved(1)
    assert all(map(torch.equal, first, moved(1, order=(1, 0))))
    others = [*first[1:], moved(2)[0]]
    assert not any(torch.equal(first[0], other) for other in others)
    quarters = first[0].view(4, 16, 2, 64).transpose(1, 2).reshape(8, -1)
    assert not any(torch.equal(quarters[0], quarter) for quarter in quarters[1:])


def test_what_is_rounded_comes_back_on_average():
    weight = torch.nn.Parameter(torch.ones(256, 512, dtype=NARROW))
    optimizer = made([weight], True, decay=0.0)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    after, step = weight.detach().double(), 2.0**-8
    low = 1 - math.ceil(RATE / step) * step
    assert set(after.unique().tolist()) == {low, low + step}
    error = abs(float(after.mean()) - (1 - RATE))
    assert error <= 5 * math.sqrt((1 - RATE - low) * (low + step - 1 + RATE) / after.numel()) + 1e-6


@pytest.mark.parametrize("order", [(True, False), (False, True)])
def test_a_run_is_stopped_with_kernels_and_goes_on_without_and_the_reverse(order):
    target = randn(65, 80, seed=3)
    weight = torch.nn.Parameter(torch.zeros(65, 80))
    through = torch.nn.Parameter(torch.zeros(65, 80))
    optimizer, reference = made([weight], order[0]), made([through], False)
    for number in range(20):
        if number == 10:
            kept, optimizer = optimizer.state_dict(), made([weight], order[1])
            optimizer.load_state_dict(kept)
        for each, its in ((weight, optimizer), (through, reference)):
            each.grad = each.detach() - target
            its.step()
    torch.testing.assert_close(weight, through, rtol=1e-4, atol=1e-5)


def test_the_fused_backward_pass_is_the_same_with_them():
    (ours, theirs), optimizers = pair([(40, 5, 3, 3), (33,), (64, 80)])
    hooks = [FusedBackward(optimizer, 1.0) for optimizer in optimizers]
    for number in range(3):
        for weights, hook in zip((ours, theirs), hooks, strict=True):
            sum((weight * randn(*weight.shape, seed=number)).sum() for weight in weights).backward()
            hook.finish()
    for weight, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(weight, other, rtol=1e-4, atol=1e-5)
