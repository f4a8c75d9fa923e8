"""How long publishing takes beside copying the same file, and how much memory it needs.

    python -m benchmarks.bench_publish [--family sd1] [--dtype fp32] [--folder DIR] [--repeats 3]

Random weights of full size are written to DIR (about three times the model's size), and removed afterwards. Copying and
publishing have a process of their own each, which does its work again and again, all with fsync and with the sources in the page
cache; the shortest time and the most memory of each count. The first time does not: on a virtual machine it may be spent on
getting memory for the page cache from the machine below. Memory is anonymous memory above what the process has once everything
is imported.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from dreambooth_ext.models.conversion import convert
from dreambooth_ext.models.family import FAMILIES
from dreambooth_ext.models.load import inspect
from dreambooth_ext.models.publish import publish
from dreambooth_ext.models.specimen import FULL, SMALL, specimen

from .memory import AnonymousMemory

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
WORKS = ("copy", "safetensors", "ckpt")


def work(what: str, source: Path, trained: Path, out: Path) -> None:
    if what != "copy":
        publish(source, trained, out, "new", publish_format=what)
        return
    shutil.copyfile(source, out / "copy.safetensors")
    handle = os.open(out / "copy.safetensors", os.O_RDWR)
    os.fsync(handle)
    os.close(handle)


def child(what: str, key: str, place: Path, repeats: int) -> None:
    """Print seconds of wall clock and of this process, and bytes of memory added, for each time that the work was done."""
    with tempfile.TemporaryDirectory() as name:
        small = Path(name)
        (small / "out").mkdir()
        family = next(family for family in FAMILIES if family.key == key)
        base = specimen(family, size=SMALL[key]).write(small / "small.safetensors")
        inspect(base)
        convert(base, small / "trained")
        work(what, base, small / "trained", small / "out")  # what is imported on first use is imported now
    for repeat in range(repeats + 1):
        shutil.rmtree(place / "out")
        (place / "out").mkdir()
        with AnonymousMemory() as memory:
            started, used = time.perf_counter(), time.process_time()
            work(what, place / "in" / "base.safetensors", place / "in" / "trained", place / "out")
            seconds, used = time.perf_counter() - started, time.process_time() - used
        if repeat:
            print(json.dumps([seconds, used, memory.added]))


def measured(what: str, key: str, place: Path, repeats: int) -> list[tuple[float, float, int]]:
    warm(place / "in")
    command = [sys.executable, "-m", "benchmarks.bench_publish", "--child", what, "--family", key, "--folder", str(place),
               "--repeats", str(repeats)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [tuple(json.loads(line)) for line in told.splitlines()[-repeats:]]


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
    parser.add_argument("--child", choices=WORKS, help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.child:
        child(parsed.child, parsed.family, parsed.folder, parsed.repeats)
        return
    family = next(family for family in FAMILIES if family.key == parsed.family)
    with tempfile.TemporaryDirectory(dir=parsed.folder) as name:
        place = Path(name)
        (place / "in").mkdir()
        (place / "out").mkdir()
        source = specimen(family, size=FULL[family.key]).write(place / "in" / "base.safetensors", DTYPES[parsed.dtype])
        convert(source, place / "in" / "trained")
        size = source.stat().st_size
        print(f"{family.name}, {parsed.dtype}, {size / 1e9:.2f} GB; best of {parsed.repeats}, with fsync", flush=True)
        best = None
        for what in WORKS:
            taken = measured(what, family.key, place, parsed.repeats)
            seconds, used, added = min(taken)[0], min(used for _, used, _ in taken), max(added for _, _, added in taken)
            best = best or seconds
            print(f"{what:<12}{seconds:7.2f} s{seconds / best:7.2f} x{used:8.2f} s of the processor"
                  f"{added / 2**20:7.0f} MiB of memory added", flush=True)


if __name__ == "__main__":
    main()
