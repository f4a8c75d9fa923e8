"""Seconds of an update and bytes of state for each optimizer, beside torch's own AdamW and bitsandbytes where it is.

    python -m benchmarks.bench_optimizer [--millions 50] [--repeats 5]

Two weights, a matrix and a convolution's kernel, of --millions parameters together; gradients are random; the best run counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch

from dreambooth_ext.config import TrainConfig
from dreambooth_ext.training.memory import Plan
from dreambooth_ext.training.optimizer import OPTIMIZERS
from dreambooth_ext.training.optimizers.chunked import ChunkedOptimizer

Maker = Callable[[list[dict]], torch.optim.Optimizer]


def makers(device: str) -> Iterator[tuple[str, torch.dtype, Maker]]:
    """(name, dtype of the weights, what makes it)"""
    yield "torch AdamW, foreach", torch.float32, lambda groups: torch.optim.AdamW(groups, foreach=True)
    yield "torch AdamW, fused", torch.float32, lambda groups: torch.optim.AdamW(groups, fused=True)
    for name, row in OPTIMIZERS.items():
        for weights, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            if name == "offloaded_adamw" and weights == "fp32":
                continue
            plan = Plan("measured", name, weights=weights, device=device)
            config = TrainConfig(learning_rate=1.0 if name == "prodigy" else 1e-6)
            yield f"{name}, {weights} weights", dtype, partial(row.build, config=config, plan=plan)
    try:
        import bitsandbytes
    except ImportError:
        print("bitsandbytes is not installed: not measured")
        return
    yield "bitsandbytes AdamW8bit", torch.float32, lambda groups: bitsandbytes.optim.AdamW8bit(groups)


def measure(make: Maker, dtype: torch.dtype, millions: float, repeats: int, device: str) -> tuple[float, float]:
    """(seconds of the best update, bytes of state a parameter)"""
    side = int((millions * 5e5) ** 0.5)
    shapes = [(side, side), (max(1, side // 3), max(1, side // 3), 3, 3)]
    draws = torch.Generator(device).manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(shape, generator=draws, device=device).to(dtype)) for shape in shapes]
    optimizer = make([{"params": weights, "name": "unet", "lr": 1e-6}])
    best = float("inf")
    for _ in range(repeats + 1):  # the first makes the state
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=draws, device=device).to(dtype) * 1e-3
        synchronize(device)
        started = time.perf_counter()
        optimizer.step()
        if isinstance(optimizer, ChunkedOptimizer):
            optimizer.finish()  # the offloaded one goes on in a thread
        synchronize(device)
        best = min(best, time.perf_counter() - started)
    count = sum(weight.numel() for weight in weights)
    held = sum(value.numel() * value.element_size() for state in optimizer.state.values() for value in state.values()
               if isinstance(value, torch.Tensor))
    return best, held / count


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=float, default=50.0)
    parser.add_argument("--repeats", type=int, default=5)
    parsed = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{parsed.millions:g} million parameters on {where}")
    print(f"{'':32}{'ms an update':>14}{'ns a parameter':>16}{'bytes a parameter':>19}")
    for name, dtype, make in makers(device):
        seconds, held = measure(make, dtype, parsed.millions, parsed.repeats, device)
        print(f"{name:32}{seconds * 1e3:14.1f}{seconds * 1e9 / (parsed.millions * 1e6):16.2f}{held:19.3f}", flush=True)


if __name__ == "__main__":
    main()
