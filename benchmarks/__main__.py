"""The engine's figures in one command, those that are promised first: python -m benchmarks [--minutes 9]

On a GPU of 24 GB and more it takes some minutes; each table is printed as it comes, and what does not fit into --minutes is
named. On a CPU only the leanest profile is measured at 64 px, and the packaged base's steps.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

import torch

Part = tuple[str, tuple[str, ...]]
ON_A_GPU: tuple[Part, ...] = (
    ("bench_memory", ("--profiles", "ultra", "low", "offload", "--steps", "3")),
    ("bench_step", ("--batch", "1", "--steps", "40", "--speed-ups", "none", "graphs")),
    ("bench_memory", ("--family", "sdxl", "--unet-only", "--profiles", "ultra", "--steps", "2")),
    ("bench_step", ("--batch", "8", "16", "--steps", "20", "--speed-ups", "graphs", "none")),
    ("bench_memory", ("--profiles", "balanced", "fast", "--steps", "3")),
    ("bench_step", ("--batch", "1", "8", "--steps", "30", "--speed-ups", "compile")),
    ("bench_optimizer", ()),
)
ON_A_CPU: tuple[Part, ...] = (
    ("bench_memory", ("--profiles", "ultra", "--resolution", "64", "--steps", "2")),
    ("bench_step", ("--batch", "1", "4", "--steps", "30")),
    ("bench_optimizer", ("--millions", "10")),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0)
    end = time.monotonic() + 60 * parser.parse_args().minutes
    for name, flags in ON_A_GPU if torch.cuda.is_available() else ON_A_CPU:
        call = [sys.executable, "-m", f"benchmarks.{name}", *flags]
        print(f"\n$ python -m {' '.join(call[2:])}", flush=True)
        left = end - time.monotonic()
        if left < 1:
            print("no time was left")
            continue
        try:
            code = subprocess.run(call, check=False, timeout=left).returncode
        except subprocess.TimeoutExpired:
            print("cut off: no time was left", flush=True)
            continue
        if code:
            print(f"failed with code {code}", flush=True)


if __name__ == "__main__":
    main()
