"""Our losses are those of diffusers' own script (golden/README.md)."""

import dataclasses
import json
from importlib import metadata
from pathlib import Path

import pytest

from dreambooth_ext.dataset.manifest import TrainingSet
from dreambooth_ext.training.data import DiffusersBatches
from dreambooth_ext.training.loop import train

GOLDEN = json.loads((Path(__file__).parent / "golden" / "diffusers_0_31_0.json").read_text())


def test_seven_steps_equal_those_of_diffusers(tiny, tiny_model, tiny_dataset, config, run, progress):
    config = dataclasses.replace(config, steps=tiny.STEPS, learning_rate=tiny.LEARNING_RATE, seed=tiny.SEED,
                                 prior_loss_weight=tiny.PRIOR_LOSS_WEIGHT, draw_order="diffusers")
    losses = train(config, tiny_model, tiny_dataset, run, progress).losses
    packages = ("torch", "transformers", "accelerate", "diffusers")
    recorded = all(metadata.version(name).split("+")[0] == GOLDEN["recorded_with"][name] for name in packages)
    assert losses == pytest.approx(GOLDEN["losses"], rel=1e-6 if recorded else 1e-5)


@pytest.mark.parametrize(("instance", "prior"), [(2, 5), (5, 2), (3, 0)])
def test_an_epoch_shows_every_picture_of_the_kind_that_has_more(instance, prior, tiny_model, tiny_dataset, config):
    """As the script's dataset, whose length is the larger of both numbers; with 200 class images for each picture they are more."""
    def named(images, count):
        return tuple(dataclasses.replace(image, prompt=str(number)) for number, image in enumerate(images[:count]))

    dataset = TrainingSet(named(tiny_dataset.instance, instance), named(tiny_dataset.prior, prior))
    batches = DiffusersBatches(dataclasses.replace(config, draw_order="diffusers", train_batch_size=1), dataset, tiny_model.vae)
    longer = max(instance, prior)
    for _ in range(2):
        drawn = [batches.batch(0, 0) for _ in range(longer)]
        shown = [int(batch.instance.prompts[0]) for batch in drawn]
        beside = [int(batch.prior.prompts[0]) for batch in drawn if batch.prior is not None]
        assert sorted(shown) == sorted(index % instance for index in range(longer))
        assert sorted(beside) == (sorted(index % prior for index in range(longer)) if prior else [])
