"""The validation loss: as often as asked for, the same for the same weights, and without any effect on the run."""

import dataclasses

import pytest
import torch

from dreambooth_ext.models.diffusers_folder import load_diffusers
from dreambooth_ext.progress import Progress
from dreambooth_ext.run_folder import RunFolder
from dreambooth_ext.training.data import Pictures
from dreambooth_ext.training.loop import train
from dreambooth_ext.training.validation import _pairs


def trained(request, config, dataset, path):
    tiny, former = request.getfixturevalue("tiny"), request.getfixturevalue("tiny_model")
    unet, vae, text_encoder = tiny.modules()
    model = dataclasses.replace(former, unet=unet, vae=vae, text_encoders=(text_encoder,))
    run = RunFolder(path)
    run.create(config)
    reports = []
    train(config, model, dataset, run, Progress(reports.append))
    return load_diffusers(run.diffusers_dir, model).unet.state_dict(), run.metrics(), reports


@pytest.mark.parametrize(("every", "steps"), [(1, [1, 2, 3, 4, 5, 6]), (4, [4, 6]), (0, [6])])
def test_it_is_measured_when_it_is_due_and_changes_nothing(every, steps, tiny_dataset, config, tmp_path, request):
    plain = dataclasses.replace(config, steps=6, train_batch_size=2, caption_dropout=0.5)
    weights, metrics, _ = trained(request, dataclasses.replace(plain, validation_every=6), tiny_dataset, tmp_path / "plain")
    more, measured, reports = trained(request, dataclasses.replace(plain, validation_every=every), tiny_dataset, tmp_path / "more")
    assert [entry["step"] for entry in measured if "validation_loss" in entry] == steps
    assert [entry["loss"] for entry in measured] == [entry["loss"] for entry in metrics]
    assert measured[-1]["validation_loss"] == metrics[-1]["validation_loss"]
    assert all(torch.equal(weights[name], more[name]) for name in weights)
    told = [report.figures for report in reports if report.phase == "training" and "loss" in report.figures]
    assert told[-1]["validation_loss"] == measured[-1]["validation_loss"] and told[-1]["learning_rate"] == measured[-1]["lr"]


@pytest.mark.parametrize("count", range(2, 9))
def test_each_picture_counts_once_and_none_stands_alone(count):
    rows = torch.arange(count, dtype=torch.float32).view(count, 1)
    parts = _pairs(Pictures(rows, rows, rows, tuple("abcdefgh"[:count]), None))
    assert torch.equal(torch.cat([part.latents for part in parts]), rows)
    assert all(2 <= len(part) <= 3 for part in parts)
