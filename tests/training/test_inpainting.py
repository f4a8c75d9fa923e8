"""Masks of inpainting models: what they cover, and that the masked picture tells nothing of it."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dreambooth_ext.training.data import generator_for
from dreambooth_ext.training.inpainting import VARIANTS, masked_inputs, masks_of


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(8, 96), st.integers(8, 96))
def test_the_first_mask_covers_all_and_the_others_a_part(seed, height, width):
    masks = masks_of(height, width, generator_for(seed))
    assert masks.shape == (VARIANTS, 1, height, width)
    assert bool((masks[0] == 1).all())
    shares = masks[1:].mean(dim=(1, 2, 3))
    assert bool((shares > 0.02).all()) and bool((shares < 0.95).all())
    assert set(masks.unique().tolist()) <= {0.0, 1.0}


def test_what_is_masked_is_not_told(tiny_model):
    """Two pictures that differ under the mask alone look the same; one that differs elsewhere does not."""
    side = 64
    masks = masks_of(side, side, generator_for(7))
    one = torch.rand(3, side, side, generator=generator_for(1)) * 2 - 1
    with torch.no_grad():
        first = masked_inputs(tiny_model.vae, one, generator_for(7))
        for variant in range(VARIANTS):
            under = masked_inputs(tiny_model.vae, one * (1 - masks[variant]) + 0.3 * masks[variant], generator_for(7))
            assert torch.equal(first[variant], under[variant])
            if variant:
                beside = masked_inputs(tiny_model.vae, one * masks[variant] + 0.3 * (1 - masks[variant]), generator_for(7))
                assert not torch.equal(first[variant], beside[variant])
    assert first.shape == (VARIANTS, 5, side // 8, side // 8)
    assert torch.equal(first[:, 0], masks[:, 0, ::8, ::8])
