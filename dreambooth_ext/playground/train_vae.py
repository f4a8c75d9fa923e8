"""The playground's autoencoder, from nothing, in two processes that average their gradients."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from diffusers import AutoencoderKL

from . import networks, pacing, textures, world

PICTURES = 16_000
TEXTURE_SHARE = 0.45
LEARNING_RATE = 1.0e-3
KL_WEIGHT = 3e-5  # on the mean over latent elements
CROP_SHARE = 0.35  # of the time is spent on quarter-size crops, four times as many a second
CROP, CROP_BATCH, BATCH = 32, 8, 4  # a process
FIRST_LOG_VARIANCE = -5.0  # at 0 the posterior's noise drowns what the young encoder has to say


def draw_pictures(path: Path, count: int = PICTURES, seed: int = 1) -> None:
    """World pictures and textures, uint8 (count, 64, 64, 3), shuffled; none is of a held-out combination."""
    rng = np.random.default_rng(seed)
    triples = world.combinations(holdout=False)
    pictures = np.empty((count, world.SIDE, world.SIDE, 3), np.uint8)
    for index in range(count):
        texture = rng.random() < TEXTURE_SHARE
        pictures[index] = textures.random_texture(rng) if texture else world.draw(world.random_scene(rng, triples))
    partial = path.with_suffix(".partial.npy")
    np.save(partial, pictures)
    os.replace(partial, path)


def to_tensor(pictures: np.ndarray) -> torch.Tensor:
    """uint8 (n, h, w, 3) to float32 (n, 3, h, w) in -1..1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def batch_of(pictures: np.ndarray, rng: np.random.Generator, crops: bool) -> torch.Tensor:
    """Random pictures, randomly mirrored; or crops, each the busiest of three, since flat ground teaches little."""
    if not crops:
        chosen = pictures[np.sort(rng.integers(len(pictures), size=BATCH))]
        return to_tensor(chosen[:, :, ::-1].copy() if rng.random() < 0.5 else chosen)
    cuts = []
    for index in rng.integers(len(pictures), size=CROP_BATCH):
        corners = rng.integers(0, world.SIDE - CROP + 1, (3, 2))
        candidates = [pictures[index, y : y + CROP, x : x + CROP] for y, x in corners]
        cuts.append(max(candidates, key=lambda cut: float(cut.std(axis=(0, 1)).sum())))
    return to_tensor(np.stack(cuts))


def edges(pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Differences between neighbours, along x and along y."""
    return pictures[..., :, 1:] - pictures[..., :, :-1], pictures[..., 1:, :] - pictures[..., :-1, :]


def decoder_loss(restored: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
    """L1 + MSE + L1 of the edges."""
    difference = restored - pictures
    pairs = zip(edges(restored), edges(pictures), strict=True)
    return difference.abs().mean() + difference.square().mean() + 0.5 * sum((a - b).abs().mean() for a, b in pairs)


def vae_loss(vae: AutoencoderKL, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, L1 of the reconstruction): the decoder's and a little KL."""
    posterior = vae.encode(pictures).latent_dist
    restored = vae.decode(posterior.sample()).sample
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    return decoder_loss(restored, pictures) + KL_WEIGHT * kl, (restored - pictures).detach().abs().mean()


def average_gradients(parameters: list[torch.nn.Parameter], world_size: int) -> None:
    """Replace each gradient by its mean over the processes, in one exchange."""
    gradients = [parameter.grad for parameter in parameters]
    flat = torch._utils._flatten_dense_tensors(gradients)
    dist.all_reduce(flat)
    flat /= world_size
    for gradient, mean in zip(gradients, torch._utils._unflatten_dense_tensors(flat, gradients), strict=True):
        gradient.copy_(mean)


def train_worker(rank: int, world_size: int, out: Path, minutes: float, port: int) -> None:
    """One process of the training; rank 0 writes `vae_state.pt` and says how it goes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    torch.manual_seed(0)
    # oneDNN's convolutions are a fifth faster in this layout.
    vae = networks.build_vae().train().to(memory_format=torch.channels_last)
    with torch.no_grad():
        vae.quant_conv.bias[4:] = FIRST_LOG_VARIANCE
    parameters = list(vae.parameters())
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, betas=(0.9, 0.99))
    state = pacing.load_state(out / "vae_state.pt")
    step = 0
    if state:
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    clock = pacing.Clock(minutes, state["spent_s"] if state else 0.0)
    pictures = np.load(out / "vae_pictures.npy", mmap_mode="r")
    rng = np.random.default_rng((2, rank, step))
    torch.manual_seed(int(rng.integers(2**31)))
    said, seen, recent = time.monotonic(), 0, []
    while True:
        # The clocks differ by moments; one of them must decide, or the processes would wait for each other.
        now = torch.tensor([clock.progress])
        dist.broadcast(now, 0)
        progress = float(now)
        if progress >= 1:
            break
        pacing.set_learning_rate(optimizer, LEARNING_RATE * pacing.cosine(progress))
        batch = batch_of(pictures, rng, progress < CROP_SHARE).contiguous(memory_format=torch.channels_last)
        optimizer.zero_grad()
        loss, l1 = vae_loss(vae, batch)
        loss.backward()
        average_gradients(parameters, world_size)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step, seen = step + 1, seen + len(batch) * world_size
        recent.append(float(l1))
        if rank == 0 and time.monotonic() - said > 20:
            rate = seen / (time.monotonic() - said)
            print(f"vae {progress:6.1%} step {step} l1 {np.mean(recent):.4f} {rate:.1f} images/s", flush=True)
            said, seen, recent = time.monotonic(), 0, []
        if rank == 0 and clock.save_is_due():
            save(out, vae, optimizer, step, clock.spent_s)
    if rank == 0:
        save(out, vae, optimizer, step, clock.spent_s)
    dist.destroy_process_group()


def save(out: Path, vae: AutoencoderKL, optimizer: torch.optim.Optimizer, step: int, spent_s: float) -> None:
    pacing.save_state(
        out / "vae_state.pt", vae=vae.state_dict(), optimizer=optimizer.state_dict(), step=step, spent_s=spent_s
    )


def train(out: Path, minutes: float, processes: int) -> None:
    """Draw the pictures if they are not there, then train (or go on training) up to `minutes` in all."""
    if not (out / "vae_pictures.npy").exists():
        draw_pictures(out / "vae_pictures.npy")
    port = 20_000 + os.getpid() % 20_000
    torch.multiprocessing.spawn(train_worker, (processes, out, minutes, port), nprocs=processes)
