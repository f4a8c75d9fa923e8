"""A run's folder: state that survives damage, metrics that survive a crash, a lock that survives neither."""

import multiprocessing
import os

import pytest

from dreambooth_ext.config import Concept, TrainConfig
from dreambooth_ext.errors import ResumeError, RunBusy
from dreambooth_ext.run_folder import RunFolder, RunState, list_runs

CONFIG = TrainConfig(base="b", output_name="r", concepts=(Concept(instance_dir="p", token="t", class_noun="dog"),))


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path / "r")
    run.create(CONFIG)
    return run


def test_config_and_state_come_back(run):
    run.write_state(RunState("training", 3, 10, published=("a.ckpt",)))
    assert run.config() == CONFIG
    assert (run.state().state, run.state().step, run.state().published) == ("training", 3, ("a.ckpt",))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"state": 3, "step": {}}', "\x00\x01"])
def test_a_damaged_state_is_no_crash(run, text):
    (run.path / "state.json").write_text(text)
    assert isinstance(run.state(), RunState)


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
        release.wait(20)


def _hold_and_die(path, held):
    with RunFolder(path).lock():
        held.set()
        os._exit(9)


def test_one_process_at_a_time_and_the_lock_dies_with_its_process(run):
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(run.path, held, release))
    other.start()
    assert held.wait(20)
    with pytest.raises(RunBusy), run.lock():
        pass
    release.set()
    other.join(20)
    held.clear()
    killed = context.Process(target=_hold_and_die, args=(run.path, held))
    killed.start()
    killed.join(20)
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
