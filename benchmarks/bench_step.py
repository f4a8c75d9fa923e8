"""Steps a second: this trainer beside a plain loop, and on request beside diffusers' own script.

    python -m benchmarks.bench_step [--base FILE] [--batch 1 2 4 8] [--steps 60] [--profile fast] [--peer-script FILE]

UNet and text encoder are trained with prior preservation, fp32 on a CPU and bf16 autocast on a GPU, at the base's own size.
Without --base the packaged base is taken on a CPU; on a GPU random weights of Stable Diffusion 1.5's full size. The plain loop
is written as train_dreambooth.py works: pictures, latents and prompts are encoded in each step, AdamW, gradients clipped.
--peer-script names a copy of that script, which is then run as it is on the same base, pictures and settings.
TFLOP/s count the multiplications and additions of forward and backward passes; MFU is their share of --peak-tflops.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dreambooth_ext.config import Concept, TrainConfig
from dreambooth_ext.dataset.manifest import TrainingSet
from dreambooth_ext.models.conversion import convert
from dreambooth_ext.models.family import SD1
from dreambooth_ext.models.load import StableDiffusion, load_checkpoint
from dreambooth_ext.models.specimen import FULL, specimen
from dreambooth_ext.models.text_encoder import encode_prompts
from dreambooth_ext.playground.base import playground_base_path
from dreambooth_ext.progress import Progress, Report
from dreambooth_ext.run_folder import RunFolder
from dreambooth_ext.training.data import pixels_of
from dreambooth_ext.training.loop import train

from .bench_memory import pictures

PROMPTS = ("rxz dog", "dog")
WARM_UP = 5


def ours(base: Path, folder: Path, dataset: TrainingSet, batch: int, steps: int, profile: str) -> float:
    """Steps a second of the engine, its caches made before, from the `WARM_UP`th step on."""
    config = TrainConfig(
        base=str(base), concepts=(Concept(instance_dir=str(folder), token="rxz", class_noun="dog"),), output_name=f"ours-{batch}",
        runs_dir=str(folder / "runs"), models_dir=str(folder / "models"), resolution=dataset.instance[0].width, steps=steps,
        train_batch_size=batch, memory_profile=profile, preview_steps=0, snapshot_every=10 * steps)
    run = RunFolder.for_config(config)
    run.create(config)
    times: list[float] = []

    def hear(report: Report) -> None:
        if "loss" in report.figures:
            times.append(time.perf_counter())

    many = TrainingSet(dataset.instance * batch, dataset.prior * batch)
    train(config, load_checkpoint(base), many, run, Progress(hear))
    # The last step carries the validation loss and what follows the loop; it does not count.
    return (len(times) - 2 - WARM_UP) / (times[-2] - times[WARM_UP])


def plain(base: Path, dataset: TrainingSet, batch: int, steps: int) -> float:
    """Steps a second of a loop that does everything anew in each step."""
    model = load_checkpoint(base)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for module in model.modules:
        module.float().to(device).requires_grad_(module is not model.vae)
    trained = [parameter for module in model.modules for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-6)
    step = plain_step(model, dataset, batch, device, trained, optimizer)
    for _ in range(WARM_UP):
        step()
    return steps / seconds_of(lambda: [step() for _ in range(steps)], device)


def plain_step(
    model: StableDiffusion, dataset: TrainingSet, batch: int, device: torch.device, trained: list[Any],
    optimizer: torch.optim.Optimizer,
) -> Callable[[], None]:
    alphas = model.alphas_cumprod().float().to(device)

    def step() -> None:
        pixels = torch.stack([pixels_of(images[0].path) for images in (dataset.instance, dataset.prior) for _ in range(batch)])
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            with torch.no_grad():
                latents = model.vae.encode(pixels.to(device)).latent_dist.sample() * model.vae.config.scaling_factor
            noise = torch.randn_like(latents)
            timesteps = torch.randint(0, 1000, (len(latents),), device=device)
            signal = alphas[timesteps][:, None, None, None]
            noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
            hidden = encode_prompts(model, [prompt for prompt in PROMPTS for _ in range(batch)], 1).hidden_states
            prediction = model.unet(noisy, timesteps, hidden).sample
        of_instance, of_prior = ((prediction.float() - noise.float()) ** 2).chunk(2)
        (of_instance.mean() + of_prior.mean()).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def peer(script: Path, base: Path, folder: Path, dataset: TrainingSet, batch: int, steps: int) -> float:
    """Steps a second that the script's own bar shows at its end, of one process on this machine."""
    model = folder / "peer-base"
    if not model.is_dir():
        convert(base, model)
    for name, images in (("instance", dataset.instance), ("class", dataset.prior)):
        (folder / name).mkdir(exist_ok=True)
        for number in range(batch):
            (folder / name / f"{number}.png").write_bytes(images[0].path.read_bytes())
    call = [sys.executable, str(script), "--pretrained_model_name_or_path", str(model), "--instance_data_dir",
            str(folder / "instance"), "--class_data_dir", str(folder / "class"), "--with_prior_preservation",
            "--num_class_images", str(batch), "--instance_prompt", PROMPTS[0], "--class_prompt", PROMPTS[1],
            "--train_text_encoder", "--resolution", str(dataset.instance[0].width), "--train_batch_size", str(batch),
            "--max_train_steps", str(steps), "--checkpointing_steps", str(10 * steps), "--output_dir", str(folder / "peer-out"),
            "--mixed_precision", "bf16" if torch.cuda.is_available() else "no"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": str(not torch.cuda.is_available()).lower()}
    done = subprocess.run(call, capture_output=True, text=True, check=False, env=environment)
    return pace_of(done.stderr, steps)


def pace_of(output: str, steps: int) -> float:
    """From the bars of a log: the time between the `WARM_UP`th and the last step."""
    seconds = {}
    for done, clock in re.findall(rf"(\d+)/{steps} \[(\d+:\d+(?::\d+)?)<", output):
        parts = [int(part) for part in clock.split(":")]
        seconds[int(done)] = sum(part * 60**power for power, part in enumerate(reversed(parts)))
    if steps not in seconds:
        raise SystemExit("the peer's script did not finish:\n" + "\n".join(output.splitlines()[-5:]))
    return (steps - WARM_UP) / max(1, seconds[steps] - seconds.get(WARM_UP, 0))


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def tflop_of_a_step(base: Path, dataset: TrainingSet, batch: int) -> float:
    """Forward and backward pass of UNet and text encoder over batch + batch pictures, in 1e12 operations."""
    from torch.utils.flop_counter import FlopCounterMode

    model = load_checkpoint(base)
    model.requires_grad_(True)
    side = dataset.instance[0].width // 8
    for module in (model.unet, *model.text_encoders):
        module.float()
    with FlopCounterMode(display=False) as counter:
        hidden = encode_prompts(model, list(PROMPTS), 1).hidden_states
        model.unet(torch.randn(2, 4, side, side), torch.tensor([1, 2]), hidden).sample.mean().backward()
    return counter.get_total_flops() * batch / 1e12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=None)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--profile", default="fast" if torch.cuda.is_available() else "none")
    parser.add_argument("--peer-script", type=Path, default=None)
    parser.add_argument("--peak-tflops", type=float, default=None, help="of the card in bf16, for the MFU")
    parsed = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    where = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = parsed.base or (specimen(SD1, size=FULL["sd1"]).write(folder / "base.safetensors", torch.float16) if on_gpu
                               else playground_base_path())
        side = load_checkpoint(base).resolution
        dataset = pictures(folder, side)
        print(f"{base.name}, {side} px, {parsed.profile}, on {where}: steps/s")
        print(f"{'batch':>6}{'ours':>10}{'plain':>10}{'script':>10}{'images/s':>10}{'TFLOP/s':>10}{'MFU':>8}", flush=True)
        for batch in parsed.batch:
            rates = [ours(base, folder, dataset, batch, parsed.steps + WARM_UP + 2, parsed.profile),
                     plain(base, dataset, batch, parsed.steps)]
            scripts = f"{peer(parsed.peer_script, base, folder, dataset, batch, parsed.steps + WARM_UP):10.2f}" \
                if parsed.peer_script else f"{'-':>10}"
            tflops = tflop_of_a_step(base, dataset, batch) * rates[0]
            share = f"{tflops / parsed.peak_tflops:8.1%}" if parsed.peak_tflops else f"{'-':>8}"
            paces = f"{rates[0]:10.2f}{rates[1]:10.2f}{scripts}"
            print(f"{batch:>6}{paces}{2 * batch * rates[0]:10.1f}{tflops:10.3f}{share}", flush=True)


if __name__ == "__main__":
    main()
