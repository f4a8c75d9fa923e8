"""What every number of a checkpoint is asked before it is used or written."""

import pytest
import torch

from dreambooth_ext.models.checkpoint_file import is_finite

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_one_bad_number_is_found_wherever_it_is(dtype):
    numbers = torch.full((2**20 + 7,), 0.5, dtype=dtype)
    assert is_finite(numbers)
    for bad in (float("nan"), float("inf"), -float("inf")):
        for place in (0, 12_345, 2**20 - 1, 2**20, 2**20 + 6):
            tensor = numbers.clone()
            tensor[place] = bad
            assert not is_finite(tensor), (bad, place)
            tensor[place - 1] = -bad  # their sum is no number
            assert not is_finite(tensor), (bad, place)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_numbers_whose_sum_is_too_large_are_finite(dtype):
    assert is_finite(torch.full((1000,), torch.finfo(dtype).max, dtype=dtype))


def test_whole_numbers_are_finite():
    assert is_finite(torch.arange(5)) and is_finite(torch.zeros(0))
