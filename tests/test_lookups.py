"""Questions of a page: answered once, the newest first, and never so that the page waits."""

import threading
import time

import pytest

from dreambooth_ext.errors import PictureError
from dreambooth_ext.lookups import ANSWERS_KEPT, Lookups


def waited(answer):
    assert answer.event.wait(120)
    return answer


def test_what_broke_is_tried_again_and_what_was_refused_is_not():
    lookups, tried = Lookups(patience_s=60), []

    def find(error):
        tried.append(error)
        if len(tried) in (1, 3):
            raise error
        return 1

    assert "ZeroDivisionError" in str(lookups.ask("a", 0, lambda progress: find(ZeroDivisionError())).error)
    assert lookups.ask("a", 0, lambda progress: find(None)).value == 1
    for _ in range(2):
        assert isinstance(lookups.ask("b", 0, lambda progress: find(PictureError("a", "b"))).error, PictureError)
    assert len(tried) == 3


def test_a_quick_answer_is_there_at_once_and_is_found_once():
    lookups, times = Lookups(patience_s=120), []
    for _ in range(3):
        answer = lookups.ask("sum", (1, 2), lambda progress: times.append(1) or 3)
        assert answer.ready and answer.value == 3 and answer.error is None
    assert len(times) == 1
    assert lookups.ask("sum", (1, 3), lambda progress: 4).value == 4


def test_a_slow_one_tells_how_far_it_is_and_nobody_waits():
    lookups, go_on = Lookups(patience_s=0.01), threading.Event()

    def find(progress):
        progress.report(3, 10)
        go_on.wait(120)
        return "found"

    answer = lookups.ask("pictures", "folder", find)
    end = time.monotonic() + 120
    while answer.total != 10 and time.monotonic() < end:
        time.sleep(0.01)
    assert not answer.ready and (answer.done, answer.total) == (3, 10)
    go_on.set()
    assert waited(answer).value == "found"


def test_what_nobody_asks_for_any_more_is_given_up():
    lookups, begun, cancelled = Lookups(patience_s=0.01), threading.Event(), threading.Event()

    def endless(progress):
        begun.set()
        while True:
            if progress.cancelled:
                cancelled.set()
            progress.check()
            time.sleep(0.005)

    lookups.ask("pictures", "first", endless)
    assert begun.wait(120)
    answers = [lookups.ask("pictures", number, lambda progress, number=number: number) for number in range(5)]
    assert waited(answers[-1]).value == 4 and cancelled.is_set()
    again = lookups.ask("pictures", "first", lambda progress: "asked again")
    assert waited(again).value == "asked again"


@pytest.mark.parametrize("error", [PictureError("a", "b"), ImportError("torch"), ZeroDivisionError("c"), MemoryError()])
def test_whatever_goes_wrong_is_an_answer_and_the_next_one_comes(error):
    lookups = Lookups(patience_s=120)

    def find(progress):
        raise error

    answer = lookups.ask("pictures", "bad", find)
    assert answer.ready and answer.value is None and answer.error is not None
    assert lookups.ask("pictures", "good", lambda progress: 1).value == 1


def test_no_more_answers_are_kept_than_are_useful():
    lookups = Lookups(patience_s=120)
    for number in range(3 * ANSWERS_KEPT):
        lookups.ask(f"topic {number}", 0, lambda progress: 1)
    assert len(lookups._answers) == ANSWERS_KEPT
