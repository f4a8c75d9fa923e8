"""TensorBoard's files where it is installed, nothing where it is not, and a run that goes on whatever TensorBoard does."""

import sys
import types
from importlib.util import find_spec

import pytest
from PIL import Image

from dreambooth_ext import tensorboard_log as log
from dreambooth_ext.progress import Progress
from dreambooth_ext.run_folder import RunFolder


def train(run, progress, first=1):
    with log.tensorboard_log(run, progress):
        progress.start("training", 4)
        for step in range(first, 5):
            progress.report(step, 4, loss=1 / step, learning_rate=1e-5, memory_gib=None, validation_loss=0.5)
        progress.report(4, 4, "preview", image=Image.new("RGB", (8, 8), (255, 0, 0)))


@pytest.fixture
def played(monkeypatch):
    """A TensorBoard that remembers what it is given."""
    written = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            written.append(("open", folder, purge_step))

        def add_scalar(self, tag, value, step):
            written.append((tag, value, step))

        def add_image(self, tag, pixels, step):
            written.append((tag, pixels.shape, step))

        def close(self):
            written.append(("close",))

    monkeypatch.setattr(log, "find_spec", lambda name: True)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    return written


def test_figures_and_previews_are_written_and_a_resume_voids_what_it_repeats(played, tmp_path):
    train(RunFolder(tmp_path), Progress(), first=3)
    assert played[0] == ("open", str(tmp_path / "tensorboard"), 3) and played[-1] == ("close",)
    assert [entry for entry in played if entry[0] == "loss/train"] == [("loss/train", 1 / 3, 3), ("loss/train", 1 / 4, 4)]
    assert ("loss/validation", 0.5, 4) in played and ("learning_rate", 1e-5, 4) in played and ("previews", (3, 8, 8), 4) in played
    assert not any(entry[0] == "memory/gib" for entry in played)


def test_without_it_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(log, "find_spec", lambda name: None)
    train(RunFolder(tmp_path), Progress())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("act", ["add_scalar", "close"])
def test_whatever_it_does_the_run_goes_on(played, tmp_path, monkeypatch, act):
    heard = []
    progress = Progress(lambda report: heard.append(report.text) if report.phase == "log" else None)
    monkeypatch.setattr(sys.modules["torch.utils.tensorboard"].SummaryWriter, act, lambda *_: 1 / 0)
    train(RunFolder(tmp_path), progress)
    assert heard == ["TensorBoard's files could not be written (ZeroDivisionError: division by zero)."]


if find_spec("tensorboard"):  # it is no part of any set of versions; where it is there, its own reader is asked

    def test_its_own_reader_finds_them(tmp_path):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        train(RunFolder(tmp_path), Progress())
        events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
        assert [(event.step, event.value) for event in events.Scalars("loss/train")] == [
            (step, pytest.approx(1 / step)) for step in range(1, 5)]
        assert events.Images("previews")[0].width == 8
