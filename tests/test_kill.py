"""A process that is killed at any moment loses nothing: the run goes on, and ends like one that was left alone."""

import os
import random
import sys

import pytest
from breaking import PHASES, plan_for
from campaign import arguments_for, broken_call, call, finish, require_end, require_nothing_left, training
from safetensors.torch import load_file

from dreambooth_ext.dataset.manifest import sha256_of
from dreambooth_ext.run_folder import RunFolder, list_runs

KILLED = -9
ROUNDS = 40 if os.environ.get("SOAK") == "long" else 10  # of each phase
pytestmark = [pytest.mark.campaign,
              pytest.mark.skipif(sys.platform != "linux", reason="SIGKILL is POSIX's, and handles are named in /proc")]


def killed_once(folder, inputs, plan, published):
    """Start the run or go on with it, kill it by plan; False if it was over before."""
    if published.exists():
        load_file(published)  # whole, whenever it is visible
    process = broken_call(folder, plan, arguments_for(folder, inputs))
    _, told = process.communicate()
    assert process.returncode == KILLED or process.returncode == 0 or "it is finished" in told, told
    return process.returncode == KILLED


def disturbed(folder, inputs, phase, seed, moments):
    """Kill a run in that phase, half of the time also later, then let it end. Returns how often it was killed."""
    draws, published, kills = random.Random(seed), folder / "models" / "broken.safetensors", 0
    phases = [phase, *([draws.choice(PHASES)] if draws.random() < 0.5 else [])]
    for number, each in enumerate(phases):
        kills += killed_once(folder, inputs, plan_for(seed + 1000 * number, each, moments, kill=True), published)
    process = call(folder, *arguments_for(folder, inputs))
    _, told = process.communicate()
    assert process.returncode == 0 or "it is finished" in told, told
    return kills


def campaign(rounds, phase, tmp_path, inputs, undisturbed, moments, score):
    before = {path: sha256_of(path) for path in [inputs[0], *inputs[1].iterdir()]}
    kills = 0
    score.start(f"killed: {phase}", "")
    for seed in range(rounds):
        folder = tmp_path / str(seed)
        folder.mkdir()
        with score.trial():
            kills += disturbed(folder, inputs, phase, seed, moments)
            require_end(folder, undisturbed[0], f"{phase}, seed {seed}")
            require_nothing_left(folder)
        score.how = f"{kills} kills at {moments[phase]} moments, seeds 0 to {seed}"
    assert {path: sha256_of(path) for path in before} == before
    assert kills >= rounds


def deletions(rounds, tmp_path, inputs, undisturbed, moments, score):
    """A run whose deletion was killed is there, and can be deleted again, or it is gone."""
    kills = 0
    score.start("killed: deletion of a run", "")
    for seed in range(rounds):
        folder = tmp_path / str(seed)
        folder.mkdir()
        finish(call(folder, *training(inputs)))
        with score.trial():
            plan = plan_for(seed, "cleaning", {"cleaning": moments["delete"]}, kill=True)
            process = broken_call(folder, {**plan, "kill": 0.0}, ["delete", "broken"])
            process.communicate()
            kills += process.returncode == KILLED
            left = list_runs(folder / "runs")
            for run in left:
                assert run.config().output_name == "broken"
                run.delete()
            if not left:
                RunFolder(folder / "runs" / "broken").require_free()
            require_end(folder, undisturbed[0], f"the published model, seed {seed}")
            for path in (folder / "models").glob("broken.*"):  # with its sidecars: a new run replaces none of them
                path.unlink()
            finish(call(folder, *training(inputs)))
            require_end(folder, undisturbed[0], f"the same name again, seed {seed}")
        score.how = f"{kills} kills at {moments['delete']} moments, seeds 0 to {seed}"
    assert kills == rounds


def test_one_run_is_killed_in_phase_after_phase(tmp_path, inputs, undisturbed, moments, score):
    """Early in each, for what is done already is not done again, and has no moments any more."""
    early = {phase: count // 3 for phase, count in moments.items()}
    published = tmp_path / "models" / "broken.safetensors"
    score.start("killed: each phase", "")
    for seed, phase in enumerate(PHASES):
        with score.trial():
            # At that very moment: a little later, a busy machine may be in another phase already.
            plan = {**plan_for(seed, phase, early, kill=True), "kill": 0.0}
            assert killed_once(tmp_path, inputs, plan, published)
        score.how = f"{seed + 1} kills of one run, seeds 0 to {seed}"
    finish(call(tmp_path, "resume", "broken"))
    require_end(tmp_path, undisturbed[0], "killed in each phase")
    require_nothing_left(tmp_path)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("phase", PHASES)
def test_killed_many_times(phase, tmp_path, inputs, undisturbed, moments, score):
    campaign(ROUNDS, phase, tmp_path, inputs, undisturbed, moments, score)


def test_a_deletion_that_was_killed_can_be_done_again(tmp_path, inputs, undisturbed, moments, score):
    deletions(1, tmp_path, inputs, undisturbed, moments, score)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_deletions_killed_many_times(tmp_path, inputs, undisturbed, moments, score):
    deletions(ROUNDS, tmp_path, inputs, undisturbed, moments, score)
