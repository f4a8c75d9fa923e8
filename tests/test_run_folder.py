"""A run's folder: state that survives damage, metrics that survive a crash, a lock that survives neither."""

import errno
import multiprocessing
import os
import shutil
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from dreambooth_ext import file_lock, files, inputs, recipe, rollback
from dreambooth_ext.config import Concept, TrainConfig
from dreambooth_ext.errors import Cancelled, ConfigError, HostError, ResumeError, RunBusy, StorageError
from dreambooth_ext.progress import Progress
from dreambooth_ext.record import told_in_the_run_folder
from dreambooth_ext.run_folder import RunFolder, RunState, list_runs

CONFIG = TrainConfig(base="b", output_name="r", concepts=(Concept(instance_dir="p", token="t", class_noun="dog"),))


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path / "r")
    run.create(CONFIG)
    return run


def test_no_wish_is_lost_however_asking_and_taking_meet(run):
    """One thread asks, as soon as its last wish was taken; the other takes all the while."""
    answered, over = threading.Event(), threading.Event()

    def work():
        while not over.is_set():
            if "stop" in run.take_wishes():
                answered.set()

    worker = threading.Thread(target=work)
    worker.start()
    try:
        for _ in range(2000):
            answered.clear()
            run.ask("stop")
            assert answered.wait(120)
    finally:
        over.set()
        worker.join()
    assert not list(run.path.glob("*.wish"))


def test_wishes_are_taken_once_and_those_of_a_former_process_not_at_all(run):
    run.ask("stop")
    with run.lock():
        assert run.take_wishes() == []
        for wish in ("snapshot", "preview", "snapshot"):
            run.ask(wish)
        assert run.take_wishes() == ["preview", "snapshot"] and run.take_wishes() == []


def test_what_is_asked_of_a_run_that_is_just_being_made_is_neither_lost_nor_in_its_way(tmp_path):
    run = RunFolder(tmp_path / "new")
    with run.lock():
        run.ask("stop")
        run.require_free()
        run.create(CONFIG)
        assert run.take_wishes() == ["stop"]


def test_a_wish_that_cannot_be_left_is_told(tmp_path):
    with pytest.raises(StorageError):
        RunFolder(tmp_path / "gone").ask("stop")


def test_config_and_state_come_back(run):
    run.write_state(RunState("training", 3, 10, published=("a.ckpt",)))
    assert run.config() == replace(CONFIG, runs_dir=str(run.path.parent))
    assert (run.state().state, run.state().step, run.state().published) == ("training", 3, ("a.ckpt",))


def test_a_run_that_nobody_works_on_any_more_is_listed_as_interrupted(run):
    run.write_state(RunState("training", 3, 10))
    with run.lock():
        assert run.is_held() and run.summary()["state"] == "training" and run.summary()["step"] == 3
        for step in (3, 4, 5):
            run.append_metrics({"step": step, "loss": 0.5})
        with run.metrics_path.open("a") as stream:
            stream.write('{"step": 6, "lo')
        assert run.summary()["step"] == 5  # as far as it is, whatever process works on it
    told = run.summary()
    assert (told["state"], told["step"], told["message"]) == ("interrupted", 3, "it ended without a word, and can be resumed")
    assert run.state().state == "training"  # what is written stays: only looking changes nothing
    (run.path / ".lock").unlink()
    for step, file in ((4, "state.pt"), (8, "state.pt"), (9, "unfinished")):
        (run.checkpoints_dir / f"step-{step:06d}").mkdir(parents=True)
        (run.checkpoints_dir / f"step-{step:06d}" / file).write_bytes(b"x")
    assert (run.summary()["state"], run.summary()["step"]) == ("interrupted", 8)  # from which it would go on
    for state in ("new", "finished", "failed"):
        run.write_state(RunState(state, message="so it is"))
        assert (run.summary()["state"], run.summary()["message"]) == (state, "so it is")


def test_looking_whether_a_run_is_held_keeps_nobody_from_working_on_it(run, monkeypatch):
    with run.lock():
        pass
    with (run.path / ".lock").open("rb") as looking:
        file_lock.lock(looking.fileno(), shared=True)
        monkeypatch.setattr(file_lock.time, "sleep", lambda seconds: looking.close())
        with run.lock():
            assert run.is_held()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"state": 3, "step": {}}', "\x00\x01"])
def test_a_damaged_state_is_no_crash(run, text):
    (run.path / "state.json").write_text(text)
    assert isinstance(run.state(), RunState)


@pytest.mark.parametrize("for_how_long", [3, 10**6])
def test_a_state_that_cannot_be_read_for_the_moment_is_not_written_anew(run, monkeypatch, for_how_long):
    """A virus scanner has the file, or the network drive does not answer: what it says must not be lost."""
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    written = RunState("training", 3, 10, started_s=5.0, published=("a.ckpt",))
    run.write_state(written)
    read, refused = Path.read_text, []

    def read_text(path, *args, **kwargs):
        if path.name == "state.json" and len(refused) < for_how_long:
            refused.append(path)
            raise PermissionError(errno.EACCES, "in use")
        return read(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", read_text)
    assert run.state().state == "new" and run.state().state == "new"  # whoever only looks does not wait
    if for_how_long == 3:
        assert replace(run.known_state(), updated_s=0.0) == written
        return
    with pytest.raises(StorageError):
        run.known_state()
    with pytest.raises(StorageError):
        recipe._enter(run, "publishing")
    with pytest.raises(StorageError):
        rollback.go_back(run, steps=20)
    refused.clear()
    with pytest.raises(Cancelled), told_in_the_run_folder_as_it_ends(run, monkeypatch, read):
        raise Cancelled
    assert replace(run.state(), updated_s=0.0) == written


@contextmanager
def told_in_the_run_folder_as_it_ends(run, monkeypatch, read):
    """The state can be read when the work begins, and no more when it ends."""
    unreadable = Path.read_text
    monkeypatch.setattr(Path, "read_text", read)
    try:
        with told_in_the_run_folder(run, Progress()):
            monkeypatch.setattr(Path, "read_text", unreadable)
            yield
    finally:
        monkeypatch.setattr(Path, "read_text", read)


@pytest.mark.parametrize("error", [Cancelled(), KeyboardInterrupt(), RuntimeError("the host broke"),
                                   HostError("the model is to be loaded", "it is gone", "Choose one.")])
def test_what_goes_wrong_after_a_run_was_finished_does_not_unfinish_it(run, error):
    with pytest.raises(type(error)), told_in_the_run_folder(run, Progress()):
        run.write_state(RunState("finished", 10, 10, published=("a.ckpt",)))
        raise error
    assert (run.state().state, run.state().message, run.state().failure) == ("finished", "", "")
    assert "After it was finished: " in run.log_text()


@pytest.mark.parametrize(("error", "state"), [(Cancelled(), "interrupted"), (RuntimeError("the host broke"), "failed")])
def test_the_step_that_is_told_is_the_one_from_which_it_would_go_on(run, error, state):
    """Not the last one taken: its snapshot may have found no room."""
    progress = Progress()
    for kept in (0, 4):
        if kept:
            (run.checkpoints_dir / f"step-{kept:06d}").mkdir(parents=True)
            (run.checkpoints_dir / f"step-{kept:06d}" / "state.pt").write_bytes(b"x")
        with pytest.raises(type(error)), told_in_the_run_folder(run, progress):
            progress.start("training", 10)
            progress.report(kept + 3, 10)
            raise error
        assert (run.state().state, run.state().step, run.summary()["step"]) == (state, kept, kept)


def test_a_line_cut_off_by_a_crash_is_dropped_and_a_resumed_step_counts_once(run):
    for step in (1, 2, 3):
        run.append_metrics({"step": step, "loss": step / 10})
    with run.metrics_path.open("a") as stream:
        stream.write('{"step": 4, "lo')
    assert [entry["step"] for entry in run.metrics()] == [1, 2, 3]
    run.truncate_metrics(2)
    run.append_metrics({"step": 3, "loss": 9.0})
    assert [entry["loss"] for entry in run.metrics()] == [0.1, 0.2, 9.0]


def _hold(path, held, release):
    with RunFolder(path).lock():
        held.set()
        release.wait(120)


def _hold_and_die(path, held):
    with RunFolder(path).lock():
        held.set()
        os._exit(9)


def test_one_process_at_a_time_and_the_lock_dies_with_its_process(run):
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(run.path, held, release))
    other.start()
    assert held.wait(120)
    with pytest.raises(RunBusy), run.lock():
        pass
    release.set()
    other.join(120)
    held.clear()
    killed = context.Process(target=_hold_and_die, args=(run.path, held))
    killed.start()
    killed.join(120)
    with run.lock():
        pass


def test_no_run_there(tmp_path):
    with pytest.raises(ResumeError, match="runs"):
        RunFolder(tmp_path / "x").config()
    assert list_runs(tmp_path / "none") == []


def test_runs_are_listed_newest_first(tmp_path):
    for number, name in enumerate(["a", "b", "c"]):
        run = RunFolder(tmp_path / name)
        run.create(CONFIG)
        run.write_state(RunState(started_s=float(number)))
    (tmp_path / "no run").mkdir()
    assert [run.path.name for run in list_runs(tmp_path)] == ["c", "b", "a"]


def test_a_run_is_there_only_when_it_is_whole(tmp_path):
    """A start that was killed leaves a name that can be used; somebody else's folder cannot."""
    run = RunFolder(tmp_path / "r")
    run.require_free()
    with run.lock():
        run.write_inputs({})
        (run.path / ".state.json.x1.partial").write_text("half")
    run.require_free()
    (run.path / "holiday.png").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"holiday\.png"):
        run.require_free()
    (run.path / "holiday.png").unlink()
    run.create(CONFIG, {"base": "1"})
    assert run.exists and run.inputs() == {"base": "1"}
    with pytest.raises(ConfigError, match="there already"):
        run.require_free()


def test_names_that_differ_in_case_alone_are_one(tmp_path):
    RunFolder(tmp_path / "Rex").create(CONFIG)
    with pytest.raises(ConfigError, match="a run named Rex is there already"):
        RunFolder(tmp_path / "rEX").require_free()
    RunFolder(tmp_path / "rex-2").require_free()
    RunFolder(tmp_path / "none" / "rex").require_free()


def test_a_folder_that_is_gone_is_not_made_anew(run):
    """The drive's place is an empty folder of another disk: what is written there would be lost."""
    run.require_there()
    for path in sorted(run.path.rglob("*"), reverse=True):
        path.unlink()
    run.path.rmdir()
    with pytest.raises(StorageError, match="gone"):
        run.require_there()
    assert not run.path.exists()


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOTEMPTY])
def test_windows_a_page_reads_a_preview_while_the_run_is_deleted(run, monkeypatch, number):
    tries, remove = Counter(), shutil.rmtree

    def in_use(path):
        tries[path.name] += 1
        if tries[path.name] <= 2:
            raise OSError(number, "in use")
        remove(path)

    (run.path / "previews").mkdir(exist_ok=True)
    (run.path / "previews" / "step-000100-0.png").write_bytes(b"x")
    monkeypatch.setattr(shutil, "rmtree", in_use)
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    with pytest.raises(StorageError, match="in use"):
        run.delete()
    assert run.exists and tries["previews"] == 1
    monkeypatch.setattr(files.sys, "platform", "win32")
    run.delete()
    assert not run.path.exists() and tries["previews"] == 3


def test_a_lock_that_was_deleted_with_its_run_is_no_lock(run):
    with run.lock():
        (run.path / ".lock").unlink()  # as `delete` does
        other = RunFolder(run.path)
        with other.lock():
            pass
    run.delete()
    assert not run.path.exists()


@pytest.mark.parametrize("for_how_long", [3, 10**6])
def test_inputs_that_cannot_be_read_for_the_moment_are_not_taken_for_others(run, monkeypatch, for_how_long):
    """It would be said that all had changed, or the model's card and the class images would know of no base."""
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    run.write_inputs({"base": "aaa"})
    read, refused = Path.read_text, []

    def read_text(path, *args, **kwargs):
        if path.name == "inputs.json" and len(refused) < for_how_long:
            refused.append(path)
            raise PermissionError(errno.EACCES, "in use")
        return read(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", read_text)
    assert run.inputs() == {}  # whoever only looks does not wait
    if for_how_long == 3:
        inputs.require_same_inputs(run, {"base": "aaa"})
        return
    with pytest.raises(StorageError, match=r"inputs\.json is to be read .*: in use"):
        inputs.require_same_inputs(run, {"base": "aaa"})
    with pytest.raises(StorageError, match=r"inputs\.json"):
        recipe.provenance(CONFIG, run)


@pytest.mark.skipif(os.name == "nt", reason="Windows removes no open file")
def test_deleting_a_run_takes_no_lock_of_who_begins_one_of_its_name_at_once(run, monkeypatch):
    other, unlock = RunFolder(run.path).lock(), run.lock

    @contextmanager
    def lock():
        with unlock():
            yield
        other.__enter__()

    monkeypatch.setattr(run, "lock", lock)
    run.delete()
    assert run.is_held()
    with pytest.raises(RunBusy), RunFolder(run.path).lock():
        pass
    other.__exit__(None, None, None)


def test_a_run_that_was_moved_has_its_choices_with_it(run, tmp_path):
    config = TrainConfig(concepts=(Concept(choices=str(run.choices_path(0))), Concept(choices="elsewhere.json"), Concept()))
    run.create(config)
    run.choices_path(0).write_text("{}")
    moved = RunFolder(shutil.move(run.path, tmp_path / "another disk"))
    assert [each.choices for each in moved.config().concepts] == [str(moved.choices_path(0)), "elsewhere.json", ""]


def test_what_is_beside_the_runs_is_looked_for_where_the_run_is_now(run, tmp_path):
    """Class images and choices: the folder of runs was moved as a whole."""
    (tmp_path / "runs").mkdir()
    moved = RunFolder(shutil.move(run.path, tmp_path / "runs" / "r"))
    for written, now in (("gone", tmp_path / "runs"), ("~/gone", tmp_path / "runs"), (str(tmp_path / "runs"), tmp_path / "runs")):
        moved.create(replace(CONFIG, runs_dir=written))
        assert moved.config().runs_dir == str(now)


def test_a_run_that_ends_between_two_looks_is_not_taken_for_a_killed_one(run, monkeypatch):
    run.write_state(RunState("publishing", 10, 10))
    monkeypatch.setattr(run, "is_held", lambda: run.write_state(RunState("finished", 10, 10)) and False)
    assert run.summary()["state"] == "finished"


def test_figures_that_cannot_be_read_are_not_cut_away(run, monkeypatch):
    run.append_metrics({"step": 1, "loss": 0.5})
    before = run.metrics_path.read_bytes()

    def broken(path, *arguments, **more):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(type(run.metrics_path), "open", broken)
        assert run.metrics() == []
        with pytest.raises(StorageError):
            run.truncate_metrics(1)
    assert run.metrics_path.read_bytes() == before
