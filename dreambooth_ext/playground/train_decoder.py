"""The second half of the autoencoder's training: the decoder alone, while the UNet already learns the latents."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch

from . import latents, networks, pacing, train_vae

LEARNING_RATE = 3e-4
BATCH = 6
LATENT_NOISE = 0.03  # std, in units of the latents' own: what diffusion samples is never exact


def batch_of(pictures: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    """Random pictures (BATCH, 3, 64, 64) in -1..1."""
    chosen = train_vae.to_tensor(pictures[np.sort(rng.integers(len(pictures), size=BATCH))])
    return chosen.contiguous(memory_format=torch.channels_last)


def train(out: Path, minutes: float) -> None:
    """Train, or go on training, up to `minutes` in all; `decoder_state.pt` holds the two modules after the latent."""
    torch.set_num_threads(1)
    vae = latents.load_vae(out).to(memory_format=torch.channels_last)
    trained = torch.nn.ModuleList([vae.post_quant_conv, vae.decoder]).train().requires_grad_(True)
    parameters = list(trained.parameters())
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, betas=(0.9, 0.99))
    state = pacing.load_state(out / "decoder_state.pt")
    step = 0
    if state:
        trained.load_state_dict(state["trained"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    clock = pacing.Clock(minutes, state["spent_s"] if state else 0.0)

    def save() -> None:
        pacing.save_state(
            out / "decoder_state.pt", trained=trained.state_dict(), optimizer=optimizer.state_dict(), step=step,
            spent_s=clock.spent_s,
        )

    pictures = np.load(out / "vae_pictures.npy", mmap_mode="r")
    rng = np.random.default_rng((6, step))
    said, seen, recent = time.monotonic(), 0, []
    while clock.progress < 1:
        pacing.set_learning_rate(optimizer, LEARNING_RATE * pacing.cosine(clock.progress))
        batch = batch_of(pictures, rng)
        with torch.no_grad():
            latent = vae.encode(batch).latent_dist.sample()
            latent += LATENT_NOISE / networks.SCALING_FACTOR * torch.randn_like(latent)
        optimizer.zero_grad()
        loss = train_vae.decoder_loss(vae.decode(latent).sample, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step, seen = step + 1, seen + BATCH
        recent.append(loss.item())
        if time.monotonic() - said > 30:
            rate = seen / (time.monotonic() - said)
            line = f"decoder {clock.progress:6.1%} step {step} loss {np.mean(recent):.4f} {rate:.1f} images/s"
            print(line, flush=True)
            said, seen, recent = time.monotonic(), 0, []
        if clock.save_is_due():
            save()
    save()


def load_vae(out: Path) -> networks.AutoencoderKL:
    """The calibrated autoencoder with its decoder as far as trained."""
    vae = latents.load_vae(out)
    state = pacing.load_state(out / "decoder_state.pt")
    if state:
        torch.nn.ModuleList([vae.post_quant_conv, vae.decoder]).load_state_dict(state["trained"])
    return vae.eval().requires_grad_(False)
