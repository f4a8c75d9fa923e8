"""Snapshots of a real run, small as it is, rendered side by side by the host, measured, and gone on from."""

import errno
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dreambooth_ext import files, recipe
from dreambooth_ext.compare import BORROWED, compare, plan
from dreambooth_ext.comparison import BASE, Wishes, folder_of, read_comparison
from dreambooth_ext.config import Concept, TrainConfig
from dreambooth_ext.errors import Cancelled, ConfigError, HostError, ResumeError, RunBusy, StorageError, UnsafePath
from dreambooth_ext.host import Txt2Img
from dreambooth_ext.hosts.standalone import StandaloneHost
from dreambooth_ext.progress import Progress
from dreambooth_ext.rollback import go_back
from dreambooth_ext.run_folder import RunFolder

WISHES = Wishes(count=2, render_steps=2)


class CountingHost(StandaloneHost):
    """Counts the pictures that were asked for."""

    rendered = 0
    fails_with = ""

    def txt2img(self, base, request, progress):
        if self.fails_with and self.fails_with in base.name:
            raise HostError("pictures are to be rendered", "the WebUI failed", "Try again.")
        for image in super().txt2img(base, request, progress):
            self.rendered += 1
            yield image


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a finished run of 4 steps with snapshots at 2 and 4, and of its base and models."""
    from dreambooth_ext.models.family import SD1
    from dreambooth_ext.models.specimen import Size, specimen

    smallest = Size((32, 64, 64, 64), (1, 1, 1, 0), 1, (32,), (2,), (32, 32, 32, 32))
    folder = tmp_path_factory.mktemp("trained")
    (folder / "pictures").mkdir()
    draws = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(draws.integers(0, 255, (80, 96, 3), dtype=np.uint8)).save(folder / "pictures" / f"{number}.png")
    base = specimen(SD1, size=smallest).write(folder / "base.safetensors", torch.float16)
    config = TrainConfig(
        base=str(base), output_name="rex", models_dir=str(folder / "models"), runs_dir=str(folder / "runs"), steps=4,
        snapshot_every=2, resolution=64, preview_steps=2, with_prior_preservation=False, learning_rate=1e-3,
        publish_format="safetensors", concepts=(Concept(instance_dir=str(folder / "pictures"), token="rxz", class_noun="dog"),))
    recipe.train(config, host_in(folder), Progress())
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy of that run, to do with as one likes."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    shutil.copytree(trained / "models", tmp_path / "models")
    run = RunFolder(tmp_path / "runs" / "rex")
    config = replace(run.config(), models_dir=str(tmp_path / "models"), runs_dir=str(tmp_path / "runs"))
    state = run.state()
    run.create(config, run.inputs())
    run.write_state(state)
    return run


@pytest.fixture
def host(tmp_path):
    return host_in(tmp_path)


def host_in(folder):
    return CountingHost(folder / "models", folder / "runs")


def test_each_picture_is_what_the_published_snapshot_renders(run, host, trained):
    before = sorted(path.name for path in host.models_dir.iterdir())
    found = compare(run, host, Progress(), WISHES)
    assert [column.name for column in found.columns] == [BASE, "step-000002", "step-000004"]
    assert found == read_comparison(run) and sorted(path.name for path in host.models_dir.iterdir()) == before
    models = {BASE: trained / "base.safetensors"}
    for name in ("step-000002", "step-000004"):
        models[name] = recipe.publish(run, Progress(), snapshot=run.checkpoints_dir / name, name=f"rex-{name}")[0]
    for name, model in models.items():
        for number, prompt in enumerate(found.prompts):
            for seed in found.seeds:
                request = Txt2Img(prompt, (seed,), steps=2, width=64, height=64)
                expected = next(StandaloneHost(host.models_dir, host.runs_dir).txt2img(model, request, Progress()))
                with Image.open(found.path(run, name, number, seed)) as ours:
                    assert np.abs(np.asarray(ours, int) - np.asarray(expected, int)).max() <= 1, (name, prompt, seed)
    with Image.open(found.shown(run, BASE, 0, 1)) as small:  # a page must not wait for many large pictures
        assert small.format == "JPEG" and small.size == (64, 64)
    measures = [(column.nearness, column.drift) for column in found.columns]
    assert measures[0] == (0.0, 0.0) and all(isinstance(value, float) for pair in measures for value in pair)
    assert (run.path / "report.html").read_text().count("step 2") >= 1


def test_what_was_rendered_before_is_not_rendered_again(run, host):
    compare(run, host, Progress(), WISHES)
    assert host.rendered == 3 * 3 * 2
    first = {path: path.read_bytes() for path in folder_of(run).rglob("*.png")}
    compare(run, host, Progress(), replace(WISHES, count=3))
    assert host.rendered == 3 * 3 * 3 and all(path.read_bytes() == content for path, content in first.items())
    other = compare(run, host, Progress(), replace(WISHES, prompts=("rxz dog in snow",)))
    assert host.rendered == 3 * 3 * 3 + 3 * 2 and other.columns[1].drift is None and other.columns[1].nearness is not None
    assert len(list(folder_of(run).rglob("*.png"))) == 3 * 2


def test_a_stopped_or_failed_comparison_keeps_its_pictures_and_leaves_no_borrowed_file(run, host):
    progress = Progress()
    progress.listen(lambda report: progress.cancel() if report.phase == "comparing" and report.done == 8 else None)
    with pytest.raises(Cancelled):
        compare(run, host, progress, WISHES)
    kept = host.rendered
    assert 8 <= kept < 18 and list(host.models_dir.glob(f"{BORROWED}*")) == []
    host.fails_with = "step-000004"
    with pytest.raises(HostError):
        compare(run, host, Progress(), WISHES)
    assert list(host.models_dir.glob(f"{BORROWED}*")) == []
    host.fails_with = ""
    compare(run, host, Progress(), WISHES)
    assert host.rendered <= 18 + kept  # nothing but what a stop cut off was rendered twice
    assert read_comparison(run).best is not None


def test_what_a_killed_comparison_left_behind_goes_with_the_next_and_what_another_process_uses_stays(run, host):
    left, used = (host.models_dir / f"{BORROWED}{name}-step-000002.safetensors" for name in ("12345678-other", "9abcdef0-rex"))
    half = host.models_dir / f".{left.name}.0123456789ab.partial"
    for path in (left, half, used):
        path.write_bytes(b"x")
    for path in (left, half):
        os.utime(path, (time.time() - 2 * 24 * 3600,) * 2)
    compare(run, host, Progress(), replace(WISHES, count=1, snapshots=("step-000002",)))
    assert not left.exists() and not half.exists() and list(host.models_dir.glob(f"*{BORROWED}*")) == [used]
    assert [column.name for column in read_comparison(run).columns] == [BASE, "step-000002"]
    used.unlink()


def test_a_lora_is_rendered_merged_into_its_base(trained, tmp_path):
    config = replace(RunFolder(trained / "runs" / "rex").config(), lora_rank=2, output_name="lora", runs_dir=str(tmp_path / "runs"),
                     models_dir=str(tmp_path / "models"), learning_rate=0.05)
    host = host_in(tmp_path)
    recipe.train(config, host, Progress())
    run = RunFolder(tmp_path / "runs" / "lora")
    found = compare(run, host, Progress(), replace(WISHES, count=1))
    pixels = [np.asarray(Image.open(found.path(run, column.name, 0, 1))) for column in found.columns]
    assert len(pixels) == 3 and not np.array_equal(pixels[0], pixels[2])


def test_a_damaged_picture_is_told_and_a_link_in_the_run_is_not_followed(run, host, tmp_path):
    damaged = next((run.dataset_dir / "concept-0").glob("*.png"))
    content = damaged.read_bytes()
    damaged.write_bytes(b"no picture")
    with pytest.raises(ResumeError, match="it is damaged, or no picture"):
        compare(run, host, Progress(), WISHES)
    damaged.write_bytes(content)
    shutil.rmtree(folder_of(run))
    (tmp_path / "elsewhere").mkdir()
    folder_of(run).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafePath):
        compare(run, host, Progress(), WISHES)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_what_cannot_be_compared_is_refused(run, host):
    with pytest.raises(ConfigError, match="step-000009"):
        plan(run, Wishes(snapshots=("step-000009",)), host)
    shutil.rmtree(run.checkpoints_dir)
    with pytest.raises(ResumeError, match="no snapshot"):
        plan(run, Wishes(), host)


# ---- going back, and on from there


def published(host, name="rex"):
    from safetensors.torch import load_file

    return load_file(host.models_dir / f"{name}.safetensors")


def test_going_back_and_on_ends_like_the_first_time(run, host):
    compare(run, host, Progress(), replace(WISHES, count=1))
    expected, metrics = published(host), run.metrics()
    assert go_back(run, "step-000002") == 2
    assert run.state().state == "interrupted" and [entry["step"] for entry in run.metrics()] == [1, 2]
    assert [path.name for path in run.checkpoints_dir.iterdir()] == ["step-000002"] and not run.diffusers_dir.exists()
    assert {path.name.split("-")[1] for path in run.previews_dir.iterdir()} == {"000000", "000002"}
    assert [column.name for column in read_comparison(run).columns] == [BASE, "step-000002"]
    (host.models_dir / "rex.safetensors").unlink()
    recipe.resume(run, host, Progress())
    again = published(host)
    assert expected.keys() == again.keys() and all(torch.equal(expected[name], again[name]) for name in expected)
    assert [entry["loss"] for entry in run.metrics()] == [entry["loss"] for entry in metrics]


def test_a_finished_run_goes_on_to_more_steps(run, host):
    with pytest.raises(ResumeError):
        recipe.resume(run, host, Progress())
    assert go_back(run, steps=6) == 4
    with pytest.raises(ResumeError, match="no finished model"):
        recipe.publish(run, Progress())  # that of step 4, which would be told to be of a later one
    assert recipe.resume(run, host, Progress()).steps == 6
    assert [entry["step"] for entry in run.metrics()] == [1, 2, 3, 4, 5, 6] and run.state().state == "finished"


def test_more_steps_stretch_a_schedule_that_falls_and_that_is_told(run):
    go_back(run, steps=6)
    assert "schedule" not in run.log_text()
    files.write_json(run.path / "config.json", {**run.config().to_dict(), "lr_scheduler": "linear"})
    go_back(run, steps=8)
    assert "step 5 has 50% of the highest learning rate, where it would have had 33%" in run.log_text()


@pytest.mark.parametrize(("snapshot", "steps", "error", "told"), [
    ("step-000003", None, ResumeError, "step-000002, step-000004"), ("../rex", None, UnsafePath, "the snapshot is to be"),
    ("step-000004", None, ConfigError, "--steps"), ("step-000002", 2, ConfigError, "--steps"),
    ("", "many", ConfigError, "--steps"), ("", 3, ConfigError, "--steps"), ("", 10**9, ConfigError, "--steps"),
])
def test_what_cannot_be_gone_back_to_is_refused_and_changes_nothing(run, snapshot, steps, error, told):
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(error, match=told):
        go_back(run, snapshot, steps)
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.name != ".lock" and path.is_file()} == {
        path: when for path, when in before.items() if path.name != ".lock"}


def files_of(run):
    return {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file() and path.name != ".lock"}


def test_nothing_is_taken_back_while_a_process_works_on_it(run, host):
    before = files_of(run)
    with run.lock(), pytest.raises(RunBusy):
        recipe.resume(run, host, Progress(), snapshot="step-000002")
    assert files_of(run) == before


@pytest.mark.parametrize("how", [{"snapshot": "step-000002"}, {"learning_rate": 1e-9}])
def test_a_run_that_cannot_go_on_keeps_what_would_be_taken_back(run, host, how):
    """A picture is another now; and a finished run has no steps left to be taken at another rate."""
    run.write_inputs({**run.inputs(), "0/0.png": "another"})
    before = files_of(run)
    with pytest.raises(ResumeError):
        recipe.resume(run, host, Progress(), **how)
    assert files_of(run) == before


class Killed(BaseException):
    pass


def dies(*arguments, **more):
    raise Killed


def from_where(run, host, **how):
    """The step that a resume goes on from, as the log tells it."""
    progress, log = Progress(), []
    progress.listen(lambda report: log.append(report.text) if report.phase == "log" else None)
    recipe.resume(run, host, progress, **how)
    return next(line for line in log if line.startswith("continued from"))


def test_a_snapshot_that_was_half_removed_is_not_gone_on_from(run, host, monkeypatch):
    monkeypatch.setattr(files.shutil, "rmtree", lambda path, **more: dies() if path.exists() else None)
    with pytest.raises(Killed):
        go_back(run, "step-000002")
    monkeypatch.undo()
    assert from_where(run, host, snapshot="step-000002") == "continued from step 2"


@pytest.mark.parametrize("moment", ["remove_folder", "write_json"])
def test_fewer_steps_killed_half_way_end_as_they_began(run, host, monkeypatch, moment):
    """Never a model of more steps under the name of fewer."""
    from dreambooth_ext import rollback

    monkeypatch.setattr(rollback, moment, dies)
    with pytest.raises(Killed):
        go_back(run, "step-000002", steps=3)
    monkeypatch.undo()
    assert run.config().steps == 4
    assert from_where(run, host, snapshot="step-000002", steps=3) == "continued from step 2" and run.state().steps == 3


def test_windows_a_snapshot_that_somebody_has_open_is_told_and_not_gone_on_from(run, host, monkeypatch):
    def refused(source, destination):
        raise PermissionError(errno.EACCES, "used by another process")

    monkeypatch.setattr(files, "_move", refused)
    with pytest.raises(StorageError, match="step-000004 cannot be removed"):
        go_back(run, "step-000002", steps=3)
    monkeypatch.undo()
    assert run.state().state == "finished" and run.config().steps == 4 and run.diffusers_dir.is_dir()


def test_a_stop_that_is_asked_while_a_run_is_taken_back_is_heard(run, host, monkeypatch):
    from dreambooth_ext import rollback

    remove = rollback.remove_folder
    monkeypatch.setattr(rollback, "remove_folder", lambda folder: (run.ask("stop"), remove(folder)))
    with pytest.raises(Cancelled):
        recipe.resume(run, host, Progress(), snapshot="step-000002")


def test_pictures_that_cannot_be_removed_are_not_taken_for_what_comes_in_their_place(run, host, monkeypatch):
    """Windows removes, and moves, no file that somebody looks at, nor the folder around it."""
    compare(run, host, Progress(), replace(WISHES, count=1))
    looked_at = folder_of(run) / "step-000004" / "00-1.png"
    move, unlink = files._move, os.unlink

    def is_open(path):
        return looked_at == Path(path) or Path(path) in looked_at.parents

    def refuse(call):
        def refusing(path, *args, **more):
            if is_open(path) or (Path(str(path)).name == looked_at.name and more.get("dir_fd") is not None):
                raise PermissionError(errno.EACCES, "in use", str(path))
            return call(path, *args, **more)
        return refusing

    monkeypatch.setattr(files, "_move", refuse(move))
    monkeypatch.setattr(os, "unlink", refuse(unlink))
    with pytest.raises(StorageError, match="cannot be removed"):
        compare(run, host, Progress(), replace(WISHES, count=1, prompts=("a cat",)))
    with pytest.raises(StorageError, match="cannot be removed"):
        go_back(run, "step-000002")
    monkeypatch.undo()
    assert go_back(run, "step-000002") == 2 and not looked_at.exists()
