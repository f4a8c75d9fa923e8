"""A run of seconds as a process of its own, for tests that break it, and what it ends in when nobody does."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from breaking import PHASES
from PIL import Image
from safetensors.torch import load_file
from zygote import Forked, start

from dreambooth_ext.models.specimen import Size

REPOSITORY = Path(__file__).resolve().parents[1]
SNAPSHOT_EVERY = 2
# The least that trains at 64 pixels: a group of channels has two numbers at least.
SMALLEST = Size((32, 32, 64, 64), (1, 1, 1, 0), 1, (32,), (2,), (32, 32, 32, 32))


def call(folder: Path, *arguments: str, function: str = "dreambooth_ext.cli:run") -> Forked:
    """The command line, or another function of the arguments, as a process of its own."""
    return start(folder, function, *arguments)


def finish(process: Forked) -> None:
    _, told = process.communicate(timeout=600)
    assert process.returncode == 0, told


def training(inputs: tuple[Path, Path]) -> list[str]:
    base, pictures = inputs
    return ["train", "--base", str(base), "--instance-dir", str(pictures), "--token", "rxz", "--class-noun", "dog",
            "--output-name", "broken", "--steps", "6", "--resolution", "64", "--num-class-images", "3", "--class-steps", "2",
            "--preview-steps", "1", "--snapshot-every", str(SNAPSHOT_EVERY), "--publish-format", "safetensors",
            "--ema-decay", "0.9"]


def next_call(folder: Path, inputs: tuple[Path, Path]) -> list[str]:
    """What a person would type: start it, or go on with it."""
    return ["resume", "broken"] if (folder / "runs" / "broken" / "config.json").exists() else training(inputs)


def require_nothing_left(folder: Path) -> None:
    """No half file, hidden or not, of what was killed."""
    left = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix in (".partial", ".former")]
    assert not left, left


def require_end(folder: Path, expected: dict[str, torch.Tensor], who: str) -> None:
    ours = load_file(folder / "models" / "broken.safetensors")
    assert ours.keys() == expected.keys() and all(torch.equal(ours[name], expected[name]) for name in ours), who


@pytest.fixture(scope="session")
def inputs(tmp_path_factory) -> tuple[Path, Path]:
    """(base, pictures)"""
    from dreambooth_ext.models.family import SD1
    from dreambooth_ext.models.specimen import specimen

    folder = tmp_path_factory.mktemp("inputs")
    base = specimen(SD1, size=SMALLEST).write(folder / "base.safetensors", torch.float16)
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


def arguments_for(folder, inputs):
    """With one snapshot kept at a time, so that there is something to clean."""
    more = ["--keep-snapshots", "1"]
    chosen = next_call(folder, inputs)
    return chosen if chosen[0] == "resume" else [*chosen, *more]


def broken_call(folder, plan, arguments):
    return call(folder, json.dumps({"root": str(folder), **plan}), *arguments, function="breaking:main")


@pytest.fixture(scope="session")
def moments(inputs, undisturbed, tmp_path_factory):
    """How many there are in each phase of a run that nobody breaks, and in the deletion of one."""
    folder = tmp_path_factory.mktemp("counted")
    finish(broken_call(folder, {"journal": str(folder / "run.json")}, arguments_for(folder, inputs)))
    require_end(folder, undisturbed[0], "nobody broke this one")
    finish(broken_call(folder, {"journal": str(folder / "deleted.json")}, ["delete", "broken"]))
    counts = json.loads((folder / "run.json").read_text())
    assert all(counts[phase] >= 5 for phase in PHASES), counts
    return {**counts, "delete": json.loads((folder / "deleted.json").read_text())["cleaning"]}
