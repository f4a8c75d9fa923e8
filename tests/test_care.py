"""The commands that look after runs and settings."""

import json
import shlex
import signal
import threading
import zipfile
from dataclasses import replace

import pytest
from PIL import Image

from dreambooth_ext import recipe
from dreambooth_ext.cli import BAD_INPUT, DONE, FAILED, INTERRUPTED, run
from dreambooth_ext.commands import care
from dreambooth_ext.config import Concept, TrainConfig
from dreambooth_ext.errors import Cancelled, HostError, ResumeError
from dreambooth_ext.run_folder import RunFolder, RunState


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "pictures" / "a.png")
    return TrainConfig(base="base.ckpt", output_name="rex", steps=8, learning_rate=1e-5, concepts=(
        Concept(instance_dir="pictures", token="rxz", class_noun="dog"),))


@pytest.fixture
def rex(config):
    folder = RunFolder.for_config(config)
    folder.create(config)
    folder.write_state(RunState("failed", 4, 8, "the loss became nan\nLower it."))
    folder.append_metrics({"step": 4, "loss": 0.5})
    folder.log("something about rxz")
    return folder


def test_a_run_is_shown_and_its_settings_start_another(rex, capsys, tmp_path):
    assert run(["show", "rex"]) == DONE
    told = capsys.readouterr().out
    assert "failed, step 4 of 8" in told and "the loss became nan" in told and "loss 0.5" in told and "something about rxz" in told
    assert run(["show", "rex", "--json"]) == DONE and json.loads(capsys.readouterr().out)["figures"] == {"step": 4, "loss": 0.5}
    assert run(["settings", "rex"]) == DONE
    (tmp_path / "again.json").write_text(capsys.readouterr().out)
    again = TrainConfig.read(tmp_path / "again.json").validate()
    assert again.output_name == "rex-2" and again.learning_rate == 1e-5


def test_a_failure_is_explained_and_reported(rex, capsys, tmp_path):
    assert run(["explain", "rex"]) == DONE and run(["explain", "rex", "--with-prompts", "--out", "all.zip"]) == DONE
    for name, told in (("rex-failure.zip", False), ("all.zip", True)):
        with zipfile.ZipFile(tmp_path / name) as archive:
            assert ("rxz" in archive.read("log.txt").decode()) is told
    assert run(["explain", "rex", "--out", "base.ckpt"]) == BAD_INPUT
    assert run(["report", "rex"]) == DONE and "the loss became nan" in (rex.path / "report.html").read_text()


def test_a_run_is_deleted_only_if_that_is_meant(rex, capsys, monkeypatch):
    assert run(["delete", "rex"]) == BAD_INPUT and rex.exists  # nobody is there to be asked
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    for answer, there in (("", True), ("n", True), ("y", False)):
        monkeypatch.setattr("builtins.input", lambda asked, answer=answer: answer)
        assert run(["delete", "rex"]) == DONE and rex.exists is there
    assert run(["delete", "rex", "--yes"]) == BAD_INPUT


def test_a_run_whose_settings_are_damaged_is_told_shown_and_deleted(rex, capsys):
    (rex.path / "config.json").write_text("{")
    assert run(["runs"]) == DONE and "config.json is not valid JSON" in capsys.readouterr().out
    assert run(["show", "rex"]) == DONE and "something about rxz" in capsys.readouterr().out
    assert run(["delete", "rex", "--yes"]) == DONE and not rex.path.exists()


def test_commands_to_be_typed_can_be_typed(capsys, tmp_path, config):
    spaced = replace(config, output_name="my dog", runs_dir="my runs")
    RunFolder.for_config(spaced).create(spaced)
    assert run(["ask", "my dog", "stop", "--runs-dir", "my runs"]) == BAD_INPUT
    command = capsys.readouterr().err.partition("python -m dreambooth_ext ")[2]
    assert shlex.split(command) == ["resume", "my dog", "--runs-dir", "my runs"]


def test_a_comparison_that_fails_after_it_has_begun_is_no_bad_input(rex, monkeypatch):
    def fails(run, host, progress, wishes):
        progress.start("comparing", 9)
        raise ResumeError("a.png is to be measured", "it is damaged", "Delete it.")

    monkeypatch.setattr(care, "compare_snapshots", fails)
    assert run(["compare", "rex"]) == FAILED


def test_json_is_one_object_a_line(rex, capsys, config):
    for command in (["settings", "rex"], ["presets", "face"], ["runs"], ["show", "rex"]):
        assert run([*command, "--json"]) == DONE
        line, = capsys.readouterr().out.splitlines()
        assert isinstance(json.loads(line), dict)
    assert run(["check", "--preset", "face", "--instance-dir", "pictures", "--base", "b.ckpt", "--json"]) == BAD_INPUT
    faults = json.loads(capsys.readouterr().out)["faults"]
    assert len(faults) == 2 and not any("class" in fault for fault in faults)  # the preset names the class
    assert run(["show", "nobody", "--json"]) == BAD_INPUT
    told = json.loads(capsys.readouterr().out)
    assert told["error"].startswith("nobody is to be opened") and told["faults"] == ["there is no such run in runs"]


def test_without_a_screen_the_folder_is_named(rex, capsys, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert run(["open", "rex"]) in (FAILED, BAD_INPUT) and str(rex.path.name) in capsys.readouterr().err


def test_another_process_can_ask_a_run_that_goes_on(config, rex, capsys):
    """Wishes are files in the run's folder, which whoever works on it reads with each step."""
    from dreambooth_ext.errors import Cancelled
    from dreambooth_ext.progress import Progress
    from dreambooth_ext.record import told_in_the_run_folder

    assert run(["ask", "rex", "stop"]) == BAD_INPUT  # nobody works on it
    progress, begun, both, taken = Progress(), threading.Event(), threading.Event(), []

    def work():
        with rex.lock(), told_in_the_run_folder(rex, progress):
            begun.set()
            progress.start("training", 100)
            while not progress.cancelled:
                progress.report(1, 100)
                taken.extend(wish for wish in ("preview", "snapshot") if progress.take_request(wish))
                if len(taken) == 2:
                    both.set()
                threading.Event().wait(0.01)
            raise Cancelled

    def guarded():
        with pytest.raises(Cancelled):
            work()

    thread = threading.Thread(target=guarded)
    thread.start()
    assert begun.wait(120)
    for wish in ("preview", "snapshot"):
        assert run(["ask", "rex", wish]) == DONE
    answered = both.wait(120)
    assert run(["ask", "rex", "discard"]) == DONE
    thread.join(120)
    assert answered and taken == ["preview", "snapshot"] and not rex.path.exists()


def test_who_thinks_better_of_discarding_a_run_keeps_it(config, rex, monkeypatch):
    """Ctrl+C while it is waited for; the run itself has been asked to stop, and keeps what it has learnt."""
    looks = iter([True, True, False])

    def is_held(run):
        held = next(looks)
        if not held:
            signal.raise_signal(signal.SIGINT)
        return held

    monkeypatch.setattr(RunFolder, "is_held", is_held)
    assert run(["ask", "rex", "discard"]) == INTERRUPTED and rex.exists


def test_a_run_that_was_finished_before_it_could_be_discarded_is_kept_and_that_is_said(rex, monkeypatch, capsys):
    looks = iter([True, True, False])

    def is_held(run):
        held = next(looks)
        if not held:
            run.write_state(replace(run.state(), state="finished"))
        return held

    monkeypatch.setattr(RunFolder, "is_held", is_held)
    assert run(["ask", "rex", "discard"]) == BAD_INPUT and rex.exists
    assert "it was finished before it could be stopped, and is kept" in capsys.readouterr().err


def test_a_queue_is_worked_off_in_order_and_judged_before_it_begins(config, rex, tmp_path, capsys, monkeypatch):
    order = []

    def train(config, host, progress):
        order.append(config.output_name)
        if config.output_name == "b":
            raise HostError("b is to be trained", "it fails", "Try again.")
        if config.output_name == "gone":
            raise FileNotFoundError(2, "the drive is gone", "base.ckpt")

    monkeypatch.setattr(recipe, "train", train)

    def file(name, **changes):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({**config.to_dict(), "output_name": name, **changes}))
        return str(path)

    assert run(["queue", file("c"), file("b"), file("a")]) in (FAILED, BAD_INPUT) and order == ["c", "b", "a"]
    assert "b failed" in capsys.readouterr().err
    order.clear()
    assert run(["queue", file("gone"), file("a")]) in (FAILED, BAD_INPUT) and order == ["gone", "a"]
    assert "gone failed" in capsys.readouterr().err
    order.clear()
    assert run(["queue", file("a"), file("d", steps=0), file("e", seed=-1)]) == BAD_INPUT
    told = capsys.readouterr().err
    assert f"{tmp_path / 'd.json'}: --steps: 0 is less than 1" in told and f"{tmp_path / 'e.json'}: --seed" in told
    assert run(["queue", file("a"), file("rex")]) == BAD_INPUT
    assert run(["queue", file("a"), file("a")]) == BAD_INPUT and run(["queue", file("n"), file("N")]) == BAD_INPUT
    assert run(["queue", file("a"), file("Rex")]) == BAD_INPUT and order == []
    assert run(["queue", file("a"), file("c")]) == DONE and order == ["a", "c"]
    told = capsys.readouterr().err
    assert "Run 1 of 2: a" in told and "Run 2 of 2: c" in told  # their progress, which comes between, names neither

    def stopped(config, host, progress):
        raise Cancelled

    monkeypatch.setattr(recipe, "train", stopped)
    assert run(["queue", file("a"), file("c")]) == INTERRUPTED
    told = capsys.readouterr().err
    assert f"Not begun: {tmp_path / 'c.json'}" in told and "resume a" in told


def test_runs_of_one_queue_do_not_hear_of_each_other(tmp_path):
    """One goes on elsewhere, while the next one is trained here: its wishes are its own, and so is its log."""
    from dreambooth_ext.progress import Progress
    from dreambooth_ext.record import told_in_the_run_folder

    runs, progress = [RunFolder(tmp_path / name) for name in ("one", "two")], Progress()
    for each in runs:
        each.create(TrainConfig())
        with told_in_the_run_folder(each, progress):
            progress.log(f"trains {each.path.name}")
            if each is runs[1]:
                runs[0].ask("stop")
                progress.report(1, 10)
    assert not progress.cancelled and runs[0].take_wishes() == ["stop"]
    assert ["trains one" in runs[0].log_text(), "trains two" in runs[0].log_text()] == [True, False]


def test_presets_and_imports(config, capsys, tmp_path, monkeypatch):
    flags = ["--base", "b.ckpt", "--output-name", "x", "--instance-dir", "pictures", "--token", "rxz", "--class-noun", "dog"]
    assert run(["save-preset", "mine", "--learning-rate", "1e-6", "--snr-gamma", "5"]) == DONE
    assert run(["presets"]) == DONE and capsys.readouterr().out.splitlines()[-1] == "mine"
    assert run(["presets", "mine"]) == DONE and json.loads(capsys.readouterr().out) == {"learning_rate": 1e-6, "snr_gamma": 5.0}
    seen = []
    monkeypatch.setattr(recipe, "train", lambda config, host, progress: seen.append(config) or recipe.Finished(None, (), 0, 0.0))
    assert run(["train", *flags, "--preset", "mine", "--snr-gamma", "3"]) == DONE
    assert (seen[0].learning_rate, seen[0].snr_gamma, seen[0].token if hasattr(seen[0], "token") else "") == (1e-6, 3.0, "")
    assert run(["train", *flags, "--preset", "nothing"]) == BAD_INPUT and run(["delete-preset", "style"]) == BAD_INPUT
    assert run(["delete-preset", "mine"]) == DONE and run(["presets", "mine"]) == BAD_INPUT
    (tmp_path / "db_config.json").write_text(json.dumps({"model_name": "old", "attention": "x", "concepts_list": []}))
    assert run(["import", "db_config.json"]) == DONE and "attention: it has no counterpart here" in capsys.readouterr().out
    assert json.loads((tmp_path / "settings.json").read_text())["output_name"] == "old"
    assert run(["import", "db_config.json"]) == BAD_INPUT  # settings.json is there
    assert run(["models"]) == DONE
