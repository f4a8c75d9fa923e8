import copy

import numpy as np
import pytest
import torch
from PIL import Image

from dreambooth_ext.errors import Cancelled, ConfigError
from dreambooth_ext.host import Txt2Img
from dreambooth_ext.models import features, sampling
from dreambooth_ext.models.load import load_checkpoint
from dreambooth_ext.models.noise import alphas_cumprod
from dreambooth_ext.progress import Progress


def test_the_timesteps_are_the_webuis():
    assert sampling.ddim_timesteps(30)[:2] == [1, 34] and sampling.ddim_timesteps(30)[-1] == 991
    assert len(sampling.ddim_timesteps(30)) - 1 == 30
    assert sampling.ddim_timesteps(50)[-1] == 981 and len(sampling.ddim_timesteps(50)) - 1 == 49
    assert max(sampling.ddim_timesteps(1000)) == 999


def test_each_step_is_evaluated_once_in_descending_order():
    seen = []

    def eps(x, timesteps):
        seen.append(int(timesteps[0]))
        return torch.zeros_like(x)

    sampling.ddim(eps, torch.zeros(1, 4, 2, 2), alphas_cumprod(), 30)
    assert seen == sampling.ddim_timesteps(30)[:0:-1]


def test_a_perfect_denoiser_ends_at_the_picture_with_the_noise_of_timestep_1():
    """Of a single point x0, the exact eps is known; DDIM then stays on the line between x0 and the noise."""
    alphas = alphas_cumprod().float()
    x0, noise = torch.randn(2, 2, 4, 4, 4, generator=torch.Generator().manual_seed(0))

    def eps(x, t):
        a = alphas[t][:, None, None, None]
        return (x - a.sqrt() * x0) / (1 - a).sqrt()

    last = alphas[991]
    end = sampling.ddim(eps, last.sqrt() * x0 + (1 - last).sqrt() * noise, alphas, 30)
    assert torch.allclose(end, alphas[1].sqrt() * x0 + (1 - alphas[1]).sqrt() * noise, atol=2e-4)


def test_the_schedule_is_stable_diffusions():
    alphas = alphas_cumprod()
    assert alphas.shape == (1000,) and alphas[0].item() == pytest.approx(0.99915)
    assert alphas[-1].item() == pytest.approx(0.0046602, rel=1e-4)
    zero = alphas_cumprod(zero_terminal_snr=True)
    assert zero[0].item() == pytest.approx(alphas[0].item()) and zero[-1] == 4.8973451890853435e-08
    assert (zero[1:] < zero[:-1]).all()


def test_velocity_is_turned_into_noise(tiny_base):
    """A model that predicts v, and one that predicts the eps equivalent to it, sample the same."""
    model = load_checkpoint(tiny_base)
    twin = copy.copy(model)
    alphas = model.alphas_cumprod().float()

    class Velocity(torch.nn.Module):
        def __init__(self, v):
            super().__init__()
            self.v, self.config, self.weight = v, model.unet.config, torch.nn.Parameter(torch.zeros(1))

        def forward(self, x, timesteps, *_, **__):
            a = alphas[timesteps][:, None, None, None]
            eps = x.roll(1, dims=-1)
            out = (eps - (1 - a).sqrt() * x) / a.sqrt() if self.v else eps
            return type("Out", (), {"sample": out})

    model.unet, twin.unet = Velocity(True), Velocity(False)
    model.prediction_type = "v_prediction"
    request = Txt2Img("a", (1,), width=64, height=64, steps=8)
    (one,), (two,) = sampling.render(model, request), sampling.render(twin, request)
    assert np.abs(np.asarray(one, int) - np.asarray(two, int)).max() <= 1


def test_guidance_1_ignores_the_negative_prompt(tiny_base):
    model = load_checkpoint(tiny_base)
    requests = [Txt2Img("a dog", (3,), negative_prompt=negative, guidance_scale=scale, width=64, height=64, steps=3)
                for negative, scale in (("cat", 1.0), ("tree", 1.0), ("tree", 7.0))]
    cat, tree, guided = (np.asarray(next(sampling.render(model, request)), int) for request in requests)
    assert np.abs(cat - tree).max() <= 1 and np.abs(tree - guided).max() > 1


def test_a_picture_does_not_depend_on_its_batch_and_follows_its_seed(tiny_base):
    model = load_checkpoint(tiny_base)
    request = Txt2Img("a dog", (5, 6, 5), width=64, height=64, steps=3)
    alone = [np.asarray(image, int) for image in sampling.render(model, request, batch_size=1)]
    together = [np.asarray(image, int) for image in sampling.render(model, request, batch_size=8)]
    assert len(together) == 3 and all(np.abs(a - b).max() <= 1 for a, b in zip(alone, together, strict=True))
    assert (alone[0] == alone[2]).all() and np.abs(alone[0] - alone[1]).max() > 1


def test_initial_noise_is_the_hosts():
    torch.manual_seed(7)
    assert torch.equal(sampling.initial_noise((1, 7), 64, 32)[1], torch.randn(4, 8, 4))


def test_modes_and_gradients_are_restored_while_pictures_are_taken(tiny_base):
    model = load_checkpoint(tiny_base)
    model.unet.train()
    model.unet.conv_in.eval()
    pictures = sampling.render(model, Txt2Img("a", (1, 2), width=64, height=64, steps=2), batch_size=1)
    next(pictures)
    assert torch.is_grad_enabled() and model.unet.training and not model.unet.conv_in.training
    assert not model.vae.training


def test_a_wish_to_stop_is_heard_between_steps(tiny_base):
    progress = Progress()
    progress.cancel()
    with pytest.raises(Cancelled):
        next(sampling.render(load_checkpoint(tiny_base), Txt2Img("a", (1,), width=64, height=64), progress))


@pytest.mark.parametrize("changes", [{"sampler": "Euler a"}, {"width": 65}, {"height": 0}, {"steps": 0}])
def test_what_this_sampler_cannot_do_is_refused(tiny_base, changes):
    with pytest.raises(ConfigError):
        next(sampling.render(load_checkpoint(tiny_base), Txt2Img("a", (1,), **{"width": 64, "height": 64, **changes})))


def test_bytes_are_truncated_as_the_webui_does():
    pixels = torch.tensor([0.0, 0.999, 1.0]).reshape(1, 3, 1, 1)
    assert sampling.to_images(pixels)[0].getpixel((0, 0)) == (0, 254, 255)


def test_features_that_are_nan_in_half_precision_are_seen_in_full(tiny_base, monkeypatch):
    """As pictures are rendered: else no snapshot could be measured on such a card."""
    own, said, progress = features._seen, [], Progress()
    progress.listen(lambda report: said.append(report.text))
    pictures = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    halves = {"unet": torch.bfloat16, "text_encoder": torch.bfloat16}

    def overflowing(model, *more):
        maps = own(model, *more)
        return maps if model.unet.dtype == torch.float32 else maps * float("nan")

    full = features.features(load_checkpoint(tiny_base), pictures, 64)
    monkeypatch.setattr(features, "_seen", overflowing)
    half = features.features(load_checkpoint(tiny_base, dtypes=halves), pictures, 64, progress)
    assert np.isfinite(half).all() and np.abs(half - full).mean() < 0.1 * np.abs(full).mean() and "goes on in fp32" in said[0]
