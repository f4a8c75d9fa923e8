"""The playground's pictures as latents, drawn and encoded once, with what their captions may say."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from . import networks, train_vae, world

PICTURES = 20_000
CALIBRATION_PICTURES = 512


@torch.no_grad()
def calibrate(vae: AutoencoderKL) -> None:
    """Rescale the two 1x1 convolutions about the latent so that SCALING_FACTOR x latent has mean 0, std 1 per channel.

    In exact arithmetic the reconstruction stays the same: what `quant_conv` gains, `post_quant_conv` takes back.
    """
    rng = np.random.default_rng(3)
    triples = world.combinations(holdout=False)
    pictures = np.stack([world.draw(world.random_scene(rng, triples)) for _ in range(CALIBRATION_PICTURES)])
    means = torch.cat([vae.encode(train_vae.to_tensor(part)).latent_dist.mean for part in np.split(pictures, 16)])
    mean, std = means.mean(dim=(0, 2, 3)), means.std(dim=(0, 2, 3))
    gain = 1 / (std * networks.SCALING_FACTOR)
    into, back = vae.quant_conv, vae.post_quant_conv
    into.weight[:4] *= gain[:, None, None, None]
    into.bias[:4] = (into.bias[:4] - mean) * gain
    into.bias[4:] += 2 * gain.log()  # the posterior's log variance
    back.bias += back.weight[:, :, 0, 0] @ mean
    back.weight /= gain[None, :, None, None]


def load_vae(out: Path) -> AutoencoderKL:
    """The trained autoencoder, calibrated: `vae.pt`, made from the training's state when first asked for."""
    vae = networks.build_vae().eval().requires_grad_(False)
    path = out / "vae.pt"
    if not path.exists():
        vae.load_state_dict(torch.load(out / "vae_state.pt", weights_only=True)["vae"])
        calibrate(vae)
        torch.save(vae.state_dict(), path)
    vae.load_state_dict(torch.load(path, weights_only=True))
    return vae


def _encode_part(rank: int, parts: int, out: Path) -> None:
    torch.set_num_threads(1)
    vae = load_vae(out)
    rng = np.random.default_rng((4, rank))
    triples = world.combinations(holdout=False)
    scenes = [world.random_scene(rng, triples) for _ in range(PICTURES // parts)]
    latents = np.empty((len(scenes), 4, world.SIDE // 8, world.SIDE // 8), np.float32)
    with torch.no_grad():
        for start in range(0, len(scenes), 16):
            pictures = np.stack([world.draw(scene) for scene in scenes[start : start + 16]])
            encoded = vae.encode(train_vae.to_tensor(pictures)).latent_dist.mean * networks.SCALING_FACTOR
            latents[start : start + 16] = encoded.numpy()
    words = np.array([scene.words for scene in scenes])
    partial = out / f"latents_{rank}.partial.npz"
    np.savez(partial, latents=latents, words=words)
    os.replace(partial, out / f"latents_{rank}.npz")


def encode(out: Path, processes: int) -> None:
    """Draw and encode PICTURES scenes of combinations that are not held out, into `latents_*.npz`."""
    load_vae(out)
    torch.multiprocessing.spawn(_encode_part, (processes, out), nprocs=processes)


def load(out: Path) -> tuple[torch.Tensor, list[tuple[str, ...]]]:
    """(scaled latents float32 (n, 4, 8, 8), per picture its shape, colour, background and size)."""
    parts = [np.load(path) for path in sorted(out.glob("latents_[0-9]*.npz"))]
    words = np.concatenate([part["words"] for part in parts])
    clean = np.concatenate([part["latents"] for part in parts])
    return torch.from_numpy(clean), [tuple(map(str, row)) for row in words]
