"""AdamW's kernel against torch's operations, which are held to the paper in test_optimizers."""

import itertools
import math

import pytest
import torch

from dreambooth_ext.training.optimizers.adamw import AdamW
from dreambooth_ext.training.optimizers.chunked import flat
from dreambooth_ext.training.optimizers.fused import FusedBackward
from dreambooth_ext.training.optimizers.quantized import BLOCK, padded, read_roots, read_shares

pytest.importorskip("triton", minversion="3", reason="Triton 3, whose interpreter computes here, is missing")

from dreambooth_ext.training.kernels.adamw import Quantized, step
from dreambooth_ext.training.kernels.tables import MANY

BETAS, EPS, DECAY, RATE = (0.9, 0.99), 1e-8, 0.02, 0.01
NARROW, WIDE = torch.bfloat16, torch.float32


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def made(weights, kernels, betas=BETAS, decay=DECAY, eps=EPS, seed=0):
    return AdamW([{"params": weights, "lr": RATE}], RATE, betas, eps, decay, bits=8, seed=seed, kernels=kernels)


def pair(shapes, dtype=WIDE, **more):
    """The same weights twice, and an optimizer for each: with kernels and without."""
    weights = [[torch.nn.Parameter(randn(*shape, seed=number).to(dtype)) for number, shape in enumerate(shapes)] for _ in range(2)]
    return weights, [made(some, kernels, **more) for some, kernels in zip(weights, (True, False), strict=True)]


def copy_state(source, target):
    """State and weights, so that both take the next step from the same point."""
    target.load_state_dict(source.state_dict())
    for mine, theirs in zip(target._parameters(), source._parameters(), strict=True):
        mine.data.copy_(theirs.data)


def assert_alike(state, other, count):
    """Of both, what was read and written differs by no more than a code (6 % of a root, 12 % of a share)."""
    roots = [read_roots(each["root_codes"], each["root_scales"], count) for each in (state, other)]
    largest = state["root_scales"].repeat_interleave(BLOCK)[:count]
    torch.testing.assert_close(state["root_scales"], other["root_scales"], rtol=1e-5, atol=0)
    assert bool(((roots[0] - roots[1]).abs() <= 0.0626 * roots[1] + 3.2e-5 * largest).all())
    shares = [read_shares(each["share_codes"]) for each in (state, other)]
    assert bool(((shares[0] - shares[1]).abs() <= 0.126 * shares[1].abs() + 2.0**-8).all())


@pytest.mark.parametrize("dtype", [WIDE, NARROW])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_each_step_is_torchs(dtype, scale):
    """From the same state; weights to rounding, state to one code. Several weights at once, whole blocks and not."""
    shapes = ((4096,), (4096 + 3,), (5, 4, 16, 16))
    (ours, theirs), optimizers = pair(shapes, dtype)
    for number in range(3):
        copy_state(optimizers[0], optimizers[1])
        for weight, other in zip(ours, theirs, strict=True):
            weight.grad, other.grad = (randn(*weight.shape, seed=10 + number).to(dtype) for _ in range(2))
        for weights, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.step_parameters(weights, None if scale is None else torch.tensor(scale))
        for weight, other in zip(ours, theirs, strict=True):
            # A gradient of torch's path is scaled in its own precision, the kernel's in fp32.
            near = 1e-5 if scale is None or dtype == WIDE else 2e-4
            assert bool(((weight - other).abs() <= near + (2.0**-7 * other.abs() if dtype == NARROW else 0)).all())
            state, reference = optimizers[0].state[weight], optimizers[1].state[other]
            assert state["step"] == reference["step"] == number + 1
            if scale is None or dtype == WIDE:
                assert_alike(state, reference, weight.numel())
            assert not state["root_codes"][weight.numel():].any()


@pytest.mark.parametrize("gradient_dtype", [WIDE, NARROW])
@pytest.mark.parametrize("count", [1, 255, 256, 257, 2100])
def test_of_any_size_and_of_either_precision(count, gradient_dtype):
    """Given to the kernel itself, since AdamW keeps few numbers in 32 bits; nothing beyond the last number is touched."""
    weights, gradient = torch.zeros(count + 300), randn(count + 300).to(gradient_dtype)
    shares, roots = (torch.zeros(padded(count) + 300, dtype=torch.uint8) for _ in range(2))
    scales, blocks = torch.zeros(padded(count) // BLOCK + 5), padded(count) // BLOCK
    one = Quantized(weights[:count], gradient[:count], shares[:count], roots[: padded(count)], scales[:blocks], seed=5)
    step([one], 1, RATE, BETAS, EPS, 0.0, None)
    torch.testing.assert_close(weights[:count], -RATE * gradient[:count].float().sign(), rtol=1e-4, atol=1e-6)
    assert not weights[count:].any() and not shares[count:].any() and not roots[count:].any()
    assert not scales[blocks:].any()


def test_more_weights_than_one_launch_takes():
    some = [torch.nn.Parameter(torch.zeros(4096)) for _ in range(MANY + 2)]
    optimizer = made(some, True, decay=0.0)
    for number, weight in enumerate(some):
        weight.grad = torch.full_like(weight, -1.0 - number)
    optimizer.step()
    assert all(torch.allclose(weight, torch.tensor(RATE)) for weight in some)


@pytest.mark.parametrize("betas", [(0.5, 0.999), (0.99, 0.99), (0.999, 0.9), (0.9, 0.0), (0.0, 0.999)])
def test_extreme_betas_are_torchs(betas):
    """With gradients that agree, then with ever larger ones."""
    (ours, theirs), optimizers = pair([(4096,)], betas=betas)
    for number in range(12):
        copy_state(optimizers[0], optimizers[1])
        ours[0].grad = torch.full_like(ours[0], 1e-3 if number < 6 else 1e-3 * 4.0 ** (number - 6))
        theirs[0].grad = ours[0].grad.clone()
        for optimizer in optimizers:
            optimizer.step()
        torch.testing.assert_close(ours[0], theirs[0], rtol=1e-4, atol=1e-5)
        assert_alike(optimizers[0].state[ours[0]], optimizers[1].state[theirs[0]], 4096)


@pytest.mark.parametrize("size", [0.0, 1e-20, 1e-8, 1e15, 1e30])
def test_gradients_of_any_size_are_torchs(size):
    (ours, theirs), optimizers = pair([(4096,)])
    for number in range(3):
        copy_state(optimizers[0], optimizers[1])
        ours[0].grad = size * randn(4096, seed=number)
        theirs[0].grad = ours[0].grad.clone()
        for optimizer in optimizers:
            optimizer.step()
        torch.testing.assert_close(ours[0], theirs[0], rtol=1e-4, atol=1e-5)
        assert bool(ours[0].isfinite().all())


@pytest.mark.parametrize("dtype", [NARROW, WIDE])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_a_number_is_seen_in_its_weight(wrong, dtype):
    (ours, _), optimizers = pair([(4096,)], dtype)
    ours[0].grad = torch.ones_like(ours[0])
    ours[0].grad[7] = wrong
    optimizers[0].step()
    assert bool(ours[0][7].isnan()) and int(ours[0].isnan().sum()) == 1
    optimizers[0].step()
    assert bool(ours[0][7].isnan())


def test_draws_are_of_seed_parameter_and_step():
    def codes(seed, steps, order=(0, 1)):
        weights = [torch.nn.Parameter(torch.ones(4096, dtype=NARROW)) for _ in range(2)]
        optimizer = made(weights, True, seed=seed)
        for _ in range(steps):
            for weight in weights:
                weight.grad = torch.full_like(weight, 0.123)
                weight.grad[::256] = 1.0
            optimizer.step_parameters([weights[number] for number in order])
        return [optimizer.state[weight]["root_codes"] for weight in weights] + [weight.detach().clone() for weight in weights]

    first = codes(1, 1)
    assert all(map(torch.equal, first, codes(1, 1, order=(1, 0))))
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[0], codes(2, 1)[0])
    assert not torch.equal(first[0], codes(1, 2)[0])
    half = first[0][:1024].view(4, 256)[:, 1:]
    assert not torch.equal(half[0], half[1]) and not torch.equal(first[0][:2048], first[0][2048:])


def test_what_is_rounded_comes_back_on_average():
    """First steps of a weight whose root, share and value lie between two codes; five standard deviations."""
    count = 2**17
    weight = torch.nn.Parameter(torch.full((count,), 1.0, dtype=NARROW))
    optimizer = made([weight], True, decay=0.0)
    weight.grad = torch.full_like(weight, 0.123)
    weight.grad[::BLOCK] = 1.0
    true = float(weight.grad[1])
    optimizer.step()
    chosen = torch.ones(count, dtype=torch.bool)
    chosen[::BLOCK] = False
    state = optimizer.state[weight]
    root = read_roots(state["root_codes"], state["root_scales"], count)
    for back, value in ((weight.detach(), 1.0 - RATE), (root, true * math.sqrt(1 - BETAS[1])),
                        (read_shares(state["share_codes"]) / 32, 1.0)):
        some = back[chosen].double()
        low, high = float(some.min()), float(some.max())
        assert low - 1e-6 <= value <= high + 1e-6 and len(some.unique()) <= 2
        assert abs(float(some.mean()) - value) <= 5 * math.sqrt(max((value - low) * (high - value), 0) / len(some)) + 1e-6


@pytest.mark.parametrize("order", [(True, False), (False, True)])
def test_a_run_is_stopped_with_kernels_and_goes_on_without_and_the_reverse(order):
    target = randn(64, 80, seed=3)
    weight = torch.nn.Parameter(torch.zeros(64, 80, dtype=NARROW))
    optimizer, distances = made([weight], order[0], decay=0.0), []
    for number in range(60):
        if number == 30:
            kept, optimizer = optimizer.state_dict(), made([weight], order[1], decay=0.0)
            optimizer.load_state_dict(kept)
        weight.grad = (weight.detach() - target).to(NARROW)
        optimizer.step()
        distances.append(float((weight.detach().float() - target).square().mean().sqrt()))
    assert optimizer.state[weight]["step"] == 60
    assert max(later - before for before, later in itertools.pairwise(distances)) < 1e-3  # no jump
    assert distances[-1] < 0.75 * distances[0]


def test_other_layouts_and_small_weights_go_with_it():
    """A channels-last weight whose gradient is not, and a bias that keeps 32 bits, under the fused backward pass."""
    shapes = ((16, 32, 3, 3), (320,))
    (ours, theirs), optimizers = pair(shapes)
    for weights in (ours, theirs):
        weights[0].data = weights[0].data.to(memory_format=torch.channels_last)
    hooks = [FusedBackward(optimizer, 1.0) for optimizer in optimizers]
    for number in range(2):
        copy_state(optimizers[0], optimizers[1])
        for weights, hook in zip((ours, theirs), hooks, strict=True):
            sum((weight * randn(*weight.shape, seed=number)).sum() for weight in weights).backward()
            hook.finish()
        for weight, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(flat(weight), flat(other), rtol=1e-4, atol=1e-5)


def test_gradients_are_left_as_they_are():
    (ours, _), optimizers = pair([(4096,)])
    ours[0].grad = torch.ones(4096)
    optimizers[0].step_parameters(ours, torch.tensor(0.5))
    assert bool((ours[0].grad == 1).all())
