"""One job at a time, watched and stopped from anywhere."""

import threading

import pytest

from dreambooth_ext.errors import Diverged, RunBusy
from dreambooth_ext.jobs import Job, Jobs


@pytest.fixture
def jobs():
    return Jobs()


def test_jobs_run_one_after_the_other_in_order(jobs):
    running, most, order, lock = 0, 0, [], threading.Lock()

    def work(name):
        def run(progress):
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
                order.append(name)
            with lock:
                running -= 1
        return run

    started = [jobs.start(Job(str(n), work(n))) for n in range(20)]
    assert all(job.done.wait(120) for job in started)
    assert most == 1 and order == list(range(20))
    assert {job.state for job in started} == {"finished"}


def test_a_failed_job_tells_why_and_the_next_one_runs(jobs):
    def fail(progress):
        raise Diverged("training at 1e-2", "the loss became NaN at step 7", "Lower the learning rate.")

    failed = jobs.start(Job("a", fail))
    crashed = jobs.start(Job("b", lambda progress: 1 / 0))
    fine = jobs.start(Job("c", lambda progress: 42))
    assert fine.done.wait(120)
    assert failed.state == "failed" and "Lower the learning rate." in failed.message
    assert crashed.state == "failed" and "ZeroDivisionError" in crashed.message
    assert "Traceback" in "\n".join(crashed.log)
    assert fine.state == "finished" and fine.result == 42


def test_stopping_the_running_and_the_waiting(jobs):
    begun = threading.Event()

    def wait(progress):
        begun.set()
        while True:
            progress.check()

    first, second = jobs.start(Job("first", wait)), jobs.start(Job("second", wait))
    assert begun.wait(120)
    assert jobs.stop(second.id, "the tab") and second.state == "cancelled"
    assert jobs.stop(first.id, "the API") and first.done.wait(120)
    assert first.state == "cancelled" and first.stopped_by == "the API"
    assert not jobs.stop(first.id, "again") and jobs.running is None


def test_a_stop_that_comes_too_late_is_said_to(jobs):
    begun = threading.Event()

    def work(progress):  # which looks no more whether it should stop
        begun.set()
        while not progress.cancelled:
            threading.Event().wait(0.01)

    job = jobs.start(Job("rex", work))
    assert begun.wait(120) and jobs.stop(job.id, "the tab") and job.done.wait(120)
    assert (job.state, job.message) == ("finished", "The stop came too late: it was finished already.")
    unasked = jobs.start(Job("rex", lambda progress: None))
    assert unasked.done.wait(120) and (unasked.state, unasked.message) == ("finished", "")


def test_a_job_is_found_again_with_its_last_report_and_log(jobs):
    def work(progress):
        progress.start("training", 10)
        progress.log("bf16 is in effect")
        progress.report(3, 10, loss=0.5)

    job = jobs.start(Job("x", work))
    assert job.done.wait(120)
    status = jobs.find(job.id).status()
    assert (status["phase"], status["done"], status["figures"]) == ("training", 3, {"loss": 0.5})
    assert status["log"] == ["bf16 is in effect"]


def test_two_of_one_key_are_never_queued_whoever_asks(jobs):
    """Two tabs, or a tab and the API, at the very same moment."""
    go_on, refused, barrier = threading.Event(), [], threading.Barrier(8)

    def ask():
        barrier.wait(120)
        try:
            jobs.start(Job("rex", lambda progress: go_on.wait(120), key="rex"))
        except RunBusy as error:
            refused.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(refused) == 7 and all("waiting already" in text for text in refused)
    go_on.set()
    (job,) = jobs.all()
    assert job.done.wait(120)
    assert jobs.start(Job("rex", lambda progress: None, key="rex")).done.wait(120)
