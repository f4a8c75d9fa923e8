"""Each optimizer against its reference: torch's, transformers', or the paper's lines written out."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from dreambooth_ext.config import TrainConfig
from dreambooth_ext.training.memory import plan_for
from dreambooth_ext.training.optimizer import build
from dreambooth_ext.training.optimizers import offloaded, quantized
from dreambooth_ext.training.optimizers.adafactor import Adafactor
from dreambooth_ext.training.optimizers.adamw import AdamW, is_fused_on
from dreambooth_ext.training.optimizers.chunked import IN_CACHE, SMALL_ON_A_CPU, flat, flat_gradient
from dreambooth_ext.training.optimizers.fused import FusedBackward, held_bytes
from dreambooth_ext.training.optimizers.lion import Lion
from dreambooth_ext.training.optimizers.offloaded import OffloadedAdamW
from dreambooth_ext.training.optimizers.prodigy import D0, Prodigy
from dreambooth_ext.training.optimizers.quantized import BLOCK, padded, read_roots, read_shares, write_roots, write_shares
from dreambooth_ext.training.optimizers.rounding import round_stochastically

BETAS, EPS, DECAY = (0.9, 0.99), 1e-8, 0.02


class Problem:
    """A noisy quadratic: weights drawn to a target, with the same noise for whoever solves it."""

    def __init__(self, shape=(48, 130), dtype=torch.float32):
        draws = torch.Generator().manual_seed(1)
        self.target = torch.randn(shape, generator=draws)
        self.weight = torch.nn.Parameter(torch.randn(shape, generator=draws).to(dtype))
        self._noise = torch.Generator().manual_seed(2)

    def backward(self):
        noise = 0.3 * torch.randn(self.target.shape, generator=self._noise)
        ((self.weight.float() - self.target - noise) ** 2).sum().mul(0.5).backward()

    def solve(self, optimizer, steps):
        for _ in range(steps):
            self.backward()
            optimizer.step()
            optimizer.zero_grad()
        return self.weight.detach().float()

    def distance(self):
        return float((self.weight.detach().float() - self.target).square().mean().sqrt())


def groups(problem):
    return [{"params": [problem.weight], "name": "unet", "lr": 0.01}]


def adamw(problem, **more):
    return AdamW(groups(problem), 0.01, BETAS, EPS, DECAY, **more)


def test_adamw_is_torchs():
    ours, theirs = Problem(), Problem()
    reference = torch.optim.AdamW([theirs.weight], lr=0.01, betas=BETAS, eps=EPS, weight_decay=DECAY, foreach=False)
    torch.testing.assert_close(ours.solve(adamw(ours), 50), theirs.solve(reference, 50), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "wished", "second"), [("lion", None, 0.99), ("adamw", None, 0.999), ("prodigy", None, 0.999),
                                                        ("lion", 0.9, 0.9), ("adamw", 0.9, 0.9)])
def test_each_decays_as_its_paper_says_unless_wished_otherwise(name, wished, second):
    config = TrainConfig(optimizer=name, adam_beta2=wished, device="cpu", memory_profile="none")
    built = build([{"params": [torch.nn.Parameter(torch.zeros(4))], "name": "unet"}], config, plan_for(config))
    assert built.param_groups[0]["betas"] == (0.9, second)


@pytest.mark.parametrize("fused", [True, False])
def test_offloaded_adamw_is_torchs_on_fp32_weights(fused, monkeypatch):
    """Over several pieces; in one pass over memory where this torch can, and step by step."""
    monkeypatch.setattr(offloaded, "is_fused_on", lambda device: fused and is_fused_on(device))
    ours, theirs = (Problem((2, IN_CACHE)) for _ in range(2))
    reference = torch.optim.AdamW([theirs.weight], lr=0.01, betas=BETAS, eps=EPS, weight_decay=DECAY, foreach=False)
    optimizer = OffloadedAdamW(groups(ours), 0.01, BETAS, EPS, DECAY)
    torch.testing.assert_close(ours.solve(optimizer, 20), theirs.solve(reference, 20), rtol=1e-5, atol=1e-6)


def test_offloaded_adamw_keeps_what_bf16_would_lose():
    problem = Problem(dtype=torch.float32)
    optimizer = OffloadedAdamW([{"params": [problem.weight], "name": "unet", "lr": 1e-5}], 1e-5, BETAS, EPS, 0.0)
    before = problem.weight.detach().clone()
    problem.weight.data = problem.weight.data.to(torch.bfloat16)
    for _ in range(30):
        problem.weight.grad = torch.ones_like(problem.weight)
        optimizer.step()
    master = optimizer.state[problem.weight]["master"].view_as(before)
    torch.testing.assert_close(master, before - 30 * 1e-5, atol=2e-6, rtol=0)


def test_adamw_with_8_bit_state_ends_where_32_bits_end():
    few, many = Problem(), Problem()
    gap = few.solve(adamw(few, bits=8), 2000) - many.solve(adamw(many), 2000)
    start = Problem().distance()
    assert gap.square().mean().sqrt() < 0.02 * start
    assert few.distance() < 1.1 * many.distance() + 0.01


def test_8_bit_state_takes_two_bytes_a_number():
    problem = Problem((1024, 1024))
    optimizer = adamw(problem, bits=8)
    problem.solve(optimizer, 1)
    stored = sum(value.numel() * value.element_size() for value in optimizer.state[problem.weight].values()
                 if isinstance(value, torch.Tensor))
    assert stored <= 2.05 * 1024**2


def test_adafactor_is_transformers_on_a_matrix():
    reference = pytest.importorskip("transformers").Adafactor
    ours, theirs = Problem(), Problem()
    optimizer = reference([theirs.weight], lr=0.01, scale_parameter=False, relative_step=False, weight_decay=0.0)
    mine = Adafactor(groups(ours), 0.01, 0.0)
    torch.testing.assert_close(ours.solve(mine, 30), theirs.solve(optimizer, 30), rtol=1e-4, atol=1e-5)


def test_adafactor_keeps_next_to_nothing_for_a_convolution():
    draws = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(64, 64, 3, 3, generator=draws))
    optimizer = Adafactor([{"params": [weight], "name": "unet", "lr": 0.01}], 0.01, 0.0)
    weight.grad = torch.randn(64, 64, 3, 3, generator=draws)
    optimizer.step()
    stored = [value for value in optimizer.state[weight].values() if isinstance(value, torch.Tensor)]
    assert sum(value.numel() for value in stored) == 64 + 64 * 9


def test_lion_is_the_papers():
    ours, theirs = Problem(), Problem()
    moved = ours.solve(Lion(groups(ours), 0.01, BETAS, DECAY), 25)
    momentum, weight = torch.zeros_like(theirs.target), theirs.weight
    for _ in range(25):
        theirs.backward()
        gradient, weight.grad = weight.grad, None
        step = (BETAS[0] * momentum + (1 - BETAS[0]) * gradient).sign()
        weight.data = weight.data - 0.01 * (step + DECAY * weight.data)
        momentum = BETAS[1] * momentum + (1 - BETAS[1]) * gradient
    torch.testing.assert_close(moved, weight.detach(), rtol=1e-5, atol=1e-6)


def test_prodigy_is_the_papers():
    ours, theirs = Problem(), Problem()
    optimizer = Prodigy([{"params": [ours.weight], "name": "unet", "lr": 1.0}], 1.0, BETAS, EPS, 0.0)
    moved = ours.solve(optimizer, 40)
    weight = theirs.weight.detach().double().clone()
    start, d, r = weight.clone(), D0, 0.0
    m, v, s = (torch.zeros_like(weight) for _ in range(3))
    root = math.sqrt(BETAS[1])
    for _ in range(40):
        theirs.weight.data = weight.float()
        theirs.backward()
        g, theirs.weight.grad = theirs.weight.grad.double(), None
        m = BETAS[0] * m + (1 - BETAS[0]) * d * g
        v = BETAS[1] * v + (1 - BETAS[1]) * d**2 * g**2
        # Sums weighted by d / d0 as in the authors' implementation; the ratio does not depend on it.
        r = root * r + d / D0 * d * float((g * (start - weight)).sum())
        s = root * s + d / D0 * d * g
        weight = (weight - d * m / (v.sqrt() + d * EPS)).float().double()  # stored as the weights are
        d = max(d, r / float(s.abs().sum()))
    assert optimizer.param_groups[0]["distance"].item() > 100 * D0
    torch.testing.assert_close(moved.double(), weight, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("make", [
    lambda problem: adamw(problem), lambda problem: adamw(problem, bits=8),
    lambda problem: Lion(groups(problem), 0.01, BETAS, DECAY), lambda problem: Adafactor(groups(problem), 0.01, DECAY),
], ids=["adamw", "adamw_8bit", "lion", "adafactor"])
def test_bf16_weights_reach_the_target_like_fp32_ones(make):
    narrow, wide = Problem(dtype=torch.bfloat16), Problem()
    narrow.solve(make(narrow), 600)
    wide.solve(make(wide), 600)
    assert narrow.distance() < wide.distance() + 0.05


ELEMENTWISE = pytest.mark.parametrize("make", [
    lambda groups: AdamW(groups, 0.01, BETAS, EPS, DECAY), lambda groups: AdamW(groups, 0.01, BETAS, EPS, DECAY, bits=8),
    lambda groups: Lion(groups, 0.01, BETAS, DECAY)], ids=["adamw", "adamw_8bit", "lion"])


@ELEMENTWISE
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_small_parameters_are_updated_as_if_they_were_one(make, dtype):
    """To the bit, draws included: of whole blocks, in different layouts, their gradients scaled."""
    shapes, draws = ((16, 256), (5, 4, 16, 16), (7424,)), torch.Generator().manual_seed(0)
    parts = [torch.nn.Parameter(torch.randn(shape, generator=draws).to(dtype)) for shape in shapes]
    parts[1].data = parts[1].data.to(memory_format=torch.channels_last)
    whole = torch.nn.Parameter(torch.cat([flat(part) for part in parts]).clone())
    optimizers = [make([{"params": parameters, "lr": 0.01}]) for parameters in (parts, [whole])]
    assert whole.numel() > SMALL_ON_A_CPU >= max(part.numel() for part in parts)
    for _ in range(4):
        for part in parts:  # a gradient in the layout that is not its weight's
            part.grad = torch.randn(part.shape, generator=draws).to(dtype)
        whole.grad = torch.cat([flat_gradient(part) for part in parts]).clone()
        for optimizer, parameters in zip(optimizers, (parts, [whole]), strict=True):
            optimizer.step_parameters(parameters, torch.tensor(0.3))
        assert torch.equal(torch.cat([flat(part) for part in parts]), flat(whole))
    for name, value in optimizers[1].state[whole].items():
        of_parts = [optimizers[0].state[part][name] for part in parts]
        assert of_parts == [4, 4, 4] if name == "step" else torch.equal(torch.cat(of_parts), value)


def test_joined_columns_of_adafactor_are_clipped_each_by_its_own_size():
    draws = torch.Generator().manual_seed(0)
    joined, alone = ([torch.nn.Parameter(torch.zeros(size)) for size in (5, 300, 1)] for _ in range(2))
    optimizers = [Adafactor([{"params": weights, "lr": 0.01}], 0.01, DECAY) for weights in (joined, alone)]
    for step in range(5):
        for scale, first, second in zip((1e-4, 1.0, 30.0), joined, alone, strict=True):
            first.grad = second.grad = scale * (1 + 20 * (step == 3)) * torch.randn(first.shape, generator=draws)
        optimizers[0].step_parameters(joined)
        for weight in alone:
            optimizers[1].step_parameters([weight])
        for first, second in zip(joined, alone, strict=True):
            torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-9)


class Launched(TorchDispatchMode):
    """How many operations were launched; looking at a tensor in another way is none."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        views = any(each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns)
        self.count += not views
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("make", [
    lambda groups: AdamW(groups, 0.01, BETAS, EPS, DECAY, bits=8), lambda groups: Lion(groups, 0.01, BETAS, DECAY),
    lambda groups: Adafactor(groups, 0.01, DECAY)], ids=["adamw_8bit", "lion", "adafactor"])
def test_two_hundred_biases_take_no_more_launches_than_twenty(make):
    launches = []
    for count in (20, 200):
        weights = [torch.nn.Parameter(torch.zeros(320, dtype=torch.bfloat16)) for _ in range(count)]
        fused = FusedBackward(make([{"params": weights, "lr": 0.01}]), 1.0)
        for _ in range(2):  # the first time makes its state
            with Launched() as launched:
                fused._held.extend(weights)
                for weight in weights:
                    weight.grad = torch.ones_like(weight)
                fused._update()
        launches.append(launched.count - count)  # less what made the gradients
    assert launches[0] == launches[1] < 60


class Largest(TorchDispatchMode):
    """The most bytes that one operation's result took."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage().data_ptr() for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)}
        for leaf in tree_flatten(result)[0]:
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage().data_ptr() not in given:
                self.bytes = max(self.bytes, leaf.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("make", [
    lambda groups: AdamW(groups, 0.01, BETAS, EPS, DECAY), lambda groups: AdamW(groups, 0.01, BETAS, EPS, DECAY, bits=8),
    lambda groups: Lion(groups, 0.01, BETAS, DECAY), lambda groups: Adafactor(groups, 0.01, DECAY),
    lambda groups: Prodigy(groups, 1.0, BETAS, EPS, DECAY), lambda groups: OffloadedAdamW(groups, 0.01, BETAS, EPS, DECAY),
], ids=["adamw", "adamw_8bit", "lion", "adafactor", "prodigy", "offloaded_adamw"])
def test_no_temporary_of_a_cpu_leaves_its_cache(make):
    """A weight of 80 MiB in fp32. The heap keeps freed pieces of many sizes: larger ones made a process grow by 0.3 GiB."""
    weight = torch.nn.Parameter(torch.ones(2560, 8192, dtype=torch.float32))
    optimizer = make([{"params": [weight], "name": "unet", "lr": 0.01}])
    weight.data = weight.data.bfloat16()
    weight.grad = torch.full_like(weight, 1e-3)
    optimizer.step()  # makes its state
    with Largest() as largest:
        optimizer.step()
    assert 0 < largest.bytes <= 8 * IN_CACHE


def test_stochastic_rounding_has_no_bias():
    value = torch.full((1_000_000,), 1.0 + 1 / 1000)
    rounded = round_stochastically(value, torch.Generator().manual_seed(0)).float()
    step = 2.0**-7
    assert set(rounded.unique().tolist()) == {1.0, 1.0 + step}
    error = abs(float(rounded.double().mean()) - 1.001)
    assert error < 5 * step * math.sqrt(0.128 * 0.872 / 1e6)  # five standard deviations


NORMAL = torch.randn(1000, generator=torch.Generator().manual_seed(0))


def roots_and_back(values, seed=0):
    codes, scales = torch.zeros(padded(len(values)), dtype=torch.uint8), torch.zeros(padded(len(values)) // BLOCK)
    write_roots(codes, scales, values.clone(), torch.Generator().manual_seed(seed))
    return read_roots(codes, scales, len(values)), scales


def shares_and_back(values, seed=0):
    codes = torch.zeros(len(values), dtype=torch.uint8)
    write_shares(codes, values.clone(), torch.Generator().manual_seed(seed))
    return read_shares(codes) / quantized.SHARE_FACTOR


@pytest.mark.parametrize("values", [NORMAL, NORMAL * 1e-6, NORMAL * 1e6, torch.zeros(300), torch.logspace(-8, 2, 700)])
def test_a_root_is_near_unless_it_is_tiny_in_its_block(values):
    values = values.abs()
    back, scales = roots_and_back(values)
    block = scales.repeat_interleave(BLOCK)[: len(values)]
    assert bool(((back - values).abs() <= 0.0626 * values + 1.6e-5 * block).all())
    assert bool((back[block > 0] > 0).all()) and bool((back[block == 0] == 0).all())  # Adam divides by them
    assert torch.equal(scales, torch.nn.functional.pad(values, (0, padded(len(values)) - len(values))).view(-1, BLOCK).amax(1))


def test_a_share_is_near_whatever_its_sign_up_to_the_greatest():
    values = torch.cat([NORMAL, NORMAL * 0.01, torch.zeros(3), torch.tensor([quantized.GREATEST_SHARE, -quantized.GREATEST_SHARE])])
    back = shares_and_back(values)
    assert bool(((back - values).abs() <= 0.126 * values.abs() + 2.0**-9 / quantized.SHARE_FACTOR).all())
    assert bool((back * values >= 0).all()) and bool((back[values == 0] == 0).all())


@pytest.mark.parametrize("value", [0.7, 0.123, 0.0031])
def test_moments_are_rounded_without_a_bias(value):
    """Over 1e6 draws, within five standard deviations."""
    values = torch.full((1_000_000,), value)
    values[::BLOCK] = 1.0  # each block's largest
    for back in (roots_and_back(values)[0], shares_and_back(values), shares_and_back(-values).neg_()):
        rounded = back.double()[values != 1.0]
        low, high = float(rounded.min()), float(rounded.max())
        assert low <= value <= high and len(rounded.unique()) <= 2
        assert abs(float(rounded.mean()) - value) <= 5 * math.sqrt((value - low) * (high - value) / len(rounded)) + 1e-9


def test_a_blocks_largest_root_never_wraps_around():
    """A carry out of the topmost code would make the smallest of it."""
    values = torch.rand(1_000_000 // BLOCK * BLOCK, generator=torch.Generator().manual_seed(0)).view(-1, BLOCK)
    back, _ = roots_and_back(values.view(-1))
    top = values.amax(dim=1)
    assert torch.allclose(back.view(-1, BLOCK).amax(dim=1), top, rtol=1e-6)


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.9, 0.99), (0.5, 0.999), (0.95, 0.99), (0.99, 0.99), (0.999, 0.9), (0.9, 0.0),
                                   (0.0, 0.999)])
def test_shares_stay_within_what_they_can_hold(betas):
    """With gradients that agree, then with ever larger ones."""
    weight = torch.nn.Parameter(torch.zeros(64, 64))
    optimizer = AdamW([{"params": [weight], "lr": 0.01}], 0.01, betas, EPS, 0.0, bits=8)
    for step in range(60):
        weight.grad = torch.full_like(weight, 1e-3 if step < 30 else 1e-3 * 2.0 ** (step - 30))
        optimizer.step()
        assert bool(read_shares(optimizer.state[weight]["share_codes"]).isfinite().all())
    assert bool(weight.isfinite().all()) and bool((weight < 0).all())


def test_8_bit_state_holds_where_gradients_are_as_small_as_eps():
    few, many = (torch.nn.Parameter(torch.zeros(64, 64)) for _ in range(2))
    optimizers = [AdamW([{"params": [weight], "lr": 0.01}], 0.01, BETAS, EPS, 0.0, bits=bits)
                  for weight, bits in ((few, 8), (many, 32))]
    draws = torch.Generator().manual_seed(0)
    for _ in range(200):
        few.grad = many.grad = 1e-8 * (1 + torch.randn(64, 64, generator=draws))  # which no step may change
        for optimizer in optimizers:
            optimizer.step()
    assert few.mean().item() == pytest.approx(many.mean().item(), rel=0.02)


def test_8_bit_state_of_former_versions_goes_on():
    """Written as they wrote it: codes even in the logarithm, of both moments."""
    weight = torch.nn.Parameter(torch.zeros(5000))
    optimizer = AdamW([{"params": [weight], "lr": 0.01}], 0.01, BETAS, EPS, 0.0, bits=8)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    kept = optimizer.state_dict()
    blocks = padded(5000) // BLOCK
    kept["state"][0] = {"step": 7, "first_codes": torch.full((padded(5000),), -127 + 16, dtype=torch.int8),
                        "first_scales": torch.full((blocks,), 3e-4),
                        "root_codes": torch.full((padded(5000),), 255 - 16, dtype=torch.uint8),
                        "root_scales": torch.full((blocks,), 4e-3)}
    optimizer.load_state_dict(kept)
    before = weight.detach().clone()
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    first, root = -3e-4 / 4 * BETAS[0], 4e-3 / 2 * math.sqrt(BETAS[1])
    moved = -0.01 / (1 - BETAS[0] ** 8) * first / (root / math.sqrt(1 - BETAS[1] ** 8) + EPS)
    assert (weight - before).mean().item() == pytest.approx(moved, rel=0.01)
    assert "first_codes" not in optimizer.state[weight]


def test_the_fused_step_is_the_same_step_and_leaves_no_gradient():
    fused, plain = Problem(), Problem()
    hooks = FusedBackward(adamw(fused), 0.0)
    optimizer = adamw(plain)
    for _ in range(10):
        fused.backward()
        assert fused.weight.grad is None
        plain.backward()
        norm = plain.weight.grad.norm()
        optimizer.step()
        optimizer.zero_grad()
        torch.testing.assert_close(hooks.finish(), norm)
    assert torch.equal(fused.weight, plain.weight)
    hooks.remove()
    fused.backward()
    assert fused.weight.grad is not None


def fused_clipping(steps, limit):
    """What FusedBackward gives the optimizer, and the norm that it tells, for each step's list of gradients."""
    weights = [torch.nn.Parameter(torch.zeros_like(gradient)) for gradient in steps[0]]
    seen = {}

    class Seeing(AdamW):
        def step_parameters(self, parameters, scale=None):
            seen.update({parameter: parameter.grad * scale for parameter in parameters})

    fused = FusedBackward(Seeing([{"params": weights, "name": "unet", "lr": 0.1}], 0.1, BETAS, EPS, DECAY), limit)
    for gradients in steps:
        sum((weight * gradient).sum() for weight, gradient in zip(weights, gradients, strict=True)).backward()
        norm = fused.finish()
        assert all(weight.grad is None for weight in weights)
        yield [seen[weight] for weight in weights], norm


def norm_of(gradients):
    return torch.stack([gradient.norm() for gradient in gradients]).norm()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_gradients_that_are_spread_as_before_are_clipped_by_their_global_norm(scale):
    draws = torch.Generator().manual_seed(0)
    spread = [scale * torch.randn(shape, generator=draws) for shape in ((40, 30), (7,), (), (3, 4, 5, 6))]
    steps = [[factor * gradient for gradient in spread] for factor in (1.0, 0.01, 30.0, 2.0)]
    for number, (before, (seen, norm)) in enumerate(zip(steps, fused_clipping(steps, 2.0), strict=True)):
        assert torch.allclose(norm, norm_of(before))  # what is told is what there was
        if number:  # of the first step nothing can be foreseen
            for gradient, clipped in zip(before, seen, strict=True):
                assert torch.allclose(clipped, gradient * min(1.0, 2.0 / norm.item()), rtol=1e-4)


@given(st.lists(st.lists(st.floats(0, 1e6), min_size=5, max_size=5), min_size=1, max_size=6), st.floats(1e-3, 1e3))
def test_the_fused_step_never_exceeds_the_limit_however_gradients_are_spread(norms, limit):
    steps = [[torch.full((size,), norm / size**0.5) for size, norm in zip((1, 9, 100, 1, 50), row, strict=True)] for row in norms]
    for before, (seen, _) in zip(steps, fused_clipping(steps, limit), strict=True):
        assert norm_of(seen) <= limit * (1 + 1e-4)
        assert all(bool((clipped >= 0).all() and (clipped <= gradient).all())
                   for gradient, clipped in zip(before, seen, strict=True))


def test_what_is_held_back_is_told_and_no_more():
    """Of 100 gradients of 400 bytes 1200 may be held: three, and the fourth that is too many."""
    weights = [torch.nn.Parameter(torch.zeros(100)) for _ in range(100)]
    held = []

    class Seeing(AdamW):
        def step_parameters(self, parameters, scale=None):
            held.append(sum(each.grad is not None for each in weights))
            assert len(parameters) == held[-1]

    fused = FusedBackward(Seeing([{"params": weights, "name": "unet", "lr": 0.1}], 0.1, BETAS, EPS, DECAY), 1.0)
    sum(weight.sum() for weight in weights).backward()
    fused.finish()
    assert sum(held) == 100
    assert max(held) * 400 == held_bytes(40_000) + 400

