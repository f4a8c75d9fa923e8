"""Averages of weights: what they are worth, beside the weights and far from them."""

import itertools

import pytest
import torch

from dreambooth_ext.training import ema
from dreambooth_ext.training.ema import Ema

DECAY = 0.99


def run(averages, weight, steps, seed=0, before=None):
    draws = torch.Generator().manual_seed(seed)
    for step in range(steps):
        with torch.no_grad():
            weight.add_(torch.randn(weight.shape, generator=draws), alpha=0.1)
        averages.update(last=step + 1 == steps)
        if before is not None:
            before.append(averages.shadows[0].clone())


def expected(steps):
    """The definition, in double precision."""
    draws, weight, shadow = torch.Generator().manual_seed(0), torch.zeros(50), torch.zeros(50, dtype=torch.float64)
    for step in range(steps):
        weight.add_(torch.randn(50, generator=draws), alpha=0.1)
        decay = min(DECAY, (1 + step) / (10 + step))
        shadow = decay * shadow + (1 - decay) * weight.double()
    return shadow, weight


def far(averages):
    """As if the weights were on a GPU."""
    averages._every = ema.ELSEWHERE_EVERY
    return averages


def test_it_is_the_average_of_all_steps():
    weight = torch.nn.Parameter(torch.zeros(50))
    averages = Ema([weight], DECAY)
    run(averages, weight, 300)
    assert torch.allclose(averages.shadows[0].double(), expected(300)[0], atol=1e-5)


@pytest.mark.parametrize("steps", [5, 100, 101, 307])
def test_from_afar_it_comes_close_with_a_tenth_of_the_copies(steps):
    weight, looks = torch.nn.Parameter(torch.zeros(50)), []
    averages = far(Ema([weight], DECAY))
    run(averages, weight, steps, before=looks)
    shadow, last = expected(steps)
    apart = (averages.shadows[0].double() - shadow).square().mean().sqrt()
    assert apart < 0.2 * (last.double() - shadow).square().mean().sqrt() + 1e-5
    moved = sum(not torch.equal(one, two) for one, two in itertools.pairwise(looks))
    assert moved == min(steps, ema.WARM_UP) - 1 + max(0, -(-(steps - ema.WARM_UP) // ema.ELSEWHERE_EVERY))


def test_what_waits_is_kept_in_a_snapshot():
    ends = []
    for cut in (False, True):
        weight = torch.nn.Parameter(torch.zeros(50))
        averages = far(Ema([weight], DECAY))
        draws = torch.Generator().manual_seed(3)
        for step in range(240):
            with torch.no_grad():
                weight.add_(torch.randn(50, generator=draws), alpha=0.1)
            averages.update(last=step == 239)
            if cut and step == 154:
                kept = averages.state_dict()
                averages = far(Ema([torch.nn.Parameter(torch.ones(50))], DECAY))
                averages._parameters = [weight]
                averages.load_state_dict(kept)
        ends.append(averages.shadows[0])
    assert torch.equal(*ends)


def test_averages_in_ram_of_weights_on_another_device_are_from_afar():
    there = torch.nn.Parameter(torch.empty(4, device="meta"))
    assert Ema([torch.nn.Parameter(torch.ones(4))], DECAY, "cpu")._every == 1
    assert Ema([there], DECAY)._every == 1 and Ema([torch.nn.Parameter(torch.ones(4))], DECAY, "meta")._every == ema.ELSEWHERE_EVERY
