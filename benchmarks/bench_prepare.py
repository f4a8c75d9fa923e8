"""How fast photographs are prepared, beside a plain Pillow resize, and how much memory that takes.

    python -m benchmarks.bench_prepare [--pictures 200] [--megapixels 12] [--resolution 512] [--folder DIR]

One thread. The photographs are drawn, with grain, as JPEGs of quality 90; a few files are written and linked under many
names, so that little disk is needed and every one is decoded anew. Peak memory is the whole process's (Linux: VmHWM).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from dreambooth_ext.dataset.prepare import prepare

DISTINCT = 4


def photograph(seed: int, width: int, height: int) -> Image.Image:
    """Detail at every scale, as a photograph has: noise of many sizes, added up."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3), np.float32)
    for cells in (4, 16, 64, 256, 1024):
        small = rng.integers(0, 256, (cells * 3 // 4, cells, 3), dtype=np.uint8)
        total += np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC), np.float32) / 5
    return Image.fromarray((128 + 1.6 * (total - 128)).clip(0, 255).astype(np.uint8))


def write(folder: Path, count: int, megapixels: float) -> None:
    width, height = (round((megapixels * 1e6 * ratio) ** 0.5) for ratio in (4 / 3, 3 / 4))
    for number in range(min(DISTINCT, count)):
        photograph(number, width, height).save(folder / f"{number:05d}.jpg", quality=90)
    for number in range(DISTINCT, count):
        os.link(folder / f"{number % DISTINCT:05d}.jpg", folder / f"{number:05d}.jpg")


def plain(folder: Path, out: Path, resolution: int) -> None:
    """What a short script does: the middle square, Lanczos on display values, PNG; with or without Pillow's fast decoding."""
    for path in sorted(folder.glob("*.jpg")):
        with Image.open(path) as image:
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            square = image.convert("RGB").crop((left, top, left + side, top + side))
            square.resize((resolution, resolution), Image.Resampling.LANCZOS).save(out / f"{path.stem}.png")


def peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20) if sys.platform == "darwin" else peak / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--megapixels", type=float, default=12)
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--crop", choices=("smart", "center", "buckets"), default="smart")
    parser.add_argument("--folder", type=Path, default=None, help="where to work (default: the temporary folder)")
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=parsed.folder) as name:
        source, out, simple = (Path(name) / part for part in ("in", "out", "plain"))
        for folder in (source, out, simple):
            folder.mkdir()
        # In a process of its own, so that its memory is not counted.
        writer = multiprocessing.get_context("spawn").Process(target=write, args=(source, parsed.pictures, parsed.megapixels))
        writer.start()
        writer.join()
        base = peak_mib()
        started = time.process_time()
        prepare(source, out, resolution=parsed.resolution, crop=parsed.crop)
        ours, ours_mib = time.process_time() - started, peak_mib()
        few = min(parsed.pictures, 40)
        for path in sorted(source.glob("*.jpg"))[few:]:
            path.unlink()
        started = time.process_time()
        plain(source, simple, parsed.resolution)
        theirs = time.process_time() - started
        print(f"{parsed.pictures} photographs of {parsed.megapixels:g} megapixels to {parsed.resolution} px, CPU time of one core")
        print(f"{'prepare':<16}{parsed.pictures / ours:6.2f} a second, peak memory {ours_mib:.0f} MiB ({base:.0f} before)")
        print(f"{'plain Pillow':<16}{few / theirs:6.2f} a second")


if __name__ == "__main__":
    main()
