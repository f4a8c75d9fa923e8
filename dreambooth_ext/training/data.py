"""What each step is trained on. Latents are cached; every draw comes from (seed, rank, step, micro-batch)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..config import TrainConfig
from ..dataset.manifest import TrainingImage, TrainingSet
from ..models.load import TRAIN_TIMESTEPS
from ..progress import Progress


@dataclass(frozen=True)
class Batch:
    """Instance images first, then as many class images. Latents are scaled, (B, 4, h, w)."""

    latents: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor  # (B,)
    prompts: tuple[str, ...]
    instances: int


@dataclass(frozen=True)
class CachedLatents:
    """Mean and standard deviation of the VAE's posterior, unscaled; both (4, h, w), on the CPU."""

    mean: torch.Tensor
    std: torch.Tensor


def pixels_of(path: Path, mirrored: bool = False) -> torch.Tensor:
    """(3, H, W) float32 in -1..1."""
    with Image.open(path) as image:
        values = np.asarray(image.convert("RGB"), np.float32) / 255.0
    if mirrored:
        values = values[:, ::-1]
    return (torch.from_numpy(np.ascontiguousarray(values)).permute(2, 0, 1) - 0.5) / 0.5


class LatentCache:
    """Latents of all pictures, keyed by the hash of their content and whether they are mirrored."""

    def __init__(self, vae: Any, images: Sequence[TrainingImage], mirrored: bool, progress: Progress) -> None:
        self._latents: dict[tuple[str, bool], CachedLatents] = {}
        flips = (False, True) if mirrored else (False,)
        wanted = {(image.sha256, flip): image.path for image in images for flip in flips}
        progress.start("encoding pictures", len(wanted))
        with torch.no_grad():
            for number, ((sha256, flip), path) in enumerate(wanted.items(), start=1):
                progress.check()
                pixels = pixels_of(path, flip)[None].to(vae.device, vae.dtype)
                posterior = vae.encode(pixels).latent_dist
                mean, std = (part[0].float().cpu() for part in (posterior.mean, posterior.std))
                self._latents[sha256, flip] = CachedLatents(mean, std)
                progress.report(number, len(wanted))

    def __getitem__(self, key: tuple[str, bool]) -> CachedLatents:
        return self._latents[key]


def generator_for(*numbers: int) -> torch.Generator:
    """A CPU generator that depends on all numbers, so that any step can be drawn again."""
    state = np.random.SeedSequence(numbers).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 32 | int(state[1]))


class NativeBatches:
    """The order of an epoch depends on (seed, epoch) alone, all else on (seed, rank, step, micro-batch).

    Pictures of one size make a batch; the last batch of an epoch may be smaller. With several processes each takes
    its share of every batch.
    """

    def __init__(self, config: TrainConfig, dataset: TrainingSet, cache: LatentCache, scaling_factor: float,
                 rank: int = 0, processes: int = 1) -> None:
        self._config, self._dataset, self._cache = config, dataset, cache
        self._scaling_factor, self._rank, self._processes = scaling_factor, rank, processes
        self._epoch_batches = len(self._batches_of_epoch(0))
        self._known: tuple[int, list[list[int]]] = (-1, [])

    def batch(self, step: int, micro: int) -> Batch:
        """The batch of optimizer step `step` (from 0), forward pass `micro`."""
        number = step * self._config.gradient_accumulation_steps + micro
        epoch, place = divmod(number, self._epoch_batches)
        if self._known[0] != epoch:
            self._known = epoch, self._batches_of_epoch(epoch)
        draws = generator_for(self._config.seed, self._rank, step, micro)
        chosen = self._share([self._dataset.instance[index] for index in self._known[1][place]])
        images = [*chosen, *self._prior(number, len(chosen))]
        return self._drawn(images, len(chosen), draws)

    def _drawn(self, images: list[TrainingImage], instances: int, draws: torch.Generator) -> Batch:
        mirrored = torch.rand(len(images), generator=draws) < 0.5
        dropped = torch.rand(len(images), generator=draws) < self._config.caption_dropout
        latents = [self._latents(image, bool(flip), draws) for image, flip in zip(images, mirrored, strict=True)]
        noise = [noise_like(each[None], self._config.noise_offset, draws)[0] for each in latents]
        timesteps = torch.randint(0, TRAIN_TIMESTEPS, (len(images),), generator=draws)
        prompts = tuple("" if drop else image.prompt for image, drop in zip(images, dropped, strict=True))
        return Batch(torch.stack(latents), torch.stack(noise), timesteps, prompts, instances)

    def _latents(self, image: TrainingImage, flip: bool, draws: torch.Generator) -> torch.Tensor:
        cached = self._cache[image.sha256, flip and self._config.random_flip]
        noise = torch.randn(cached.mean.shape, generator=draws)
        return (cached.mean + cached.std * noise) * self._scaling_factor

    def _share(self, images: list[TrainingImage]) -> list[TrainingImage]:
        mine = images[self._rank :: self._processes]
        return mine or images[:1]  # every process needs something to do; a ragged batch may be short of it

    def _prior(self, number: int, count: int) -> list[TrainingImage]:
        prior = self._dataset.prior
        if not prior:
            return []
        first = (number * self._processes + self._rank) * self._config.train_batch_size
        return [self._prior_at(first + place) for place in range(count)]

    def _prior_at(self, place: int) -> TrainingImage:
        prior = self._dataset.prior
        round_, index = divmod(place, len(prior))
        order = torch.randperm(len(prior), generator=generator_for(self._config.seed, 2, round_))
        return prior[int(order[index])]

    def _batches_of_epoch(self, epoch: int) -> list[list[int]]:
        """Indices of instance images, shuffled within each size and cut into batches, the batches shuffled."""
        draws = generator_for(self._config.seed, 1, epoch)
        order = torch.randperm(len(self._dataset.instance), generator=draws).tolist()
        sizes: dict[tuple[int, int], list[int]] = {}
        for index in order:
            image = self._dataset.instance[index]
            sizes.setdefault((image.width, image.height), []).append(index)
        size = self._config.train_batch_size * self._processes
        batches = [group[start : start + size] for group in sizes.values() for start in range(0, len(group), size)]
        if len(sizes) > 1:
            batches = [batches[index] for index in torch.randperm(len(batches), generator=draws).tolist()]
        return batches


class DiffusersBatches:
    """The random draws of diffusers' train_dreambooth.py, for comparing losses with it. One process, no resume.

    Every epoch draws two seeds from the global generator, the second of which orders the pictures; every step draws
    the posterior's noise, the noise, its offset if any, and the timesteps. Pictures are encoded anew in each step, as
    there: the memory layout of the VAE's output decides which numbers the generator gives.
    """

    def __init__(self, config: TrainConfig, dataset: TrainingSet, vae: Any) -> None:
        self._config, self._dataset, self._vae = config, dataset, vae
        self._pending: list[list[int]] = []
        torch.manual_seed(config.seed)

    def batch(self, step: int, micro: int) -> Batch:
        if not self._pending:
            self._start_epoch()
        indices = self._pending.pop(0)
        instance = [self._dataset.instance[index] for index in indices]
        prior = self._dataset.prior
        images = [*instance, *(prior[index % len(prior)] for index in indices if prior)]
        with torch.no_grad():
            posterior = self._vae.encode(torch.stack([pixels_of(image.path) for image in images])).latent_dist
        latents = (posterior.mean + posterior.std * torch.randn(posterior.mean.shape)) * self._vae.config.scaling_factor
        noise = torch.randn_like(latents)
        if self._config.noise_offset:
            noise = noise + self._config.noise_offset * torch.randn(len(images), latents.shape[1], 1, 1)
        timesteps = torch.randint(0, TRAIN_TIMESTEPS, (len(images),))
        return Batch(latents, noise, timesteps, tuple(image.prompt for image in images), len(instance))

    def _start_epoch(self) -> None:
        torch.empty((), dtype=torch.int64).random_()  # the loader's base seed, of no effect in one process
        seed = int(torch.empty((), dtype=torch.int64).random_().item())
        order = torch.randperm(len(self._dataset.instance), generator=torch.Generator().manual_seed(seed)).tolist()
        size = self._config.train_batch_size
        self._pending = [order[start : start + size] for start in range(0, len(order), size)]


def noise_like(latents: torch.Tensor, offset: float, draws: torch.Generator) -> torch.Tensor:
    """Unit noise; with an offset each channel of each picture is also moved as a whole."""
    noise = torch.randn(latents.shape, generator=draws)
    if offset:
        noise = noise + offset * torch.randn((*latents.shape[:2], 1, 1), generator=draws)
    return noise
