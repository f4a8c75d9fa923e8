"""The measure of Choose against the judge, who knows how the subject is drawn: pictures of known fidelity, no training.

benchmarks/bench_likeness.py does the same with trained snapshots.
"""

import numpy as np
import pytest
from PIL import Image

from dreambooth_ext.host import Txt2Img
from dreambooth_ext.likeness import measure
from dreambooth_ext.models.features import features
from dreambooth_ext.models.load import load_checkpoint
from dreambooth_ext.models.sampling import render
from dreambooth_ext.playground import subject, world
from dreambooth_ext.playground.base import playground_base_path

SEEDS = 6


@pytest.fixture(scope="module")
def model():
    return load_checkpoint(playground_base_path())


@pytest.fixture(scope="module")
def of_base(model):
    """What the base makes of the class, one picture for each seed."""
    request = Txt2Img("a square", tuple(range(SEEDS)), steps=12, guidance_scale=3.0, width=world.SIDE, height=world.SIDE)
    return list(render(model, request, batch_size=SEEDS))


def drawn(seed, count):
    rng = np.random.default_rng(seed)
    return [Image.fromarray(subject.random_picture(rng, world.BACKGROUNDS[index % len(world.BACKGROUNDS)]))
            for index in range(count)]


def blended(first, second, share):
    return [Image.blend(one, two, share) for one, two in zip(first, second, strict=True)]


def test_nearness_ranks_like_the_judge_and_drift_like_what_was_done_to_the_class(model, of_base):
    own, shown = drawn(1, 8), drawn(2, SEEDS)
    # 0, 2, 4 and all of the pictures show the subject; the class is mixed with it more and more.
    subjects = [[*shown[:count], *of_base[count:]] for count in (0, 2, 4, SEEDS)]
    classes = [blended(of_base, shown, share) for share in (0, 0.2, 0.4, 1.0)]
    hits = [np.mean([subject.recognises(picture) for picture in column]) for column in subjects]
    assert hits == pytest.approx([0, 2 / 6, 4 / 6, 1])  # the judge knows them
    flat = [picture for pair in zip(subjects, classes, strict=True) for kind in pair for picture in kind]
    seen = features(model, [*own, *flat], world.SIDE, batch_size=16)
    found = measure(seen[:8], seen[8:].reshape(4, 2, SEEDS, *seen.shape[1:]), ("subject", "class"))
    near, drift = [one.nearness for one in found], [one.drift for one in found]
    assert near[0] == 0 and near == sorted(near) and near[-1] > 0.3
    assert drift[0] == 0 and drift == sorted(drift) and drift[-1] > 0.5


def test_features_do_not_depend_on_the_batch_and_leave_the_model_as_it_was(model, of_base):
    training = [module.training for module in model.unet.modules()]
    alone = np.concatenate([features(model, [picture], world.SIDE) for picture in of_base[:3]])
    together = features(model, of_base[:3], world.SIDE, batch_size=3)
    assert np.allclose(alone, together, atol=1e-3 * np.abs(alone).max()) and alone.dtype == np.float32
    assert [module.training for module in model.unet.modules()] == training
    assert not any(module._forward_hooks for module in model.unet.modules())
