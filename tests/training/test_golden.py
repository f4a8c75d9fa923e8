"""Our losses are those of diffusers' own script (golden/README.md)."""

import dataclasses
import json
from importlib import metadata
from pathlib import Path

import pytest

from dreambooth_ext.training.loop import train

GOLDEN = json.loads((Path(__file__).parent / "golden" / "diffusers_0_31_0.json").read_text())


def test_seven_steps_equal_those_of_diffusers(tiny, tiny_model, tiny_dataset, config, run, progress):
    config = dataclasses.replace(config, steps=tiny.STEPS, learning_rate=tiny.LEARNING_RATE, seed=tiny.SEED,
                                 prior_loss_weight=tiny.PRIOR_LOSS_WEIGHT, draw_order="diffusers")
    losses = train(config, tiny_model, tiny_dataset, run, progress).losses
    packages = ("torch", "transformers", "accelerate", "diffusers")
    recorded = all(metadata.version(name).split("+")[0] == GOLDEN["recorded_with"][name] for name in packages)
    assert losses == pytest.approx(GOLDEN["losses"], rel=1e-6 if recorded else 1e-5)
