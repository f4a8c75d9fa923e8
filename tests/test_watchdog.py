"""A hang is named with its place; work that tells of itself is left alone."""

import threading
import time

from dreambooth_ext.progress import Progress
from dreambooth_ext.watchdog import watched


def test_a_hang_is_told_with_its_place_and_goes_on():
    progress, told, lines = Progress(), threading.Event(), []

    def listen(report):
        if report.phase == "log":
            lines.append(report.text)
            told.set()

    def stands_still():
        assert told.wait(120)

    progress.listen(listen)
    with watched(progress, silence_s=0.05):
        progress.start("training", 10)
        stands_still()
    assert "phase training" in lines[0] and "stands_still" in lines[0] and "test_watchdog.py" in lines[0]
    assert not any(thread.name == "dreambooth watchdog" for thread in threading.enumerate())


def test_work_that_tells_of_itself_is_left_alone():
    progress, lines = Progress(), []
    progress.listen(lambda report: lines.append(report.text) if report.phase == "log" else None)
    with watched(progress, silence_s=120):
        for step in range(20):
            progress.report(step, 20)
            time.sleep(0.01)
    assert not lines
