"""A run of seconds as a process of its own, for tests that break it, and what it ends in when nobody does."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

REPOSITORY = Path(__file__).resolve().parents[1]
SNAPSHOT_EVERY = 2


def call(folder: Path, *arguments: str, program: tuple[str, ...] = ("-m", "dreambooth_ext")) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-W", "ignore", *program, *arguments], cwd=folder,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)})


def finish(process: subprocess.Popen) -> None:
    _, told = process.communicate(timeout=600)
    assert process.returncode == 0, told


def training(inputs: tuple[Path, Path]) -> list[str]:
    base, pictures = inputs
    return ["train", "--base", str(base), "--instance-dir", str(pictures), "--token", "rxz", "--class-noun", "dog",
            "--output-name", "broken", "--steps", "6", "--resolution", "64", "--num-class-images", "3", "--class-steps", "2",
            "--preview-steps", "2", "--snapshot-every", str(SNAPSHOT_EVERY), "--publish-format", "safetensors",
            "--ema-decay", "0.9"]


def next_call(folder: Path, inputs: tuple[Path, Path]) -> list[str]:
    """What a person would type: start it, or go on with it."""
    return ["resume", "broken"] if (folder / "runs" / "broken" / "config.json").exists() else training(inputs)


def require_end(folder: Path, expected: dict[str, torch.Tensor], who: str) -> None:
    ours = load_file(folder / "models" / "broken.safetensors")
    assert ours.keys() == expected.keys() and all(torch.equal(ours[name], expected[name]) for name in ours), who


@pytest.fixture(scope="session")
def inputs(tmp_path_factory) -> tuple[Path, Path]:
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


@pytest.fixture(scope="session")
def undisturbed(inputs, tmp_path_factory) -> tuple[dict[str, torch.Tensor], float]:
    """(the published tensors, seconds) of a run that nobody broke."""
    folder, started = tmp_path_factory.mktemp("undisturbed"), time.monotonic()
    finish(call(folder, *training(inputs)))
    return load_file(folder / "models" / "broken.safetensors"), time.monotonic() - started
