"""What each memory profile learns of the demo's subject in the same steps, and how far its weights are from another seed's.

    python -m benchmarks.bench_quality [--runs fast:0 fast:1 low:0 ...] [--rounds 5] [--folder DIR]
                                       [--lora-rank N --learning-rate X]

Each run is PROFILE:SEED with the demo's settings; the demo's program judges 40 pictures with the token and 40 of the class in
each round. The demo makes one; of 40 pictures a share of 80 % is known to 6 %, of 200 to 3 %.
"distance" is the length of the difference between a run's UNet and the first run's, as a share of how far the first run moved
from the base: what another profile changes is to be compared with what another seed changes. Runs that DIR holds finished
are judged again, not trained again. A LoRA is judged merged into the base; it wants another learning rate than the demo's.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dreambooth_ext import recipe
from dreambooth_ext.demo import demo_config, draw_pictures, score_of
from dreambooth_ext.hosts.standalone import StandaloneHost
from dreambooth_ext.models.load import load_checkpoint
from dreambooth_ext.playground.base import playground_base_path
from dreambooth_ext.progress import Progress
from dreambooth_ext.run_folder import RunFolder

TARGETS = {"subject": "at least 80 %", "background": "at least 80 % of the base's", "class_shows_subject": "below 10 %"}
RUNS = ("fast:0", "low:0", "balanced:0", "ultra:0", "offload:0", "fast:1", "low:1", "fast:2", "low:2")


def trained(folder: Path, host: StandaloneHost, profile: str, seed: int, more: dict[str, Any]) -> tuple[Path, float]:
    """(published file, seconds a step) of one run."""
    config = replace(demo_config(folder, seed), memory_profile=profile, output_name=f"{profile}_{seed}",
                     publish_format="safetensors", preview_steps=0, auto_select=False, **more)
    path = Path(config.models_dir) / f"{config.output_name}.safetensors"
    run = RunFolder.for_config(config)
    if not path.is_file():
        if run.exists:
            recipe.resume(run, host, Progress())
        else:
            recipe.train(config, host, Progress())
    if config.lora_rank:
        path = recipe.as_checkpoint(config, run.diffusers_dir, folder, config.output_name, Progress())
    times = sorted(entry["seconds"] for entry in run.metrics())
    return path, times[len(times) // 2]


def unet_of(path: Path) -> torch.Tensor:
    """All its weights in one row, fp32."""
    unet = load_checkpoint(path).unet
    return torch.cat([parameter.detach().flatten() for _, parameter in sorted(unet.named_parameters())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", default=list(RUNS), metavar="PROFILE:SEED")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="N times the demo's pictures, each of its own seed")
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--lora-rank", type=int, default=0, metavar="N")
    parser.add_argument("--learning-rate", type=float, default=None, metavar="X")
    parsed = parser.parse_args()
    more = {name: value for name in ("lora_rank", "learning_rate") if (value := getattr(parsed, name))}
    if parsed.lora_rank:
        more |= {"lora_alpha": float(parsed.lora_rank), "text_encoder_learning_rate": None}  # as the preset
    with tempfile.TemporaryDirectory() as name:
        folder = parsed.folder or Path(name)
        host = StandaloneHost(folder / "models", folder / "runs", batch_size=20)
        draw_pictures(folder / "pictures")
        base = unet_of(playground_base_path())
        first: torch.Tensor | None = None
        print("targets: " + ", ".join(f"{name} {target}" for name, target in TARGETS.items()))
        head = ("run", "subject", "background", "class_shows_subject", "class_kept", "distance", "s/step")
        print("".join(f"{word:>20}" for word in head), flush=True)
        score = score_of(host, playground_base_path(), Progress(), parsed.rounds)
        print(f"{'base':>20}" + "".join(f"{value:>20.0%}" for value in vars(score).values()), flush=True)
        for run in parsed.runs:
            profile, _, seed = run.partition(":")
            path, seconds = trained(folder, host, profile, int(seed or 0), more)
            weights = unet_of(path)
            first = weights if first is None else first
            distance = float((weights - first).norm() / (first - base).norm())
            score = score_of(host, path, Progress(), parsed.rounds)
            print(f"{run:>20}" + "".join(f"{value:>20.0%}" for value in vars(score).values())
                  + f"{distance:>20.3f}{seconds:>20.3f}", flush=True)


if __name__ == "__main__":
    main()
