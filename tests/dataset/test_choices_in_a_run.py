"""What was chosen in Review counts in every run, wherever it is started from, and stays as it was at its start."""

import dataclasses
import json
from pathlib import Path

import pytest

from dreambooth_ext import check, recipe
from dreambooth_ext.config import Concept, TrainConfig
from dreambooth_ext.dataset import choices
from dreambooth_ext.dataset.manifest import TrainingSet
from dreambooth_ext.errors import Cancelled, ConfigError
from dreambooth_ext.hosts.standalone import StandaloneHost
from dreambooth_ext.playground import subject
from dreambooth_ext.playground.base import playground_base_path
from dreambooth_ext.progress import Progress
from dreambooth_ext.run_folder import RunFolder


@pytest.fixture
def config(tmp_path):
    subject.draw_pictures(tmp_path / "pictures", 4)
    (tmp_path / "models").mkdir()
    return TrainConfig(base=str(playground_base_path()), output_name="rxz", runs_dir=str(tmp_path / "runs"),
                       models_dir=str(tmp_path / "models"),
                       concepts=(Concept(str(tmp_path / "pictures"), token="rxz", class_noun="square"),))


def remembered(config):
    return choices.choices_file(RunFolder.for_config(config).path.parent, choices.Path(config.concepts[0].instance_dir))


def choose(file, name, *given, **more):
    choices.choose(file, name, choices.Choice(*given, **more))


def test_what_is_dropped_is_not_trained_on_and_what_is_cut_is_cut(config, tmp_path):
    file = remembered(config)
    choose(file, "subject_01.png", "drop")
    choose(file, "subject_02.png", "fix", box=(0, 0, 24, 24))
    choose(file, "subject_03.png", "keep", sha256="of another content")
    checked = check.check(config)
    assert checked.pictures == (3,) and checked.config.steps == 300
    run = RunFolder.for_config(config)
    own = recipe._with_own_choices(checked.config, run)
    images = recipe.prepare(own, run, 64, Progress())
    index = json.loads((run.dataset_dir / "concept-0" / "prepared.json").read_text())["pictures"]
    assert len(images) == 3 and "subject_01.png" not in index and index["subject_02.png"]["box"] == [0, 0, 24, 24]
    before = recipe.inputs_of(own)
    choose(file, "subject_03.png", "drop")  # for the next run
    assert recipe.inputs_of(own) == before and len(recipe.prepare(own, run, 64, Progress())) == 3
    assert check.check(config).pictures == (2,)


def test_a_run_that_began_without_choices_goes_on_without_those_made_since(config):
    config = dataclasses.replace(config, steps=1, with_prior_preservation=False, preview_steps=1)
    run, host, progress = RunFolder.for_config(config), StandaloneHost(Path(config.models_dir), Path(config.runs_dir)), Progress()
    progress.listen(lambda report: progress.cancel() if report.phase == "training" else None)
    with pytest.raises(Cancelled):
        recipe.train(config, host, progress)
    choose(remembered(config), "subject_01.png", "drop")
    recipe.resume(run, host, Progress())
    trained_on = TrainingSet.read(run.dataset_dir / "manifest.json").instance
    assert run.state().state == "finished" and len(trained_on) == 4


def test_the_pictures_folder_stays_as_it_is(config, tmp_path):
    before = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    choose(remembered(config), "subject_01.png", "drop")
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == before


def test_a_file_of_choices_that_cannot_be_read_is_named(config, tmp_path):
    (tmp_path / "choices.json").write_text('{"pictures": {"a.png": {"choice": "perhaps"}}}')
    concept = dataclasses.replace(config.concepts[0], choices=str(tmp_path / "choices.json"))
    with pytest.raises(ConfigError, match="keep, fix, drop"):
        check.check(dataclasses.replace(config, concepts=(concept,)))
