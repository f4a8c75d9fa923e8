"""A process that is killed at any moment loses nothing: the run goes on, and ends like one that was left alone."""

import os
import random
import signal
import subprocess
from pathlib import Path

import pytest
from campaign import call, next_call, require_end
from safetensors.torch import load_file

from dreambooth_ext.dataset.manifest import sha256_of

ROUNDS_SHORT, ROUNDS_SOAK, ROUNDS_LONG = 2, 60, 200
pytestmark = [pytest.mark.campaign, pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX's")]


def disturbed(folder: Path, inputs, moments: list[float]) -> int:
    """Start the run, kill it at these seconds after each start, then let it end. Returns how often it was killed."""
    killed = 0
    for seconds in [*moments, None]:
        published = folder / "models" / "broken.safetensors"
        if published.exists():
            load_file(published)  # whole, whenever it is visible
        process = call(folder, *next_call(folder, inputs))
        if seconds is None:
            _, told = process.communicate(timeout=600)
            assert process.returncode == 0 or "it is finished" in told, told
            continue
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.communicate()
    return killed


def campaign(rounds: int, tmp_path: Path, inputs, undisturbed, score) -> None:
    expected, whole_s = undisturbed
    before = {path: sha256_of(path) for path in [inputs[0], *inputs[1].iterdir()]}
    kills = 0
    score.start("killed", f"seeds 0 to {rounds - 1}")
    for seed in range(rounds):
        draws = random.Random(seed)
        folder = tmp_path / str(seed)
        folder.mkdir()
        moments = [draws.uniform(0.3, 1.0) * whole_s for _ in range(draws.choice((1, 2)))]
        with score.trial():
            kills += disturbed(folder, inputs, moments)
            require_end(folder, expected, f"seed {seed}")
        score.how = f"{kills} kills, seeds 0 to {seed}"
    assert {path: sha256_of(path) for path in before} == before
    assert kills >= rounds // 2


def test_killed_at_random_moments(tmp_path, inputs, undisturbed, score):
    campaign(ROUNDS_SHORT, tmp_path, inputs, undisturbed, score)


@pytest.mark.soak
@pytest.mark.timeout(6 * 3600)
def test_killed_many_times(tmp_path, inputs, undisturbed, score):
    campaign(ROUNDS_LONG if os.environ.get("SOAK") == "long" else ROUNDS_SOAK, tmp_path, inputs, undisturbed, score)
