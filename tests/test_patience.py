"""A disk that is full or gone is waited for, and what cannot change is not."""

import pytest

from dreambooth_ext import patience
from dreambooth_ext.errors import Cancelled, DiskFull, RunBusy, StorageError, UnsafePath
from dreambooth_ext.patience import patiently
from dreambooth_ext.progress import Progress


def told_by(progress):
    lines = []
    progress.listen(lambda report: lines.append(report.text) if report.phase == "log" else None)
    return lines


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(patience, "LOOK_AGAIN_S", 0.01)


@pytest.mark.parametrize("error", [DiskFull, StorageError])
def test_it_goes_on_when_room_is_made(error):
    progress, tries, said = Progress(), [], []
    lines = told_by(progress)
    progress.listen(lambda report: said.append(report.text) if report.phase != "log" else None)  # what the page shows

    def write():
        tries.append(1)
        if len(tries) < 4:
            raise error("model.ckpt is to be written", "the disk is full", "Make room.")
        return "written"

    assert patiently(write, progress, 10) == "written"
    assert len(tries) == 4
    assert said[0].startswith("Paused: the disk is full. Make room") and said[-1] == ""
    assert len(lines) == 2 and "Paused" in lines[0] and "disk is full" in lines[0] and "goes on" in lines[1]


def test_after_the_time_it_ends_with_the_reason():
    def write():
        raise DiskFull("model.ckpt is to be written", "the disk is full")

    with pytest.raises(DiskFull):
        patiently(write, Progress(), 0.001)


def test_a_pause_ends_when_the_user_stops():
    progress = Progress()
    progress.listen(lambda report: progress.cancel())

    def write():
        raise DiskFull("model.ckpt is to be written", "the disk is full")

    lines = told_by(progress)
    with pytest.raises(Cancelled):
        patiently(write, progress, 10)
    assert "model.ckpt is to be written, and is not" in lines[-1]  # who stops a run believes that all is kept


@pytest.mark.parametrize("error", [UnsafePath, RunBusy, ValueError])
def test_what_waiting_cannot_change_is_told_at_once(error):
    progress, tries = Progress(), []
    lines = told_by(progress)

    def write():
        tries.append(1)
        raise error("a", "b", "c")

    with pytest.raises(error):
        patiently(write, progress, 10)
    assert len(tries) == 1 and not lines
