"""What a run has learnt from is what it goes on with, is published over and compared with; what has changed is told."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from dreambooth_ext import recipe
from dreambooth_ext.compare import compare
from dreambooth_ext.comparison import Wishes
from dreambooth_ext.config import Concept, TrainConfig
from dreambooth_ext.errors import ResumeError
from dreambooth_ext.hosts.standalone import StandaloneHost
from dreambooth_ext.inputs import SIDECAR, inputs_of, require_same_inputs
from dreambooth_ext.models.family import SD1
from dreambooth_ext.models.load import inspect
from dreambooth_ext.models.specimen import specimen
from dreambooth_ext.playground import subject
from dreambooth_ext.progress import Progress
from dreambooth_ext.run_folder import RunFolder


@pytest.fixture
def config(tmp_path):
    subject.draw_pictures(tmp_path / "pictures", 2)
    base = specimen(SD1).write(tmp_path / "base.safetensors", torch.float16)
    return TrainConfig(base=str(base), output_name="rxz", runs_dir=str(tmp_path / "runs"), models_dir=str(tmp_path / "models"),
                       steps=2, resolution=64, with_prior_preservation=False, publish_format="safetensors",
                       concepts=(Concept(str(tmp_path / "pictures"), token="rxz", class_noun="square"),))


@pytest.fixture
def run(config):
    run = RunFolder.for_config(config)
    run.create(config, inputs_of(config))
    return run


def predicts_velocity(base):
    """As if somebody had written so into the base's sidecar."""
    path = Path(base).with_suffix(".yaml")
    values = yaml.safe_load(path.read_text())
    values["model"]["params"]["parameterization"] = "v"
    path.write_text(yaml.safe_dump(values))


def test_a_base_whose_sidecar_says_something_else_is_not_gone_on_with(config, run):
    host = StandaloneHost(Path(config.models_dir), Path(config.runs_dir))
    predicts_velocity(config.base)
    assert inspect(Path(config.base)).prediction_type == "v_prediction"
    with pytest.raises(ResumeError, match=r"has changed since: the base's \.yaml file"):
        recipe.resume(run, host, Progress())
    Path(config.base).with_suffix(".yaml").unlink()
    with pytest.raises(ResumeError, match=r"has changed since: the base's \.yaml file"):
        require_same_inputs(run, inputs_of(config))


def test_a_run_of_an_earlier_version_that_knows_nothing_of_sidecars_goes_on(config, run):
    run.write_inputs({name: value for name, value in inputs_of(config).items() if name != SIDECAR})
    require_same_inputs(run, inputs_of(config))


@pytest.mark.parametrize("what", ["base.safetensors", "base.yaml", "vae.safetensors"])
def test_a_run_is_neither_published_over_another_base_nor_compared_with_it(config, run, tmp_path, what):
    shutil.copyfile(config.base, tmp_path / "vae.safetensors")
    config = replace(config, vae=str(tmp_path / "vae.safetensors"), lora_rank=4, preview_steps=0, output_name="rxy")
    host = StandaloneHost(Path(config.models_dir), Path(config.runs_dir))
    run = recipe.train(config, host, Progress()).run
    assert recipe.publish(run, Progress(), name="again")
    if what == "base.yaml":
        predicts_velocity(config.base)
    else:
        specimen(SD1).write(tmp_path / what, torch.float32)
    before = sorted(path.name for path in (tmp_path / "models").iterdir())
    with pytest.raises(ResumeError, match="is to be published: what it learnt from has changed since"):
        recipe.publish(run, Progress(), name="once-more")
    with pytest.raises(ResumeError, match="is to be compared with its base: what it learnt from has changed since"):
        compare(run, host, Progress(), Wishes(count=1, render_steps=1))
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == before
    if what == "vae.safetensors":  # another one may be chosen for the file
        assert recipe.publish(run, Progress(), name="once-more", config=replace(run.config(), vae=""))


def test_a_base_that_is_replaced_while_class_images_are_rendered_is_not_trained(config, monkeypatch):
    """It was told at publishing alone, when all steps had been taken."""
    def rendered(*given):
        specimen(SD1).write(Path(config.base), torch.float32)
        return []

    monkeypatch.setattr(recipe, "class_images", rendered)
    monkeypatch.setattr(recipe, "_train_model", lambda *given: pytest.fail("it is trained"))
    config = replace(config, with_prior_preservation=True)
    with pytest.raises(ResumeError, match="rxz is to be trained: what it learnt from has changed since: the base"):
        recipe.train(config, StandaloneHost(Path(config.models_dir), Path(config.runs_dir)), Progress())
    assert RunFolder.for_config(config).state().state == "failed"
