"""The engine's figures in one command, those that are promised first: python -m benchmarks [--minutes 9]

On a GPU of 24 GB and more it takes some minutes; each table is printed as it comes, and what does not fit into --minutes is
named. On a CPU the packaged base's steps are measured, and the leanest profile at 64 px. What trains needs torch,
diffusers, transformers, accelerate, safetensors, psutil and Pillow, no network, and up to 30 GB of room for temporary files:
in RAM where there is much of it, since a disk needs half a minute for each snapshot of full size.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from dreambooth_ext.errors import DreamboothError
from dreambooth_ext.models.family import SD1, SDXL, Family
from dreambooth_ext.models.specimen import FULL, specimen

Part = tuple[str, tuple[str, ...]]
SD1_BASE, SDXL_BASE = "{sd1}", "{sdxl}"  # stand for files of full size with random weights, written once for all
ON_A_GPU: tuple[Part, ...] = (
    ("bench_memory", ("--base", SD1_BASE, "--profiles", "offload", "ultra", "--steps", "6")),
    ("bench_memory", ("--base", SDXL_BASE, "--family", "sdxl", "--unet-only", "--profiles", "ultra", "--steps", "4")),
    ("bench_step", ("--base", SD1_BASE, "--batch", "1", "--steps", "30", "--speed-ups", "graphs", "none")),
    ("bench_step", ("--base", SD1_BASE, "--batch", "24", "16", "--steps", "10", "--speed-ups", "graphs", "--no-plain")),
    ("bench_memory", ("--base", SD1_BASE, "--profiles", "low", "balanced", "fast", "--steps", "6")),
    ("bench_kernels", ("--base", SD1_BASE, "--batch", "16")),
    ("bench_step", ("--base", SD1_BASE, "--batch", "16", "--steps", "20", "--speed-ups", "compile", "--no-plain")),
    ("bench_memory", ("--base", SD1_BASE, "--lora-rank", "16", "--profiles", "balanced", "fast", "--steps", "6")),
    ("bench_step", ("--base", SD1_BASE, "--batch", "16", "--steps", "20", "--attention", "cudnn", "--no-plain")),
    ("bench_optimizer", ()),
)
ON_A_CPU: tuple[Part, ...] = (
    ("bench_step", ("--batch", "1", "4", "--steps", "30")),
    ("bench_optimizer", ("--millions", "10")),
    ("bench_memory", ("--profiles", "ultra", "--resolution", "64", "--steps", "4")),  # the full-size model: minutes
)
TEMPORARY_BYTES, RAM_BYTES = 40 * 10**9, 80 * 10**9  # room for temporary files, and how much RAM has to be free for them
IN_RAM = Path("/dev/shm")
TIDY_UP_S = 20  # a part that was told to end has so long to go


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0)
    end = time.monotonic() + 60 * parser.parse_args().minutes
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))  # by the way that removes files and ends processes
    on_gpu = torch.cuda.is_available()
    with tempfile.TemporaryDirectory(prefix="benchmarks-", dir=_roomiest()) as name, ThreadPoolExecutor(1) as writer:
        bases = {place: writer.submit(_written, family, Path(name)) for place, family in
                 ((SD1_BASE, SD1), (SDXL_BASE, SDXL)) if on_gpu}  # the second while the first parts run
        for part, flags in ON_A_GPU if on_gpu else ON_A_CPU:
            _run(part, flags, bases, Path(name), end)


def _roomiest() -> Path | None:
    """Where temporary files go; None is where they always do."""
    import psutil  # comes with accelerate

    fits = IN_RAM.is_dir() and shutil.disk_usage(IN_RAM).free > TEMPORARY_BYTES and psutil.virtual_memory().available > RAM_BYTES
    return IN_RAM if fits else None


def _written(family: Family, folder: Path) -> Path:
    return specimen(family, size=FULL[family.key]).write(folder / f"{family.key}.safetensors", torch.float16)


def _run(part: str, flags: tuple[str, ...], bases: dict[str, Future[Path]], folder: Path, end: float) -> None:
    """One command, in a process group of its own, with its temporary files in `folder`, until `end` at the latest."""
    print(f"\n$ python -m benchmarks.{part} {' '.join(flags)}", flush=True)
    if end - time.monotonic() < 1:
        print("no time was left", flush=True)
        return
    started = time.monotonic()
    try:
        words = [str(bases[flag].result()) if flag in bases else flag for flag in flags]
    except (DreamboothError, OSError, ImportError) as error:
        print(f"failed: no base could be written ({error})", flush=True)
        return
    call = [sys.executable, "-m", f"benchmarks.{part}", *words]
    process = subprocess.Popen(call, start_new_session=True, env={**os.environ, "TMPDIR": str(folder)})
    try:
        code = process.wait(max(1.0, end - time.monotonic()))
        print(f"failed with code {code}" if code else f"({time.monotonic() - started:.0f} s)", flush=True)
    except subprocess.TimeoutExpired:
        print("cut off: no time was left", flush=True)
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """It and what it has started: neither the GPU nor its files may stay taken."""
    if os.name == "nt":  # has no such groups
        process.kill()
        return
    for wish in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, wish)
            process.wait(TIDY_UP_S)
        except (ProcessLookupError, PermissionError, subprocess.TimeoutExpired):
            continue


if __name__ == "__main__":
    main()
