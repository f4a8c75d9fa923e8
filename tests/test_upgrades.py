"""What an older version wrote opens in this one: run folders and presets as they were then stand in tests/upgrades."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from dreambooth_ext import config, presets
from dreambooth_ext.config import Concept, TrainConfig
from dreambooth_ext.options import options_of
from dreambooth_ext.report import report_html
from dreambooth_ext.run_folder import RunFolder, list_runs

WRITTEN = Path(__file__).parent / "upgrades"
VERSIONS = sorted(WRITTEN.glob("version-*"))


@pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.name)
def test_a_run_of_that_version_opens_with_all_that_it_says(version, tmp_path):
    shutil.copytree(version / "runs", tmp_path / "runs")
    (run,) = list_runs(tmp_path / "runs")
    given = json.loads((run.path / "config.json").read_text())
    opened = run.config().validate()
    assert (run.state().state, run.state().step, run.state().steps) == ("interrupted", 4, 10)
    assert len(run.metrics()) == 4 and run.inputs()["0/a.png"] == "1" * 64
    assert run.described()["message"] == "stopped by the user" and "rex" in report_html(run)
    if given["version"] == config.VERSION:  # nothing had to be changed: each setting still means what was written
        written = {**opened.to_dict(), "runs_dir": given["runs_dir"]}  # which is where the run stands now
        for name, value in given.items():
            assert name == "concepts" or written[name] == (tuple(value) if isinstance(value, list) else value), name
        for name, value in given["concepts"][0].items():
            assert written["concepts"][0][name] == value, name


@pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.name)
def test_a_preset_of_that_version_is_applied(version):
    assert presets.load("mine", version / "presets")["learning_rate"] == 1e-6


def test_this_version_is_among_them_and_most_of_its_settings_are_not_the_defaults():
    """Else the tests above would say little."""
    given = json.loads((WRITTEN / f"version-{config.VERSION}" / "runs" / "rex" / "config.json").read_text())
    opened = TrainConfig.from_dict(given)
    changed = [option.name for owner in (opened, opened.concepts[0]) for option in options_of(type(owner))
               if getattr(owner, option.name) != option.default]
    assert len(changed) > 50


def test_migrations_are_made_one_after_the_other(monkeypatch):
    """A setting that was renamed in version 2, and one that was left out in version 3."""
    def renamed(values):
        return {("steps" if name == "max_train_steps" else name): value for name, value in values.items()}

    def left_out(values):
        return {name: value for name, value in values.items() if name != "xformers"}

    monkeypatch.setattr(config, "VERSION", 3)
    monkeypatch.setattr(config, "MIGRATIONS", {1: renamed, 2: left_out})
    old = {"max_train_steps": 7, "xformers": True, "output_name": "rex"}
    assert TrainConfig.from_dict({"version": 1, **old}).steps == 7
    assert TrainConfig.from_dict({"version": 2, "steps": 8, "xformers": True}).steps == 8
    with pytest.raises(config.ConfigError, match="max_train_steps"):
        TrainConfig.from_dict({"version": 3, **old})


def test_each_former_version_has_its_migration():
    assert set(config.MIGRATIONS) == set(range(1, config.VERSION))


def test_a_run_made_now_is_written_as_of_this_version(tmp_path):
    run = RunFolder(tmp_path / "rex")
    run.create(dataclasses.replace(TrainConfig(base="b", output_name="rex"), concepts=(Concept(instance_dir="p"),)))
    assert json.loads((run.path / "config.json").read_text())["version"] == config.VERSION
