"""The parts of the playground's training that can be held exactly: calibration, schedules, resuming."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dreambooth_ext.playground import latents, networks, pacing, train_unet, train_vae, world


def test_calibration_makes_sd1s_scaling_factor_true_and_keeps_the_reconstruction() -> None:
    torch.manual_seed(0)
    vae = networks.build_vae().eval().requires_grad_(False)
    rng = np.random.default_rng(8)
    scenes = [world.random_scene(rng, world.combinations(holdout=False)) for _ in range(64)]
    pictures = train_vae.to_tensor(np.stack([world.draw(scene) for scene in scenes]))
    before = vae.decode(vae.encode(pictures).latent_dist.mean).sample
    latents.calibrate(vae)
    mean = vae.encode(pictures).latent_dist.mean
    scaled = mean * networks.SCALING_FACTOR
    assert scaled.std(dim=(0, 2, 3)).numpy() == pytest.approx(1, abs=0.15)
    assert scaled.mean(dim=(0, 2, 3)).numpy() == pytest.approx(0, abs=0.15)
    assert torch.allclose(vae.decode(mean).sample, before, atol=1e-3)


def test_the_learning_rate_rises_falls_and_ends_at_nothing() -> None:
    values = [pacing.cosine(progress / 100) for progress in range(101)]
    assert values[0] < 0.1 and max(values) == pytest.approx(1, abs=0.02) and values[-1] == pytest.approx(0, abs=1e-9)
    assert values[10:] == sorted(values[10:], reverse=True)


def test_training_resumes_where_it_was_saved(tmp_path: Path) -> None:
    first = train_unet.Trainer(tmp_path, minutes=1)
    first.update(first.loss(torch.randn(2, 4, 8, 8), ["a star", ""], 20))
    first.save()
    second = train_unet.Trainer(tmp_path, minutes=1)
    assert second.step == 1 and second.clock.spent_s > 0
    for one, other in zip(first.parameters, second.parameters, strict=True):
        assert torch.equal(one, other)
    unet, text = train_unet.load_average(tmp_path)
    for one, other in zip([*unet.parameters(), *text.parameters()], first.average, strict=True):
        assert torch.equal(one, other)


def test_the_vocabulary_gives_clips_ids_padded_to_77() -> None:
    captions = train_unet.Captions()
    ids = captions.ids("A photo of a cat").tolist()
    assert ids[:7] == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert len(ids) == 77 and set(ids[7:]) == {49407}
    assert captions.ids("").tolist() == [49406] + [49407] * 76
