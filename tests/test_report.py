"""Reports stand alone, escape what came from outside, and tell no more of the machine than asked."""

import json
import zipfile

import pytest
from PIL import Image

from dreambooth_ext.config import Concept, TrainConfig
from dreambooth_ext.report import explain_failure, report_html, write_report
from dreambooth_ext.run_folder import RunFolder, RunState

ATTACK = "<script>alert(1)</script>"


@pytest.fixture
def run(tmp_path):
    config = TrainConfig(base="/home/someone/secret/base.ckpt", output_name="r",
                         concepts=(Concept(instance_dir="/home/someone/family", token="rxz", class_noun=ATTACK),))
    run = RunFolder(tmp_path / "r")
    run.create(config)
    run.write_state(RunState("failed", 2, 5, f"lost {ATTACK}"))
    for step in (1, 2):
        run.append_metrics({"step": step, "loss": 0.5 / step, "seconds": 1.0})
    run.log(f"/home/someone/family/1.png {ATTACK} rxz")
    run.previews_dir.mkdir()
    Image.new("RGB", (64, 64), "red").save(run.previews_dir / "step-000002-0.png")
    return run


def test_what_came_from_outside_is_escaped(run):
    page = report_html(run)
    assert ATTACK not in page and "&lt;script&gt;" in page


def test_the_page_needs_nothing_else_and_names_no_folder(run):
    page = write_report(run).read_text()
    assert "http://" not in page and "https://" not in page and "src=\"data:image/jpeg" in page
    assert "/home/someone" not in page and str(run.path) not in page
    assert "/home/someone/secret/base.ckpt" in report_html(run, with_paths=True)


def test_windows_paths_are_left_out_however_an_error_writes_them(tmp_path):
    """Python doubles the backslashes of a path in its errors, and JSON doubles them once more."""
    folder = "C:\\Users\\Jürgen\\photos"
    config = TrainConfig(base="b.ckpt", output_name="r",
                         concepts=(Concept(instance_dir=folder, token="rxz", class_noun="dog"),))
    run = RunFolder(tmp_path / "r")
    run.create(config)
    why = str(PermissionError(13, "Permission denied", f"{folder}\\1.png"))
    run.write_state(RunState("failed", 2, 5, why))
    run.log(why)
    with zipfile.ZipFile(explain_failure(run, tmp_path / "failure.zip")) as archive:
        told = [archive.read(name).decode() for name in archive.namelist()]
    for text in told:
        assert "rgen" not in text and "photos" not in text
    assert sum("Permission denied" in text for text in told) == 2


def test_words_that_are_also_the_usual_folders_names_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = TrainConfig(base="b.ckpt", output_name="rex", concepts=(Concept(instance_dir="pics", token="rxz", class_noun="dog"),))
    run = RunFolder.for_config(config)
    run.create(config)
    run.log(f"dreambooth_ext/models/load.py read {tmp_path}/models/x.ckpt")
    with zipfile.ZipFile(explain_failure(run, tmp_path / "failure.zip")) as archive:
        log = archive.read("log.txt").decode()
    assert "dreambooth_ext/models/load.py" in log and str(tmp_path) not in log


def test_a_failure_is_explained_without_paths_and_prompts(run, tmp_path):
    with zipfile.ZipFile(explain_failure(run, tmp_path / "failure.zip")) as archive:
        everything = "\n".join(archive.read(name).decode() for name in archive.namelist())
        assert json.loads(archive.read("settings.json"))["learning_rate"] == "5e-06"
    assert "/home/someone" not in everything and "rxz" not in everything
    with zipfile.ZipFile(explain_failure(run, tmp_path / "all.zip", with_paths=True, with_prompts=True)) as archive:
        assert "/home/someone/family/1.png" in archive.read("log.txt").decode()
