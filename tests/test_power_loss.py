"""The power is cut at any moment, and what was not synced is gone: promised snapshots stay, and the run ends as ever."""

import json
import os
import random
import sys
import tempfile
from pathlib import Path

import pytest
from campaign import call, next_call, require_end, training
from power_loss import CUT, lose
from safetensors.torch import load_file

from dreambooth_ext.training.checkpoint import snapshots

ROUNDS_SHORT, ROUNDS_SOAK, ROUNDS_LONG = 2, 30, 200
pytestmark = [
    pytest.mark.campaign,
    pytest.mark.skipif(sys.platform != "linux", reason="the file behind a handle is found through /proc"),
]


def cut_at(moment: int, seed: int, folder: Path, arguments: list[str]) -> dict:
    """Run until the power is cut at that moment (or to the end); the journal."""
    journal = Path(tempfile.mkdtemp(dir=folder.parent)) / "journal.json"
    process = call(folder, str(journal), str(moment), str(seed), str(folder), *arguments, function="power_loss:main")
    _, told = process.communicate(timeout=600)
    assert process.returncode in (0, CUT) or "it is finished" in told, told  # the last cut came after the end
    return {"path": journal, "was_cut": process.returncode == CUT}


def disturbed(folder: Path, inputs, seed: int, moments: int) -> int:
    """Cut the power once or twice at random moments, then let the run end. Returns how often it was cut."""
    draws, cuts = random.Random(seed), 0
    for _ in range(draws.choice((1, 2))):
        journal = cut_at(draws.randint(1, moments), seed, folder, next_call(folder, inputs))
        if not journal["was_cut"]:
            break
        cuts += 1
        promised = lose(journal["path"], seed)
        kept = [path.name for _, path in snapshots(folder / "runs" / "broken" / "checkpoints")]
        assert set(promised) <= set(kept), f"seed {seed}: promised {promised}, kept {kept}"
        published = folder / "models" / "broken.safetensors"
        if published.exists():
            load_file(published)
    if not (folder / "models" / "broken.safetensors").exists() or journal["was_cut"]:
        process = call(folder, *next_call(folder, inputs))
        _, told = process.communicate(timeout=600)
        assert process.returncode == 0 or "it is finished" in told, f"seed {seed}: {told}"
    return cuts


def campaign(rounds: int, tmp_path: Path, inputs, undisturbed, score) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    moments = json.loads(cut_at(0, 0, whole, training(inputs))["path"].read_text())["moments"]
    require_end(whole, undisturbed[0], "nobody cut this one")
    cuts = 0
    score.start("power loss", f"seeds 0 to {rounds - 1}")
    for seed in range(rounds):
        folder = tmp_path / str(seed)
        folder.mkdir()
        with score.trial():
            cuts += disturbed(folder, inputs, seed, moments)
            require_end(folder, undisturbed[0], f"seed {seed}")
        score.how = f"{cuts} cuts at {moments} moments, seeds 0 to {seed}"
    assert cuts >= rounds // 2


def test_the_power_is_cut_at_random_moments(tmp_path, inputs, undisturbed, score):
    campaign(ROUNDS_SHORT, tmp_path, inputs, undisturbed, score)


@pytest.mark.soak
@pytest.mark.timeout(6 * 3600)
def test_the_power_is_cut_many_times(tmp_path, inputs, undisturbed, score):
    campaign(ROUNDS_LONG if os.environ.get("SOAK") == "long" else ROUNDS_SOAK, tmp_path, inputs, undisturbed, score)


def test_the_simulated_disk_does_lose_what_was_not_synced(tmp_path):
    """Else the campaign would prove nothing: a careless writer loses its file, a careful one does not."""
    lost = {"careless": 0, "careful": 0}
    for kind in lost:
        for seed in range(12):
            folder = tmp_path / f"{kind}{seed}" / "root"
            folder.mkdir(parents=True)
            journal = folder.parent / "journal.json"
            process = call(folder, str(folder), str(journal), kind, function="power_loss:write_one")
            process.communicate(timeout=60)
            assert process.returncode == CUT
            lose(journal, seed)
            path = folder / "f"
            lost[kind] += not (path.exists() and path.read_bytes() == b"x" * 100_000)
    assert lost["careful"] == 0 and lost["careless"] >= 4
