"""How long publishing takes beside copying the same file, and how much memory it needs.

    python -m benchmarks.bench_publish [--family sd1] [--dtype fp32] [--folder DIR] [--repeats 3]

Random weights of full size are written to DIR (about three times the model's size), and removed afterwards. Copying and
publishing alternate, all with fsync and with the sources in the page cache; the best of each counts.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from dreambooth_ext.models.conversion import convert
from dreambooth_ext.models.family import FAMILIES
from dreambooth_ext.models.publish import publish
from dreambooth_ext.models.specimen import FULL, specimen

from .memory import AnonymousMemory

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


def copy(source: Path, destination: Path) -> None:
    shutil.copyfile(source, destination)
    handle = os.open(destination, os.O_RDWR)
    os.fsync(handle)
    os.close(handle)


def timed(work: Callable[[], object]) -> tuple[float, int]:
    """Seconds, and bytes of anonymous memory added."""
    with AnonymousMemory() as memory:
        started = time.perf_counter()
        work()
        seconds = time.perf_counter() - started
    return seconds, memory.added


def warm(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                while stream.read(2**24):
                    pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=[family.key for family in FAMILIES], default="sd1")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to be measured (default: the temporary folder)")
    parser.add_argument("--repeats", type=int, default=3)
    parsed = parser.parse_args()
    family = next(family for family in FAMILIES if family.key == parsed.family)
    with tempfile.TemporaryDirectory(dir=parsed.folder) as name:
        place = Path(name)
        (place / "in").mkdir()
        (place / "out").mkdir()
        source = specimen(family, size=FULL[family.key]).write(place / "in" / "base.safetensors", DTYPES[parsed.dtype])
        convert(source, place / "in" / "trained")
        size = source.stat().st_size
        print(f"{family.name}, {parsed.dtype}, {size / 1e9:.2f} GB; best of {parsed.repeats}, with fsync", flush=True)
        works = {"copy": lambda: copy(source, place / "out" / "copy.safetensors")}
        for form in ("safetensors", "ckpt"):
            works[form] = lambda form=form: publish(source, place / "in" / "trained", place / "out", "new", publish_format=form)
        best: dict[str, tuple[float, int]] = {}
        for _ in range(parsed.repeats):
            for what, work in works.items():
                warm(place / "in")
                seconds, added = timed(work)
                shutil.rmtree(place / "out")
                (place / "out").mkdir()
                former = best.get(what, (float("inf"), 0))
                best[what] = min(former[0], seconds), max(former[1], added)
        for what, (seconds, added) in best.items():
            ratio = seconds / best["copy"][0]
            print(f"{what:<12}{seconds:7.2f} s{ratio:7.2f} x{added / 2**20:9.0f} MiB anonymous memory", flush=True)


if __name__ == "__main__":
    main()
