"""What each memory profile needs: bytes of weights, gradients and optimizer state by the estimate, and the measured peak.

    python -m benchmarks.bench_memory [--family sd1] [--profiles low ultra] [--resolution 512] [--steps 4] [--unet-only]
                                      [--lora-rank N] [--base FILE] [--folder DIR]

A base of full size with random weights is written to DIR (2.1 GB for SD 1.5) and removed afterwards, or FILE is taken. Each
profile trains UNet and text encoder (or the UNet alone) with prior preservation, batch 1 + 1, in a process of its own, with one
snapshot and one preview, at the family's own size. On a GPU the allocator's peak counts, on a CPU the peak of the process's
anonymous memory above what it had after its imports. "in" is the phase that reached the peak. A profile that fails is told with
the end of what it printed; the others are measured all the same. Of one that is cut off is told what was seen until then.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dreambooth_ext.config import Concept, TrainConfig
from dreambooth_ext.dataset.manifest import TrainingImage, TrainingSet, sha256_of
from dreambooth_ext.models.family import FAMILIES
from dreambooth_ext.models.load import load_checkpoint
from dreambooth_ext.models.specimen import FULL, specimen
from dreambooth_ext.progress import Progress, Report
from dreambooth_ext.run_folder import RunFolder
from dreambooth_ext.training.estimate import estimate
from dreambooth_ext.training.loop import train
from dreambooth_ext.training.memory import PROFILES, loaded_dtypes

from .memory import AnonymousMemory

GIB = 2**30


def settings(base: Path, folder: Path, profile: str, resolution: int, steps: int, **more: Any) -> TrainConfig:
    return TrainConfig(
        base=str(base), concepts=(Concept(instance_dir=str(folder), token="rxz", class_noun="dog"),), output_name=profile,
        runs_dir=str(folder / "runs"), models_dir=str(folder / "models"), resolution=resolution, steps=steps,
        memory_profile=profile, preview_steps=2, preview_every=steps, snapshot_every=steps, **more)


def pictures(folder: Path, resolution: int) -> TrainingSet:
    draws = np.random.default_rng(0)
    images = []
    for name, prompt in (("instance", "rxz dog"), ("class", "dog")):
        path = folder / f"{name}.png"
        Image.fromarray(draws.integers(0, 255, (resolution, resolution, 3), dtype=np.uint8)).save(path)
        images.append(TrainingImage(path, prompt, sha256_of(path), resolution, resolution))
    return TrainingSet((images[0],), (images[1],))


def measure(config: TrainConfig) -> dict[str, Any]:
    """Bytes at the peak, the phase in which it was reached and steps a second, in this process, which must have trained
    nothing before."""
    import accelerate  # noqa: F401  part of the baseline, like all other imports
    import diffusers.models  # noqa: F401
    import transformers.models.clip.modeling_clip  # noqa: F401
    from torch import _dynamo  # noqa: F401  gradient checkpointing asks for it

    base, folder = Path(config.base), Path(config.concepts[0].instance_dir)
    dataset = pictures(folder, config.resolution or 0)
    run = RunFolder.for_config(config)
    run.create(config)
    times: list[float] = []
    peaks: list[tuple[int, str]] = []
    memory = None if torch.cuda.is_available() else AnonymousMemory()

    def most() -> int:
        return torch.cuda.max_memory_allocated() if memory is None else memory.added

    def hear(report: Report) -> None:
        if "loss" in report.figures:
            times.append(time.perf_counter())
        if report.phase != "log":
            phase = "snapshot, preview" if report.image is not None else report.phase
            peaks.append((most(), phase))
            print(json.dumps(seen("so far")), flush=True)

    def seen(after: str) -> dict[str, Any]:
        peak = most()
        return {"peak": peak, "phase": next((phase for bytes_, phase in peaks if bytes_ >= peak), after),
                "steps_per_s": pace(times)}

    with memory or nullcontext():
        train(config, load_checkpoint(base, dtypes=loaded_dtypes(config)), dataset, run, Progress(hear))
    return seen("result")


def pace(times: list[float]) -> float | None:
    """Steps a second from the first step's end on; the last two are told only after the validation loss that follows them."""
    return (len(times) - 3) / (times[-3] - times[0]) if len(times) > 3 else None


def in_a_process(config: TrainConfig) -> dict[str, Any]:
    """What `measure` finds, or {"fault": sentence}. The pictures' folder is made, and removed with all that is in it."""
    place = Path(config.concepts[0].instance_dir)
    place.mkdir()
    call = [sys.executable, "-m", "benchmarks.bench_memory", "--child", json.dumps(config.to_dict())]
    lines: list[str] = []
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert child.stdout is not None
        try:
            for line in child.stdout:
                lines += [line] if line.startswith("{") else []
        except SystemExit:  # told to end
            child.kill()
            print(f"{config.memory_profile:>13}  cut off{told(json.loads(lines[-1])) if lines else ''}", flush=True)
            raise
        finally:
            failed = child.wait()
            shutil.rmtree(place)  # up to 19 GB
        if not failed:
            return json.loads(lines[-1])
        errors.seek(0)
        said = errors.read().strip().splitlines() or ["no output"]
    print("\n".join(said[-20:]), file=sys.stderr, flush=True)
    return {"fault": said[-1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=[family.key for family in FAMILIES if family.key in FULL], default="sd1")
    parser.add_argument("--profiles", nargs="+", default=list(PROFILES))
    parser.add_argument("--resolution", type=int, default=None)
    parser.add_argument("--unet-only", action="store_true", help="leave the text encoders as they are")
    parser.add_argument("--lora-rank", type=int, default=0, help="train a LoRA of this rank instead")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--base", type=Path, default=None)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--child", default=None, help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))
    if parsed.child:
        print(json.dumps(measure(TrainConfig.from_dict(json.loads(parsed.child)))), flush=True)
        return
    family = next(family for family in FAMILIES if family.key == parsed.family)
    side = parsed.resolution or family.resolution
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    with tempfile.TemporaryDirectory(dir=parsed.folder) as name:
        base = parsed.base or specimen(family, size=FULL[family.key]).write(Path(name) / "base.safetensors", torch.float16)
        trained = f"a LoRA of rank {parsed.lora_rank}, " if parsed.lora_rank else ""
        trained += "UNet alone" if parsed.unet_only else "UNet and text encoders"
        print(f"{family.name}, {trained}, {side} px, batch 1 + 1, {parsed.steps} steps, on {where}. All in GiB.")
        head = ("profile", "weights", "gradients", "optimizer", "activations", "sum", "measured", "steps/s", "in")
        print("".join(f"{word:>13}" for word in head), flush=True)
        more = {"train_text_encoder": not parsed.unet_only, "lora_rank": parsed.lora_rank}
        wished = [settings(base, Path(name) / profile, profile, side, parsed.steps, **more) for profile in parsed.profiles]
        for config, row in zip(wished, estimate(wished[0], profiles=parsed.profiles), strict=True):
            found = in_a_process(config)
            parts = (row.weights, row.gradients, row.optimizer_state, row.activations)
            counted = "".join(f"{value / GIB:13.2f}" for value in (*parts, sum(parts)))
            print(f"{config.memory_profile:>13}{counted}{told(found)}", flush=True)


def told(found: dict[str, Any]) -> str:
    if "fault" in found:
        return f"  failed: {found['fault']}"
    rate = "-" if found["steps_per_s"] is None else f"{found['steps_per_s']:.3f}"
    return f"{found['peak'] / GIB:13.2f}{rate:>13}  {found['phase']}"


if __name__ == "__main__":
    main()
