"""A process that is killed at any moment loses nothing: the run goes on, and ends like one that was left alone."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dreambooth_ext.dataset.manifest import sha256_of

ROUNDS_SHORT, ROUNDS_SOAK, ROUNDS_LONG = 2, 60, 200


def call(folder: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-W", "ignore", "-m", "dreambooth_ext", *arguments], cwd=folder,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])})


def finish(process: subprocess.Popen) -> None:
    _, told = process.communicate(timeout=600)
    assert process.returncode == 0, told


def training(base: Path, pictures: Path) -> list[str]:
    return ["train", "--base", str(base), "--instance-dir", str(pictures), "--token", "rxz", "--class-noun", "dog",
            "--output-name", "killed", "--steps", "6", "--resolution", "64", "--num-class-images", "3", "--class-steps", "2",
            "--preview-steps", "2", "--snapshot-every", "2", "--publish-format", "safetensors", "--ema-decay", "0.9"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """(base, pictures)"""
    from dreambooth_ext.models.family import SD1
    from dreambooth_ext.models.specimen import specimen

    folder = tmp_path_factory.mktemp("inputs")
    base = specimen(SD1).write(folder / "base.safetensors", torch.float16)
    (folder / "pictures").mkdir()
    draws = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(draws.integers(0, 255, (80, 96, 3), dtype=np.uint8)).save(folder / "pictures" / f"{number}.png")
    return base, folder / "pictures"


@pytest.fixture(scope="module")
def undisturbed(inputs, tmp_path_factory):
    """(the published tensors, seconds) of a run that nobody killed."""
    folder, started = tmp_path_factory.mktemp("undisturbed"), time.monotonic()
    finish(call(folder, *training(*inputs)))
    return load_file(folder / "models" / "killed.safetensors"), time.monotonic() - started


def disturbed(folder: Path, inputs, moments: list[float]) -> int:
    """Start the run, kill it at these seconds after each start, then let it end. Returns how often it was killed."""
    killed = 0
    for seconds in [*moments, None]:
        begun = (folder / "runs" / "killed" / "config.json").exists()
        published = folder / "models" / "killed.safetensors"
        if published.exists():
            load_file(published)  # whole, whenever it is visible
        process = call(folder, *(["resume", "killed"] if begun else training(*inputs)))
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


def campaign(rounds: int, tmp_path: Path, inputs, undisturbed) -> None:
    expected, whole_s = undisturbed
    before = {path: sha256_of(path) for path in [inputs[0], *inputs[1].iterdir()]}
    kills = 0
    for seed in range(rounds):
        draws = random.Random(seed)
        folder = tmp_path / str(seed)
        folder.mkdir()
        moments = [draws.uniform(0.3, 1.0) * whole_s for _ in range(draws.choice((1, 2)))]
        kills += disturbed(folder, inputs, moments)
        ours = load_file(folder / "models" / "killed.safetensors")
        assert ours.keys() == expected.keys() and all(torch.equal(ours[name], expected[name]) for name in ours), f"seed {seed}"
    assert {path: sha256_of(path) for path in before} == before
    print(f"\nkilled {kills} times in {rounds} runs, all ended bit for bit as undisturbed; lost 0")
    assert kills >= rounds // 2


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX's")
def test_killed_at_random_moments(tmp_path, inputs, undisturbed):
    campaign(ROUNDS_SHORT, tmp_path, inputs, undisturbed)


@pytest.mark.soak
@pytest.mark.timeout(6 * 3600)
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX's")
def test_killed_many_times(tmp_path, inputs, undisturbed):
    campaign(ROUNDS_LONG if os.environ.get("SOAK") == "long" else ROUNDS_SOAK, tmp_path, inputs, undisturbed)
