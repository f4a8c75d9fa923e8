"""A folder of 50,000 files, most of them bad: how long the audit and preparation take, how much memory, and that none is missed.

    python -m benchmarks.bench_many_files [--files 50000] [--good 2000] [--folder DIR]

The good ones are as many different pictures of 96 px. The bad ones are empty, cut off, no pictures, links to elsewhere,
folders, pipes, and some with quotes, emoji, newlines and bytes that are no text in their names.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from dreambooth_ext.dataset.audit import audit
from dreambooth_ext.dataset.prepare import prepare

from .bench_prepare import peak_mib

ODD_NAMES = ('it\'s "so"', "smile \U0001f600", "two\nlines", os.fsdecode(b"not text \xff"), "<b>bold")


def write(folder: Path, files: int, good: int, elsewhere: Path) -> None:
    rng = np.random.default_rng(0)
    whole = io.BytesIO()
    for number in range(good):
        small = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        picture = small.resize((96, 96), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number:05d}.png", compress_level=1)
        if number == 0:
            picture.save(whole, "PNG")
    contents = (b"", whole.getvalue()[:300], b"<html>no picture</html>", b"\0\0\0\x18ftypheic" + b"\0" * 40)
    for number in range(good, files):
        kind = number % 50
        path = folder / f"{ODD_NAMES[number % 5] if kind < 5 else ''}{number:05d}{'.heic' if number % 4 == 3 else '.png'}"
        if kind == 10:
            path.symlink_to(elsewhere)
        elif kind == 11:
            path.mkdir()
        elif kind == 12 and hasattr(os, "mkfifo"):
            os.mkfifo(path)
        else:
            path.write_bytes(contents[number % 4])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=50_000)
    parser.add_argument("--good", type=int, default=2000)
    parser.add_argument("--folder", type=Path, default=None, help="where to work (default: the temporary folder)")
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=parsed.folder) as name:
        folder, out, elsewhere = Path(name) / "in", Path(name) / "out", Path(name) / "elsewhere.png"
        folder.mkdir()
        Image.new("RGB", (96, 96), "red").save(elsewhere)
        write(folder, parsed.files, parsed.good, elsewhere)
        before = sorted(path.name for path in Path(name).iterdir())
        started = time.process_time()
        found = audit(folder, resolution=64)
        print(f"audit: {len(found.pictures)} pictures, {len(found.unreadable)} named as bad, {time.process_time() - started:.0f} s "
              f"of CPU time, peak memory {peak_mib():.0f} MiB", flush=True)
        assert len(found.pictures) == parsed.good and len(found.unreadable) == parsed.files - parsed.good
        refused: dict[str, str] = {}
        started = time.process_time()
        prepared = prepare(folder, out, resolution=64, refused=refused)
        print(f"prepare: {len(prepared)} pictures, {len(refused)} named as bad, {time.process_time() - started:.0f} s of CPU time, "
              f"peak memory {peak_mib():.0f} MiB", flush=True)
        assert len(prepared) == parsed.good and refused == dict(found.unreadable)
        assert sorted(path.name for path in Path(name).iterdir()) == sorted([*before, "out"])
        assert len(list(out.iterdir())) == parsed.good + 1
        started = time.process_time()
        prepare(folder, out, resolution=64, refused={})
        print(f"prepare again: {time.process_time() - started:.0f} s")


if __name__ == "__main__":
    main()
