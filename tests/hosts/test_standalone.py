"""Ourselves as the host: what is asked for is what renders."""

import numpy as np
import pytest
import torch

from dreambooth_ext.errors import HostError
from dreambooth_ext.host import Txt2Img
from dreambooth_ext.hosts import standalone
from dreambooth_ext.hosts.standalone import StandaloneHost
from dreambooth_ext.models import sampling
from dreambooth_ext.models.family import SD1
from dreambooth_ext.models.specimen import SMALL, specimen
from dreambooth_ext.playground.base import playground_base_path
from dreambooth_ext.progress import Progress


def test_what_the_user_says_of_the_base_is_how_it_renders(tmp_path):
    base = specimen(SD1, size=SMALL["sd1"]).write(tmp_path / "base.safetensors")
    host = StandaloneHost(tmp_path, tmp_path)

    def drawn(prediction_type):
        request = Txt2Img("dog", (1,), steps=2, width=64, height=64, prediction_type=prediction_type)
        return next(iter(host.txt2img(base, request, Progress()))).tobytes()

    assert drawn("auto") == drawn("epsilon") != drawn("v_prediction")
    assert drawn("auto") == drawn("epsilon")


def test_what_is_no_readable_file_hides_no_checkpoint(tmp_path):
    specimen(SD1, size=SMALL["sd1"]).write(tmp_path / "base.safetensors")
    (tmp_path / "gone.safetensors").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.safetensors").mkdir()
    assert [each.path.name for each in StandaloneHost(tmp_path, tmp_path).checkpoints()] == ["base.safetensors"]


def test_a_base_that_has_gone_is_told(tmp_path):
    with pytest.raises(HostError, match="No such file"):
        list(StandaloneHost(tmp_path, tmp_path).txt2img(tmp_path / "gone.safetensors", REQUEST, Progress()))


REQUEST = Txt2Img("a red circle", (1, 2, 3), steps=8, width=64, height=64)


def pictures_by(host, said=None):
    progress = Progress()
    if said is not None:
        progress.listen(lambda report: said.append(report.text) if report.phase == "log" else None)
    return [np.asarray(picture, dtype=float) for picture in host.txt2img(playground_base_path(), REQUEST, progress)]


@pytest.fixture
def in_half(monkeypatch):
    """bf16: what CPUs of all torch versions can do, and of fewer digits than fp16."""
    monkeypatch.setattr(standalone, "rendering_dtype", lambda device: torch.bfloat16)


def test_a_gpu_renders_in_half_precision_what_a_cpu_renders_in_full(tmp_path, in_half):
    assert standalone.rendering_dtype("cpu") == torch.bfloat16
    half = pictures_by(host := StandaloneHost(tmp_path, tmp_path, device="cpu"))
    assert {parameter.dtype for module in host._model.modules for parameter in module.parameters()} == {torch.bfloat16}
    host._model.to(dtype=torch.float32)
    full = pictures_by(host)
    for one, two in zip(half, full, strict=True):
        assert np.abs(one - two).mean() < 12  # of 255; pictures of two seeds are more than twice as far apart
    assert np.abs(half[0] - full[1]).mean() > 24


def test_which_devices_render_in_half_precision():
    assert standalone.rendering_dtype("cuda:1") == torch.float16
    assert standalone.rendering_dtype("cpu") is None and standalone.rendering_dtype("mps") is None


@pytest.mark.parametrize(("part", "widened"), [("vae", {"vae"}), ("unet", {"unet", "text_encoder"})])
def test_what_gives_nan_in_half_precision_goes_on_in_full(part, widened, tmp_path, in_half, monkeypatch):
    """As VAEs of anime models do, and all networks on some cards."""
    host, said, name = StandaloneHost(tmp_path, tmp_path, device="cpu"), [], {"vae": "decode_latents", "unet": "ddim_sample"}[part]
    own = getattr(sampling, name)

    def overflowing(owner, *arguments, **named):
        network = owner if part == "vae" else owner.unet
        result = own(owner, *arguments, **named)
        return result if next(network.parameters()).dtype == torch.float32 else result * float("nan")

    monkeypatch.setattr(sampling, name, overflowing)
    pictures = pictures_by(host, said)
    monkeypatch.setattr(sampling, name, own)
    assert len(said) == 1 and "goes on in fp32" in said[0]
    assert {name for name, module in host._model.parts.items() if next(module.parameters()).dtype == torch.float32} == widened
    for one, two in zip(pictures, pictures_by(host), strict=True):  # as it is now, from the start
        assert np.array_equal(one, two)


def test_nan_in_full_precision_is_not_tried_again(tmp_path, monkeypatch):
    calls = []
    broken = torch.full((1, 3, 64, 64), float("nan"))
    monkeypatch.setattr(sampling, "decode_latents", lambda vae, latents: calls.append(1) or broken)
    host, said = StandaloneHost(tmp_path, tmp_path, device="cpu"), []
    pictures_by(host, said)
    assert len(calls) == len(REQUEST.seeds) and not said
