"""AdamW by the gradients of bf16 copies, against torch's on the same gradients widened."""

import pytest
import torch

pytest.importorskip("triton", minversion="3", reason="Triton 3, whose interpreter computes here, is missing")

from dreambooth_ext.training.kernels import copied_adamw
from dreambooth_ext.training.optimizers.copied_adamw import CopiedAdamW

SHAPES = [(3,), (1,), (40, 60), (8, 4, 3, 3), (1025,), (2100,)]  # of one block, of more, aligned and not
ARGUMENTS = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}


def weights():
    draws = torch.Generator().manual_seed(0)
    found = [torch.nn.Parameter(torch.randn(shape, generator=draws)) for shape in SHAPES]
    found[3].data = found[3].data.contiguous(memory_format=torch.channels_last)
    return found


def gradients(step):
    draws = torch.Generator().manual_seed(100 + step)
    return [torch.randn(shape, generator=draws).bfloat16() for shape in SHAPES]


def ours(some):
    copies = {weight: torch.nn.Parameter(weight.detach().bfloat16()) for weight in some}
    return CopiedAdamW([{"params": some, "name": "unet"}], copies, **ARGUMENTS), copies


def learn(optimizer, copies, step, max_norm, skipped=()):
    for number, (copy, gradient) in enumerate(zip(copies.values(), gradients(step), strict=True)):
        if number not in skipped:
            copy.grad = torch.empty_like(copy).copy_(gradient)
    norm = optimizer.clip(max_norm) if max_norm else None
    optimizer.step()
    optimizer.zero_grad()
    assert all(copy.grad is None for copy in copies.values())
    return norm


def learn_plainly(optimizer, some, step, max_norm, skipped=()):
    for number, (weight, gradient) in enumerate(zip(some, gradients(step), strict=True)):
        weight.grad = None if number in skipped else torch.empty_like(weight).copy_(gradient)
    norm = torch.nn.utils.clip_grad_norm_(some, max_norm) if max_norm else None
    optimizer.step()
    return norm


def assert_same(some, others):
    for one, other in zip(some, others, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("max_norm", [0.0, 1.0, 1e6])
def test_it_is_torchs_adamw(max_norm):
    mine, theirs = weights(), weights()
    optimizer, copies = ours(mine)
    plain = torch.optim.AdamW(theirs, **ARGUMENTS)
    for step in range(4):
        norms = learn(optimizer, copies, step, max_norm), learn_plainly(plain, theirs, step, max_norm)
        assert norms == (None, None) or torch.allclose(*norms, rtol=1e-5)
        assert_same(mine, theirs)
        assert all(torch.equal(copy, weight.bfloat16()) for weight, copy in copies.items())
    for weight, other in zip(mine, theirs, strict=True):
        for name, value in plain.state[other].items():
            assert torch.allclose(optimizer.state[weight][name], value, rtol=1e-5, atol=1e-7), name


def test_what_has_no_gradient_stays():
    mine, theirs = weights(), weights()
    optimizer, copies = ours(mine)
    plain = torch.optim.AdamW(theirs, **ARGUMENTS)
    for step, skipped in enumerate([(), (2, 3), (), (0,)]):
        learn(optimizer, copies, step, 1.0, skipped)
        learn_plainly(plain, theirs, step, 1.0, skipped)
    assert_same(mine, theirs)
    assert [int(optimizer.state[weight]["step"]) for weight in mine] == [3, 4, 3, 3, 4, 4]


def test_a_run_goes_on_with_torchs_and_back():
    mine, whole = weights(), weights()
    optimizer, copies = ours(mine)
    plain = torch.optim.AdamW(whole, **ARGUMENTS)
    for step in range(2):
        learn(optimizer, copies, step, 1.0)
        learn_plainly(plain, whole, step, 1.0)
    between = torch.optim.AdamW(mine, **ARGUMENTS)
    between.load_state_dict(optimizer.state_dict())
    learn_plainly(between, mine, 2, 1.0)
    learn_plainly(plain, whole, 2, 1.0)
    again, copies = ours(mine)
    again.load_state_dict(between.state_dict())
    learn(again, copies, 3, 1.0)
    learn_plainly(plain, whole, 3, 1.0)
    assert_same(mine, whole)


def test_what_is_not_a_number_is_seen():
    mine = weights()
    optimizer, copies = ours(mine)
    for copy, gradient in zip(copies.values(), gradients(0), strict=True):
        copy.grad = torch.empty_like(copy).copy_(gradient)
    copies[mine[2]].grad[0, 0] = float("nan")
    assert optimizer.clip(1.0).isnan()
    optimizer.step()
    assert all(weight.isnan().all() for weight in mine)  # as with torch's clipping


def test_the_norm_is_that_of_all_numbers():
    some = [torch.randn(count, generator=torch.Generator().manual_seed(count)).bfloat16() for count in (1, 16, 5000, 40_001)]
    of = copied_adamw.launches([(len(each), 0, 0, 0, 0, each.data_ptr()) for each in some], torch.device("cpu"))
    assert float(copied_adamw.norm([of])) == pytest.approx(float(torch.cat(some).double().norm()), rel=1e-5)


def test_addresses_are_sent_again_only_if_they_have_changed(monkeypatch):
    mine = weights()
    optimizer, copies = ours(mine)
    sent, own = [], copied_adamw.launches
    monkeypatch.setattr(copied_adamw, "launches", lambda *arguments: sent.append(1) or own(*arguments))
    kept = [torch.empty_like(copy) for copy in copies.values()]
    for step in range(3):
        for copy, place, gradient in zip(copies.values(), kept, gradients(step), strict=True):
            copy.grad = place.copy_(gradient)  # as a recorded pass leaves them
        optimizer.clip(1.0)
        optimizer.step()
    assert len(sent) == 1
    learn(optimizer, copies, 3, 1.0)
    assert len(sent) == 2
