"""In a run the pictures are looked at first: what is found is told and kept, and never stops the run."""

import json

import pytest

from dreambooth_ext import recipe
from dreambooth_ext.config import Concept, TrainConfig
from dreambooth_ext.errors import Cancelled
from dreambooth_ext.playground import subject
from dreambooth_ext.progress import Progress
from dreambooth_ext.run_folder import RunFolder


@pytest.fixture
def corridor(tmp_path):
    folder = tmp_path / "pictures"
    subject.draw_pictures(folder, 5)
    config = TrainConfig(base="x", output_name="rxz", concepts=(Concept(str(folder), token="rxz", class_noun="square"),))
    told = []
    progress = Progress(lambda report: told.append(report.text) if report.phase == "log" else None)
    return folder, config, RunFolder(tmp_path / "run"), progress, told


def test_findings_are_told_and_kept(corridor):
    folder, config, run, progress, told = corridor
    (folder / "again.png").write_bytes((folder / "subject_01.png").read_bytes())
    for number in range(15):
        (folder / f"bad{number}.png").write_bytes(b"x")
    recipe.audit_pictures(config, run, 64, progress)
    assert len(told) == recipe.FINDINGS_TOLD + 1 and "cannot be used" in told[0]
    assert "6 pictures looked at" in told[-1] and "more findings are in audit.json" in told[-1]
    kept = json.loads((run.path / "audit.json").read_text(encoding="utf-8"))["concepts"][0]
    assert kept["resolution"] == 64 and len(kept["unreadable"]) == 15
    assert [each["name"] for each in kept["pictures"] if each["advice"] == "drop"] == ["subject_01.png"]
    told.clear()
    recipe.audit_pictures(config, run, 64, progress)  # as a resume does
    assert told == []


def test_a_style_is_looked_at_as_a_style(corridor):
    folder, config, run, progress, _ = corridor
    config = TrainConfig(base="x", output_name="rxz", concepts=(Concept(str(folder), token="rxz", class_noun="artwork style"),))
    recipe.audit_pictures(config, run, 64, progress)
    assert json.loads((run.path / "audit.json").read_text(encoding="utf-8"))["concepts"][0]["kind"] == "style"


def test_whatever_it_meets_with_the_run_goes_on(corridor, monkeypatch):
    from dreambooth_ext.dataset import audit

    folder, config, run, progress, told = corridor
    for error in (MemoryError(), ZeroDivisionError(), OSError(28, "No space left on device")):
        monkeypatch.setattr(audit, "_audit_one", lambda *given, error=error: (_ for _ in ()).throw(error))
        recipe.audit_pictures(config, run, 64, progress)
        assert "the run goes on" in told[-1] and not (run.path / "audit.json").exists()
    monkeypatch.undo()
    for path in folder.iterdir():
        path.unlink()
    recipe.audit_pictures(config, run, 64, progress)
    assert "the run goes on" in told[-1]


def test_who_stops_the_run_stops_the_looking(corridor):
    _, config, run, progress, _ = corridor
    progress.cancel()
    with pytest.raises(Cancelled):
        recipe.audit_pictures(config, run, 64, progress)
