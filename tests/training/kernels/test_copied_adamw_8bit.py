"""8-bit AdamW by the gradients of bf16 copies: what AdamW's kernel does with the same gradients, widened."""

import pytest
import torch

pytest.importorskip("triton", minversion="3", reason="Triton 3, whose interpreter computes here, is missing")

from dreambooth_ext.training.optimizers.adamw import AdamW
from dreambooth_ext.training.optimizers.copied_adamw_8bit import CopiedAdamW8bit

SHAPES = [(4096,), (3,), (4096 + 5,), (16, 32, 3, 3), (320,)]  # whole blocks and not, and what keeps 32 bits
ARGUMENTS = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1, "seed": 3}


def weights():
    draws = torch.Generator().manual_seed(0)
    found = [torch.nn.Parameter(torch.randn(shape, generator=draws)) for shape in SHAPES]
    found[3].data = found[3].data.contiguous(memory_format=torch.channels_last)
    return found


def groups(some):
    return [{"params": some[:2], "lr": 1e-2}, {"params": some[2:], "lr": 3e-2}]


def copied():
    some = weights()
    copies = {weight: torch.nn.Parameter(weight.detach().bfloat16()) for weight in some}
    return some, copies, CopiedAdamW8bit(groups(some), copies, **ARGUMENTS)


def gradients(step):
    draws = torch.Generator().manual_seed(100 + step)
    return [torch.randn(shape, generator=draws).bfloat16() for shape in SHAPES]


def learn(optimizer, copies, step, max_norm, skipped=()):
    for number, (copy, gradient) in enumerate(zip(copies.values(), gradients(step), strict=True)):
        copy.grad = None if number in skipped else gradient
    norm = optimizer.clip(max_norm) if max_norm else None
    optimizer.step()
    optimizer.zero_grad()
    assert all(each.grad is None for pair in copies.items() for each in pair)
    return norm


def assert_same_state(ours, theirs, some, others):
    for weight, other in zip(some, others, strict=True):
        state, expected = ours.state.get(weight, {}), theirs.state.get(other, {})
        assert state.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(torch.as_tensor(state[name]), torch.as_tensor(value)), name


@pytest.mark.parametrize("max_norm", [0.0, 1.0])
def test_it_is_the_kernels_adamw_of_wide_gradients(max_norm):
    mine, copies, optimizer = copied()
    theirs = weights()
    wide = AdamW(groups(theirs), **ARGUMENTS, bits=8, kernels=True)
    for step, skipped in enumerate([(), (2, 4), ()]):
        norm = learn(optimizer, copies, step, max_norm, skipped)
        some = [weight for number, weight in enumerate(theirs) if number not in skipped]
        for weight, gradient in zip(theirs, gradients(step), strict=True):
            weight.grad = torch.empty_like(weight).copy_(gradient)
        expected = torch.cat([weight.grad.flatten() for weight in some]).norm()
        wide.step_parameters(some, (max_norm / (expected + 1e-6)).clamp(max=1.0) if max_norm else None)
        assert norm is None or torch.allclose(norm, expected, rtol=1e-5)
        for weight, other in zip(mine, theirs, strict=True):
            assert torch.allclose(weight, other, rtol=1e-5, atol=1e-6)
        assert all(torch.equal(copy, weight.bfloat16()) for weight, copy in copies.items())
        if not max_norm:  # else the norms' last digits decide how some are rounded
            assert_same_state(optimizer, wide, mine, theirs)


def test_a_run_goes_on_with_torchs_operations_and_the_reverse():
    mine, copies, optimizer = copied()
    theirs = weights()
    learn(optimizer, copies, 0, 1.0)
    plain = AdamW(groups(theirs), **ARGUMENTS, bits=8)
    plain.load_state_dict(optimizer.state_dict())
    assert_same_state(plain, optimizer, theirs, mine)
    again, other_copies, gone_on = copied()
    gone_on.load_state_dict(plain.state_dict())
    for weight, other in zip(again, mine, strict=True):
        weight.data.copy_(other.data)
    for each, of_each in ((optimizer, copies), (gone_on, other_copies)):
        learn(each, of_each, 1, 1.0)
    assert all(torch.equal(weight, other) for weight, other in zip(mine, again, strict=True))
    assert_same_state(gone_on, optimizer, again, mine)


def test_a_gradient_that_is_not_a_number_is_seen_in_weight_copy_and_norm():
    mine, copies, optimizer = copied()
    for copy, gradient in zip(copies.values(), gradients(0), strict=True):
        copy.grad = gradient
    copies[mine[0]].grad[7] = float("nan")
    assert bool(optimizer.clip(0.0).isnan())
    optimizer._scale = None
    optimizer.step()
    assert bool(mine[0][7].isnan()) and int(mine[0].isnan().sum()) == 1
    assert bool(copies[mine[0]][7].isnan()) and int(copies[mine[0]].isnan().sum()) == 1
