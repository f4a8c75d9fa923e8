"""A disk that is full, read-only, broken, gone or slow for a while, at any moment: the run waits for it, or goes on when asked."""

import os
import random
import sys

import pytest
from breaking import FAULTS, PHASES, plan_for
from campaign import arguments_for, broken_call, require_end, require_nothing_left

ROUNDS = 8 if os.environ.get("SOAK") == "long" else 2  # of each fault in each phase
KINDS = [*FAULTS, "slow"]
pytestmark = [pytest.mark.campaign, pytest.mark.skipif(sys.platform != "linux", reason="handles are named in /proc")]


def spoilt(folder, inputs, plan):
    """A run on such a disk, to its end. Returns "waited", "failed" before it was asked to go on, or "" for what cost nothing."""
    process = broken_call(folder, plan, arguments_for(folder, inputs))
    _, told = process.communicate()
    assert "Traceback" not in told, told
    if process.returncode == 0:
        return "waited" if "Paused" in told else ""
    assert process.returncode in (1, 2) and len(told.strip().splitlines()) >= 2, told
    assert plan["fault"] != "slow", told
    again = broken_call(folder, {}, arguments_for(folder, inputs))
    _, told = again.communicate()
    assert again.returncode == 0, told
    return "failed"


def campaign(kind, plans, tmp_path, inputs, undisturbed, score):
    outcomes = {"waited": 0, "failed": 0, "": 0}
    score.start(f"disk {kind}", "")
    for number, plan in enumerate(plans):
        folder = tmp_path / str(number)
        folder.mkdir()
        with score.trial():
            outcomes[spoilt(folder, inputs, plan)] += 1
            require_end(folder, undisturbed[0], plan)
            if kind in ("full", "slow"):  # on the others nothing can be removed either; what is left goes with the next work
                require_nothing_left(folder)
        score.how = (f"in each of {len(PHASES)} phases; {outcomes['waited']} waited and went on, {outcomes['failed']} ended with "
                     f"our own error and were resumed, {outcomes['']} lost nothing worth waiting for")
    return outcomes


@pytest.mark.parametrize("kind", ["full", "gone"])
def test_a_disk_that_fails_for_a_while(kind, tmp_path, inputs, undisturbed, moments, score):
    phase = random.Random(kind).choice(("snapshot", "publishing"))
    campaign(kind, [{**plan_for(1, phase, moments, fault=kind), "lasts": 10}], tmp_path, inputs, undisturbed, score)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_disks_that_fail_many_times(kind, tmp_path, inputs, undisturbed, moments, score):
    plans = [plan_for(seed, phase, moments, fault=kind) for phase in PHASES for seed in range(ROUNDS)]
    outcomes = campaign(kind, plans, tmp_path, inputs, undisturbed, score)
    assert outcomes["waited"] >= (0 if kind == "slow" else ROUNDS)
