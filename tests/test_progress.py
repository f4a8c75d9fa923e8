"""Reports reach every listener; the wish to stop is latched."""

import pytest

from dreambooth_ext.errors import Cancelled
from dreambooth_ext.progress import Progress


def test_an_outside_wish_is_latched():
    wishes = iter([False, True, False, False])
    progress = Progress(cancelled=lambda: next(wishes))
    progress.check()
    for _ in range(3):
        with pytest.raises(Cancelled):
            progress.check()


def test_requests_are_served_once():
    progress = Progress()
    progress.request("preview")
    assert progress.take_request("preview") and not progress.take_request("preview")


def test_listeners_get_phase_count_and_figures():
    seen = []
    progress = Progress(seen.append)
    progress.start("training", 5)
    progress.report(1, 5, "x", loss=0.1)
    assert [(r.phase, r.done, r.total) for r in seen] == [("training", 0, 5), ("training", 1, 5)]
    assert seen[1].figures == {"loss": 0.1}
