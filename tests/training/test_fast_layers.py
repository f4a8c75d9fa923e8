"""The faster passes give the numbers of diffusers' own, under each of its versions, with torch's operations and with kernels."""

import pytest
import torch

from dreambooth_ext.models.family import SD1, SD2, SDXL
from dreambooth_ext.models.specimen import SMALL, modules_of
from dreambooth_ext.training import fast_layers

pytestmark = pytest.mark.engine

FAMILIES = [SD1, SD2, SDXL]


def unet_of(family, dtype=torch.float64):
    """Small, with weights that leave each layer's output of its input's size."""
    unet = modules_of(family, SMALL[family.key])["unet"].to_empty(device="cpu").to(dtype)
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in unet.parameters():
            spread = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.1
            parameter.normal_(generator=draws).mul_(spread)
        for layer in unet.modules():
            if isinstance(layer, (torch.nn.GroupNorm, torch.nn.LayerNorm)):
                layer.weight.add_(1)
    return unet.train().to(memory_format=torch.channels_last)


def passed(unet, family, side=8):
    """(output, {name: gradient})"""
    draws, kind = torch.Generator().manual_seed(1), unet.dtype

    def drawn(*shape):
        return torch.randn(shape, generator=draws).to(kind)

    more = {} if family is not SDXL else {"added_cond_kwargs": {
        "text_embeds": drawn(2, SMALL["sdxl"].text_widths[-1]), "time_ids": torch.zeros(2, 6, dtype=kind)}}
    unet.zero_grad()
    sample = drawn(2, 4, side, side).to(memory_format=torch.channels_last)
    output = unet(sample, torch.tensor([3, 700]), drawn(2, 77, unet.config.cross_attention_dim), **more).sample
    (output * drawn(*output.shape)).sum().backward()
    return output.detach(), {name: parameter.grad.clone() for name, parameter in unet.named_parameters()}


def assert_near(ours, theirs, near):
    assert (ours[0] - theirs[0]).norm() < near * theirs[0].norm()
    whole = torch.stack([gradient.norm() for gradient in theirs[1].values()]).norm()
    for name, gradient in theirs[1].items():
        assert (ours[1][name] - gradient).norm() < near * (gradient.norm() + 1e-3 * whole), name


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.key)
def test_the_numbers_are_those_of_diffusers(family):
    unet = unet_of(family)
    before = passed(unet, family)
    places = fast_layers.install(unet)
    assert_near(passed(unet, family), before, 1e-9)
    fast_layers.remove(places)
    assert torch.equal(passed(unet, family)[0], before[0])


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.key)
def test_every_block_has_a_faster_pass(family):
    unet = unet_of(family)
    kinds = [type(layer).__name__ for layer, _ in fast_layers.install(unet)]
    for kind in ("ResnetBlock2D", "Attention", "GEGLU", "Transformer2DModel"):
        assert kinds.count(kind) == sum(type(layer).__name__ == kind for layer in unet.modules()) > 0, kind


def test_with_kernels(monkeypatch):
    """A UNet of few layers: Triton's interpreter is slow."""
    pytest.importorskip("triton", minversion="3", reason="Triton 3, whose interpreter computes here, is missing")
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), layers_per_block=1,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=32, attention_head_dim=4)
    unet.to(memory_format=torch.channels_last)
    before = passed(unet, SD1)
    fast_layers.install(unet)
    used = []
    monkeypatch.setattr(fast_layers, "_kernels_serve", lambda x: used.append(x) or True)
    assert_near(passed(unet, SD1), before, 1e-3)
    of_kernels = [layer for layer in unet.modules() if type(layer).__name__ in ("GroupNorm", "GEGLU")]
    assert len(used) == len(of_kernels) > 10


def test_layout_is_never_turned_round():
    """Channels last go in, and each convolution is given them so."""
    unet = unet_of(SD1, torch.float32)
    fast_layers.install(unet)
    seen = []
    for layer in unet.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_pre_hook(lambda layer, inputs: seen.append(
                inputs[0].is_contiguous(memory_format=torch.channels_last)))
    passed(unet, SD1, side=16)  # at 8 there is a layer of 1 x 1, which lies both ways
    assert len(seen) > 50 and all(seen)


def test_what_is_configured_otherwise_keeps_its_own():
    from diffusers.models.resnet import ResnetBlock2D

    unet = unet_of(SD1)
    odd = next(layer for layer in unet.modules() if isinstance(layer, ResnetBlock2D))
    odd.output_scale_factor = 2.0
    before = passed(unet, SD1)
    places = fast_layers.install(unet)
    assert (odd, "forward") not in places
    assert_near(passed(unet, SD1), before, 1e-9)
