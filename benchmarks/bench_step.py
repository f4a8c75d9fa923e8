"""Steps a second: this trainer beside a plain loop, and on request beside diffusers' own script.

    python -m benchmarks.bench_step [--base FILE] [--batch 1 2 4 8] [--steps 60] [--profile fast] [--speed-ups none graphs]
                                    [--attention cudnn] [--peer-script FILE]

UNet and text encoder are trained with prior preservation, fp32 on a CPU and bf16 autocast on a GPU, at the base's own size.
Without --base the packaged base is taken on a CPU; on a GPU random weights of Stable Diffusion 1.5's full size. The plain loop
is written as train_dreambooth.py works: pictures, latents and prompts are encoded in each step, AdamW, gradients clipped.
--peer-script names a copy of that script, which is then run as it is on the same base, pictures and settings.
On a CPU a second is one of the process's own CPU time, so that what else the machine does is not measured; the script's is that
of a run less that of a run of `WARM_UP` steps. "begins" is how much longer the first `WARM_UP` steps took than as many later ones:
what a compiler or a recording costs.
TFLOP/s count the multiplications and additions of the UNet's forward and backward passes; MFU is their share of --peak-tflops.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dreambooth_ext.config import Concept, TrainConfig
from dreambooth_ext.dataset.manifest import TrainingSet
from dreambooth_ext.errors import DreamboothError
from dreambooth_ext.gpu import release
from dreambooth_ext.models.conversion import convert
from dreambooth_ext.models.family import SD1
from dreambooth_ext.models.load import load_checkpoint
from dreambooth_ext.models.specimen import FULL, specimen
from dreambooth_ext.models.stable_diffusion import StableDiffusion
from dreambooth_ext.models.text_encoder import encode_tokens, tokenize
from dreambooth_ext.playground.base import playground_base_path
from dreambooth_ext.progress import Progress, Report
from dreambooth_ext.run_folder import RunFolder
from dreambooth_ext.training.data import pixels_of
from dreambooth_ext.training.estimate import weightless
from dreambooth_ext.training.loop import train

from .attention import BACKENDS, attention_by
from .bench_memory import pictures

PROMPTS = ("rxz dog", "dog")
WARM_UP = 5
# Dense bf16, by the makers' sheets; the first name that the card's holds.
PEAK_TFLOPS = {"H100 PCIe": 756.0, "H100 NVL": 835.0, "H100": 989.0, "H200 NVL": 835.0, "H200": 989.0, "A100": 312.0, "4090": 165.0,
               "3090": 71.0}


class Enough(Exception):
    """Ends a run whose steps were timed: no model is written, which would take longer than its steps."""


def ours(
    base: Path, folder: Path, dataset: TrainingSet, batch: int, steps: int, profile: str, speed_up: str,
    watch: Callable[[int], None] = lambda step: None,
) -> tuple[float, float]:
    """Steps a second of the engine over `steps` steps after `WARM_UP` of them, its caches made before; and what beginning took,
    in seconds. `watch` hears how many steps are over."""
    config = TrainConfig(
        base=str(base), concepts=(Concept(instance_dir=str(folder), token="rxz", class_noun="dog"),),
        output_name=f"ours-{batch}-{speed_up}",
        runs_dir=str(folder / "runs"), models_dir=str(folder / "models"), resolution=dataset.instance[0].width,
        steps=10 * (WARM_UP + steps), train_batch_size=batch, memory_profile=profile, speed_up=speed_up, preview_steps=0,
        snapshot_every=10 * (WARM_UP + steps), validation_every=10 * (WARM_UP + steps))
    run = RunFolder.for_config(config)
    run.create(config)
    times: list[float] = []

    def hear(report: Report) -> None:
        if "loss" in report.figures or (report.phase == "training" and not times):
            times.append(now())
            watch(len(times) - 1)
        if len(times) > WARM_UP + steps:
            raise Enough

    many = TrainingSet(dataset.instance * batch, dataset.prior * batch)
    try:
        train(config, load_checkpoint(base), many, run, Progress(hear))
    except Enough as enough:
        traceback.clear_frames(enough.__traceback__)  # they hold what is on the device
    a_step = (times[WARM_UP + steps] - times[WARM_UP]) / steps
    return 1 / a_step, times[WARM_UP] - times[0] - WARM_UP * a_step


def base_for(folder: Path) -> Path:
    """The packaged base on a CPU; on a GPU random weights of full size, written into `folder`."""
    if torch.cuda.is_available():
        return specimen(SD1, size=FULL["sd1"]).write(folder / "base.safetensors", torch.float16)
    return playground_base_path()


def now() -> float:
    return time.perf_counter() if torch.cuda.is_available() else time.process_time()


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
            hidden = encode_tokens(model, tokenize(model, [prompt for prompt in PROMPTS for _ in range(batch)])).hidden_states
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
    if torch.cuda.is_available():
        return pace_of(finished(call, environment).stderr, steps)
    short = [str(WARM_UP) if word == str(steps) and call[place - 1] == "--max_train_steps" else word
             for place, word in enumerate(call)]
    begun = cpu_seconds(short, environment)
    return (steps - WARM_UP) / (cpu_seconds(call, environment) - begun)


def finished(call: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(call, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit("the peer's script did not finish:\n" + "\n".join(done.stderr.splitlines()[-5:]))
    return done


def cpu_seconds(call: list[str], environment: dict[str, str]) -> float:
    """Of a command and what it starts and waits for."""
    before = os.times()
    finished(call, environment)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


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
    started = now()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return now() - started


def tried(work: Callable[[], Any]) -> Any:
    """What `work` gives, or why it gave nothing: the other rows can still be had. What it took is given back."""
    try:
        return work()
    except (DreamboothError, RuntimeError) as error:
        traceback.print_exc()
        traceback.clear_frames(error.__traceback__)
        return f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    finally:
        release()


def tflop_of_an_image(model: StableDiffusion, side: int) -> float:
    """Forward and backward pass of the UNet over one picture of `side` px, in 1e12 operations; counted on the meta device."""
    from torch.utils.flop_counter import FlopCounterMode

    unet = weightless(model).unet.requires_grad_(True)
    noisy = torch.empty(1, unet.config.in_channels, side // 8, side // 8, device="meta")
    hidden = torch.empty(1, 77, unet.config.cross_attention_dim, device="meta")
    with FlopCounterMode(display=False) as counter:
        unet(noisy, torch.empty((1,), dtype=torch.int64, device="meta"), hidden).sample.mean().backward()
    return counter.get_total_flops() / 1e12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=None)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--profile", default="fast" if torch.cuda.is_available() else "none")
    parser.add_argument("--speed-ups", nargs="+", choices=["none", "graphs", "compile"], default=["none"])
    parser.add_argument("--attention", choices=list(BACKENDS), default="torch", help="whose kernels this trainer tries first")
    parser.add_argument("--no-plain", dest="plain", action="store_false", help="leave the plain loop out")
    parser.add_argument("--peer-script", type=Path, default=None)
    parser.add_argument("--peak-tflops", type=float, default=None, help="of the card in bf16, for the MFU (known for some cards)")
    parsed = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    where = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    peak = parsed.peak_tflops or next((value for name, value in PEAK_TFLOPS.items() if on_gpu and name in where), None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = parsed.base or base_for(folder)
        model = load_checkpoint(base)
        side = model.resolution
        an_image = tflop_of_an_image(model, side)
        del model
        dataset = pictures(folder, side)
        print(f"{base.name}, {side} px, {parsed.profile}, attention {parsed.attention}, on {where}: steps/s")
        print(f"{'batch':>6}{'speed-up':>10}{'begins, s':>11}{'ours':>10}{'plain':>10}{'script':>10}{'images/s':>10}{'TFLOP/s':>10}"
              f"{'MFU':>8}", flush=True)
        for batch in parsed.batch:
            work = 2 * batch * an_image
            pace = tried(lambda batch=batch: plain(base, dataset, batch, parsed.steps)) if parsed.plain else "-"
            others = f"{pace:>10}" if isinstance(pace, str) else f"{pace:10.2f}"
            others += f"{peer(parsed.peer_script, base, folder, dataset, batch, parsed.steps + WARM_UP):10.2f}" \
                if parsed.peer_script else f"{'-':>10}"
            for speed_up in parsed.speed_ups:
                with attention_by(parsed.attention):
                    found = tried(lambda batch=batch, speed_up=speed_up: ours(base, folder, dataset, batch, parsed.steps,
                                                                              parsed.profile, speed_up))
                if isinstance(found, str):
                    print(f"{batch:>6}{speed_up:>10}  {found}", flush=True)
                    continue
                rate, begins = found
                tflops = work * rate
                share = f"{tflops / peak:8.1%}" if peak else f"{'-':>8}"
                paces = f"{begins:11.1f}{rate:10.2f}{others}"
                print(f"{batch:>6}{speed_up:>10}{paces}{2 * batch * rate:10.1f}{tflops:10.3f}{share}", flush=True)


if __name__ == "__main__":
    main()
