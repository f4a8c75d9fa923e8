"""Codes as torch's operations write and read them; what is dropped comes back on average."""

import pytest
import torch

from dreambooth_ext.training.optimizers import quantized

pytest.importorskip("triton", minversion="3", reason="Triton 3, whose interpreter computes here, is missing")

import triton
import triton.language as tl

from dreambooth_ext.training.kernels import rounding

COUNT = 4096


@triton.jit
def _apply(source, noise, target, kind: tl.constexpr, count: tl.constexpr):
    places = tl.arange(0, count)
    values = tl.load(source + places)
    if kind == "share_of":
        result = rounding.share_of(values)
    elif kind == "root_of":
        result = rounding.root_of(values)
    elif kind == "share_code":
        result = rounding.share_code(values, tl.load(noise + places))
    elif kind == "root_code":
        result = rounding.root_code(values, tl.load(noise + places))
    elif kind == "hypotenuse":
        result = rounding.hypotenuse(values, tl.load(noise + places))
    else:
        result = rounding.rounded(values, tl.load(noise + places), 2)
    tl.store(target + places, result)


def applied(kind, source, noise=None, dtype=torch.float32):
    target = torch.empty(len(source), dtype=dtype)
    written = target.view(torch.int16) if dtype == torch.bfloat16 else target
    _apply[(1,)](source, source if noise is None else noise, written, kind=kind, count=len(source))
    return target


def even(bits, count=COUNT):
    """Each part of what so many bits can be, once."""
    return ((torch.arange(count) * 2 + 1) * (1 << bits) // (2 * count)).to(torch.int32)


def test_shares_are_read_as_fp8():
    codes = torch.arange(256, dtype=torch.uint8)
    codes[[0x7F, 0xFF]] = 0  # what is not a number
    assert torch.equal(applied("share_of", codes), quantized.read_shares(codes))


def test_a_share_that_a_code_can_hold_is_kept():
    codes = torch.arange(256, dtype=torch.uint8)
    codes[[0x7F, 0xFF]] = 0
    assert torch.equal(applied("share_code", quantized.read_shares(codes), torch.zeros(256, dtype=torch.int32), torch.uint8), codes)


@pytest.mark.parametrize("share", [0.7, -0.0123, 4.1, 100.0, -1e9, 0.00007, 0.0])
def test_shares_are_rounded_as_torch_rounds_them(share):
    """Between the same two codes, and as often up: within what 4096 draws of torch's own leave open."""
    shares = torch.full((COUNT,), share).clamp(-quantized.GREATEST_SHARE, quantized.GREATEST_SHARE)
    back = applied("share_of", applied("share_code", torch.full((COUNT,), share * 32), even(20), torch.uint8))
    codes = torch.zeros(COUNT, dtype=torch.uint8)
    quantized.write_shares(codes, shares, torch.Generator().manual_seed(0))
    reference = quantized.read_shares(codes)
    assert torch.equal(back.unique(), reference.unique())
    step = float(reference.max() - reference.min())
    assert abs(float(back.mean() - reference.mean())) <= 5 * step / 2 / COUNT**0.5
    if abs(share) > 5e-4:
        assert float(back.mean()) == pytest.approx(float(shares[0]) * 32, abs=step / COUNT + 1e-6)


def test_roots_are_read_as_torch_reads_them():
    codes, scales = torch.arange(256, dtype=torch.uint8), torch.ones(1)
    reference = quantized.read_roots(codes, scales, 256)
    torch.testing.assert_close(applied("root_of", codes) / quantized.TOP, reference, rtol=1e-6, atol=0)


@pytest.mark.parametrize("root", [0.7, 0.123, 0.0031, 31 / 32, 2.0**-16])
def test_roots_are_rounded_without_a_bias(root):
    back = applied("root_of", applied("root_code", torch.full((COUNT,), root), even(19), torch.uint8))
    low, high = float(back.min()), float(back.max())
    assert low <= root <= high <= 31 / 32 and len(back.unique()) <= 2
    assert float(back.mean()) == pytest.approx(root, abs=(high - low) / COUNT + 1e-7)


def test_no_root_has_the_code_of_none():
    assert not applied("root_code", torch.zeros(COUNT), even(19), torch.uint8).any()


@pytest.mark.parametrize("value", [1.001, -3.3e-5, 0.0, 1e38])
def test_weights_are_rounded_without_a_bias(value):
    narrow = applied("rounded", torch.full((COUNT,), value), even(16), torch.bfloat16).double()
    low, high = float(narrow.min()), float(narrow.max())
    assert low <= torch.tensor(value).item() <= high and len(narrow.unique()) <= 2
    assert float(narrow.mean()) == pytest.approx(value, rel=1e-6, abs=(high - low) / COUNT)


@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0x7FC00000, -1, 0x7F800001])
def test_what_is_not_a_number_stays_so(bits):
    values = torch.full((COUNT,), bits, dtype=torch.int32).view(torch.float32)
    assert bool(applied("rounded", values, even(16), torch.bfloat16).isnan().all())


def test_infinity_stays_infinite():
    values = torch.tensor([float("inf"), float("-inf")]).repeat(8)
    assert torch.equal(applied("rounded", values, even(16, 16), torch.bfloat16).float(), values)


def test_hypotenuses_are_right_where_squares_are_not_numbers():
    first = torch.tensor([3.0, -3.0, 0.0, 3e30, 3e-30, 0.0, 1e-30, float("inf")])
    second = torch.tensor([4.0, 4.0, 0.0, -4e30, 4e-30, -2.0, 1e30, 1.0])
    torch.testing.assert_close(applied("hypotenuse", first, second), torch.hypot(first, second))
