"""Train the playground's base from nothing, stage by stage; each stage goes on where it was interrupted.

    python -m dreambooth_ext.playground.train_base --stage vae     --out DIR --minutes 40
    python -m dreambooth_ext.playground.train_base --stage latents --out DIR
    python -m dreambooth_ext.playground.train_base --stage unet    --out DIR --minutes 75
    python -m dreambooth_ext.playground.train_base --stage decoder --out DIR --minutes 45
    python -m dreambooth_ext.playground.train_base --stage export  --out DIR

`unet` and `decoder` do not need each other and can run side by side.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

# Nets this small lose more to a second thread's hand-overs than they gain; processes share the cores instead.
os.environ["OMP_NUM_THREADS"] = "1"
# glibc gives large blocks back to the kernel at every free; half of the time then goes to zeroing pages (measured).
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "2000000000", "MALLOC_TRIM_THRESHOLD_": "4000000000"}

MINUTES = {"vae": 40.0, "unet": 75.0, "decoder": 45.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=("vae", "latents", "unet", "decoder", "export"), required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for states, pre-drawn pictures and the result")
    parser.add_argument("--minutes", type=float, help="wall time of this stage, earlier runs of it included")
    parser.add_argument("--processes", type=int, default=2, help="for the stages vae and latents")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if sys.platform == "linux" and not KEEP_MEMORY.keys() <= os.environ.keys():
        # It is read when a process starts.
        module = ["-m", "dreambooth_ext.playground.train_base"]
        os.execve(sys.executable, [sys.executable, *module, *sys.argv[1:]], {**os.environ, **KEEP_MEMORY})
    run(args.stage, args.out, args.minutes or MINUTES.get(args.stage, 0.0), args.processes)


def run(stage: str, out: Path, minutes: float, processes: int) -> None:
    """One stage; torch is imported only now, after the number of threads is set."""
    from . import export, latents, train_decoder, train_unet, train_vae

    if stage == "vae":
        train_vae.train(out, minutes, processes)
    elif stage == "latents":
        latents.encode(out, processes)
    elif stage == "unet":
        train_unet.train(out, minutes)
    elif stage == "decoder":
        train_decoder.train(out, minutes)
    else:
        print(export.export(out))


if __name__ == "__main__":
    main()
