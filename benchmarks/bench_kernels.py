"""Where a step's time goes: the device's kernels by kind, and the longest of them by name.

    python -m benchmarks.bench_kernels [--base FILE] [--batch 16] [--profile fast] [--speed-up none] [--attention torch] [--top 12]

torch's profiler watches `STEPS` steps, after those in which libraries choose their kernels. On a GPU its kernels are counted, each
by the time that it took there; "launched" is how many a step launches, "idle" the part of the steps in which none ran. On a CPU
operations stand for kernels. The base and its pictures are those of bench_step.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from .attention import BACKENDS, attention_by
from .bench_memory import pictures
from .bench_step import WARM_UP, base_for, load_checkpoint, ours

STEPS = 3
# The first kind whose pattern a kernel's name holds.
KINDS = {
    "attention": r"flash|fmha|attention|sdpa|softmax",
    "optimizer": r"adam|adafactor|multi_tensor|foreach",
    "gate": r"geglu",
    "norm": r"norm|rowwisemoments|welford|computefused|computeinternalgradients|computebackwardfused",
    "convolution": r"conv|wgrad|dgrad|fprop|winograd|implicit",
    "matrix product": r"gemm|gemv|nvjet|cutlass|cublas|addmm|matmul|::mm|::bmm",
    "strided": r"(?<!vectorized_)(?<!unrolled_)elementwise_kernel<",  # of what is not side by side in memory
    "layout": r"nchw|nhwc|transpose|permute|cat(array|_)|::cat",
    "copy": r"memcpy|memset|copy|cast|fill|zero",
}


def kind_of(kernel: str) -> str:
    """Which of `KINDS` a kernel is; "elementwise" if none."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, kernel.lower())), "elementwise")


class Watch:
    """Hears of each step; has the profiler watch `STEPS` of them once `WARM_UP` are over."""

    def __init__(self, device: DeviceType) -> None:
        self._device = device
        activity = ProfilerActivity.CUDA if device == DeviceType.CUDA else ProfilerActivity.CPU
        self._profiler = profile(activities=[activity])
        self.seconds = 0.0
        self._started = 0.0

    def __call__(self, step: int) -> None:
        if step == WARM_UP:
            self._wait()
            self._profiler.start()
            self._started = time.perf_counter()
        elif step == WARM_UP + STEPS:
            self._wait()
            self.seconds = time.perf_counter() - self._started
            self._profiler.stop()

    def kernels(self) -> dict[str, tuple[float, int]]:
        """Seconds and number of each kernel, by name, over all watched steps."""
        on_gpu = self._device == DeviceType.CUDA
        found: dict[str, tuple[float, int]] = {}
        for row in self._profiler.key_averages():
            spent = getattr(row, "self_device_time_total", 0) or getattr(row, "self_cuda_time_total", 0) if on_gpu \
                else row.self_cpu_time_total
            if row.device_type == self._device and spent:
                found[row.key] = (spent / 1e6, row.count)
        return found

    def _wait(self) -> None:
        if self._device == DeviceType.CUDA:
            torch.cuda.synchronize()


def told(kernels: dict[str, tuple[float, int]], seconds: float, top: int) -> str:
    """A table by kind, then the `top` longest kernels."""
    kinds: dict[str, list[Any]] = defaultdict(lambda: [0.0, 0])
    for name, (spent, count) in kernels.items():
        kinds[kind_of(name)][0] += spent
        kinds[kind_of(name)][1] += count
    lines = [f"{'kind':<16}{'ms a step':>11}{'share':>8}{'launched':>10}"]
    rows = [*sorted(kinds.items(), key=lambda row: -row[1][0])]
    rows.append(("idle", [max(0.0, seconds - sum(spent for spent, _ in kernels.values())), 0]))
    lines += [f"{kind:<16}{1e3 * spent / STEPS:11.2f}{spent / seconds:8.1%}{count / STEPS:10.0f}" for kind, (spent, count) in rows]
    longest = sorted(kernels.items(), key=lambda row: -row[1][0])[:top]
    lines += ["", f"{'ms a step':>9}{'launched':>10}  kernel"]
    lines += [f"{1e3 * spent / STEPS:9.2f}{count / STEPS:10.0f}  {name[:110]}" for name, (spent, count) in longest]
    return "\n".join(lines)


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=None)
    parser.add_argument("--batch", type=int, default=16 if on_gpu else 1)
    parser.add_argument("--profile", default="fast" if on_gpu else "none")
    parser.add_argument("--speed-up", choices=["none", "graphs", "compile"], default="none")
    parser.add_argument("--attention", choices=list(BACKENDS), default="torch", help="whose kernels are tried first")
    parser.add_argument("--top", type=int, default=12)
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = parsed.base or base_for(folder)
        side = load_checkpoint(base).resolution
        watch = Watch(DeviceType.CUDA if on_gpu else DeviceType.CPU)
        with attention_by(parsed.attention):
            ours(base, folder, pictures(folder, side), parsed.batch, STEPS, parsed.profile, parsed.speed_up, watch)
        how = f"{parsed.profile}, batch {parsed.batch} + {parsed.batch}, speed-up {parsed.speed_up}, attention {parsed.attention}"
        where = torch.cuda.get_device_name() if on_gpu else "CPU"
        print(f"{base.name}, {side} px, {how}, on {where}: {1e3 * watch.seconds / STEPS:.1f} ms a step")
        print(told(watch.kernels(), watch.seconds, parsed.top), flush=True)


if __name__ == "__main__":
    main()
