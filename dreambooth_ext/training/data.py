"""What each step is trained on. Latents are cached; every draw comes from (seed, step, micro-batch)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..config import TrainConfig
from ..dataset.manifest import TrainingImage, TrainingSet
from ..models.noise import TIMESTEPS
from ..models.vae import Posterior, encode_pictures
from ..progress import Progress
from .inpainting import VARIANTS, masked_inputs


@dataclass(frozen=True)
class Pictures:
    """Pictures of one size with all that is drawn for them. Latents and noise (B, 4, h, w); latents are scaled."""

    latents: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor  # (B,)
    prompts: tuple[str, ...]
    masked: torch.Tensor | None = None  # (B, 5, h, w): mask and latents of the rest, for inpainting models alone

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in px."""
        return self.latents.shape[-2] * 8, self.latents.shape[-1] * 8

    def followed_by(self, other: Pictures) -> Pictures:
        masked = None if self.masked is None or other.masked is None else torch.cat([self.masked, other.masked])
        return Pictures(torch.cat([self.latents, other.latents]), torch.cat([self.noise, other.noise]),
                        torch.cat([self.timesteps, other.timesteps]), self.prompts + other.prompts, masked)

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Pictures:
        masked = None if self.masked is None else change(self.masked)
        return replace(self, latents=change(self.latents), noise=change(self.noise), timesteps=change(self.timesteps),
                       masked=masked)

    def rows(self, rows: slice) -> Pictures:
        return replace(self.each(lambda tensor: tensor[rows]), prompts=self.prompts[rows])


@dataclass(frozen=True)
class Batch:
    """One process's share of a batch: instance images and, with prior preservation, as many class images.

    `whole` counts the instance images of all processes; `weight` makes the mean over processes the mean over pictures.
    """

    instance: Pictures
    prior: Pictures | None
    whole: int
    weight: float = 1.0

    def share(self, rank: int, processes: int) -> Batch:
        """Every so-manyth picture. A ragged batch may have none left for this process: then one that weighs nothing."""
        if processes == 1:
            return self
        count = len(range(rank, self.whole, processes))
        rows = slice(rank, None, processes) if count else slice(0, 1)
        prior = None if self.prior is None else self.prior.rows(rows)
        return Batch(self.instance.rows(rows), prior, self.whole, count * processes / self.whole)

    def pinned(self) -> Batch:
        """The same in memory that a GPU copies from by itself."""
        prior = None if self.prior is None else self.prior.each(torch.Tensor.pin_memory)
        return replace(self, instance=self.instance.each(torch.Tensor.pin_memory), prior=prior)


def pixels_of(path: Path, mirrored: bool = False) -> torch.Tensor:
    """(3, H, W) float32 in -1..1."""
    with Image.open(path) as image:
        values = np.asarray(image.convert("RGB"), np.float32) / 255.0
    if mirrored:
        values = values[:, ::-1]
    return (torch.from_numpy(np.ascontiguousarray(values)).permute(2, 0, 1) - 0.5) / 0.5


class LatentCache:
    """Latents of all pictures, keyed by the hash of their content and whether they are mirrored; fp32, in RAM.

    For inpainting models also what each is shown beside its latents (inpainting.py).
    """

    def __init__(self, vae: Any, images: Sequence[TrainingImage], mirrored: bool, progress: Progress, *,
                 inpainting: bool = False) -> None:
        self._latents: dict[tuple[str, bool], Posterior] = {}
        self._masked: dict[tuple[str, bool], torch.Tensor] = {}
        flips = (False, True) if mirrored else (False,)
        wanted = {(image.sha256, flip): image.path for image in images for flip in flips}
        progress.start("encoding pictures", len(wanted))
        with torch.no_grad():
            for number, ((sha256, flip), path) in enumerate(wanted.items(), start=1):
                progress.check()
                pixels = pixels_of(path, flip)
                mean, std = encode_pictures(vae, pixels[None])
                self._latents[sha256, flip] = Posterior(mean[0].float().cpu(), std[0].float().cpu())
                if inpainting:
                    self._masked[sha256, flip] = masked_inputs(vae, pixels, generator_for(4, int(sha256[:8], 16)))
                progress.report(number, len(wanted))

    def __getitem__(self, key: tuple[str, bool]) -> Posterior:
        return self._latents[key]

    def masked(self, keys: Sequence[tuple[str, bool]], draws: torch.Generator | None = None) -> torch.Tensor | None:
        """(B, 5, h, w) for inpainting models: one of each picture's masks, or all of it masked; None for others."""
        if not self._masked:
            return None
        if draws is None:
            return torch.stack([self._masked[key][0] for key in keys])
        chosen = torch.randint(0, VARIANTS, (len(keys),), generator=draws).tolist()
        return torch.stack([self._masked[key][variant] for key, variant in zip(keys, chosen, strict=True)])


def fixed_pictures(images: Sequence[TrainingImage], cache: LatentCache) -> Pictures:
    """Two to eight pictures of one size, each at its own fixed noise and timestep, for a loss that compares over steps."""
    same_size = [image for image in images if (image.width, image.height) == (images[0].width, images[0].height)][:8]
    same_size *= 2 if len(same_size) == 1 else 1
    latents = torch.stack([cache[image.sha256, False].mean for image in same_size])
    timesteps = ((torch.arange(len(same_size)) + 0.5) * (TIMESTEPS / len(same_size))).long()
    noise = torch.randn(latents.shape, generator=generator_for(0, 3))
    masked = cache.masked([(image.sha256, False) for image in same_size])
    return Pictures(latents, noise, timesteps, tuple(image.prompt for image in same_size), masked)


def generator_for(*numbers: int) -> torch.Generator:
    """A CPU generator that depends on all numbers, so that any step can be drawn again."""
    state = np.random.SeedSequence(numbers).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 32 | int(state[1]))


class NativeBatches:
    """The order of an epoch depends on (seed, epoch) alone, all else on (seed, step, micro-batch).

    Pictures of one size make a batch; the last batch of an epoch may be smaller. Several processes draw the same whole
    batch, `train_batch_size` pictures for each of them, and take their shares: what is learnt does not depend on how
    many they are.
    """

    def __init__(self, config: TrainConfig, dataset: TrainingSet, cache: LatentCache, rank: int = 0,
                 processes: int = 1) -> None:
        self._config, self._dataset, self._cache = config, dataset, cache
        self._rank, self._processes = rank, processes
        self._size = config.train_batch_size * processes
        self._known: tuple[int, list[list[int]]] = (0, self._batches_of_epoch(0))
        self._epoch_batches = len(self._known[1])

    def batch(self, step: int, micro: int) -> Batch:
        """The batch of optimizer step `step` (from 0), forward pass `micro`."""
        number = step * self._config.gradient_accumulation_steps + micro
        epoch, place = divmod(number, self._epoch_batches)
        if self._known[0] != epoch:
            self._known = epoch, self._batches_of_epoch(epoch)
        draws = generator_for(self._config.seed, 0, step, micro)
        chosen = [self._dataset.instance[index] for index in self._known[1][place]]
        instance = self._drawn(chosen, draws)
        prior = None
        if self._dataset.prior:
            prior = self._drawn([self._prior_at(number * self._size + place) for place in range(len(chosen))], draws)
        return Batch(instance, prior, len(chosen)).share(self._rank, self._processes)

    def _drawn(self, images: list[TrainingImage], draws: torch.Generator) -> Pictures:
        mirrored = torch.rand(len(images), generator=draws) < 0.5
        dropped = torch.rand(len(images), generator=draws) < self._config.caption_dropout
        keys = [(image.sha256, bool(flip) and self._config.random_flip) for image, flip in zip(images, mirrored, strict=True)]
        latents = torch.stack([self._cache[key].sample(draws) for key in keys])
        noise = noise_like(latents, self._config.noise_offset, draws)
        timesteps = torch.randint(0, TIMESTEPS, (len(images),), generator=draws)
        prompts = tuple("" if drop else image.prompt for image, drop in zip(images, dropped, strict=True))
        return Pictures(latents, noise, timesteps, prompts, self._cache.masked(keys, draws))

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
        batches = [group[start : start + self._size] for group in sizes.values()
                   for start in range(0, len(group), self._size)]
        if len(sizes) > 1:
            batches = [batches[index] for index in torch.randperm(len(batches), generator=draws).tolist()]
        return batches


class DiffusersBatches:
    """The random draws of diffusers' train_dreambooth.py, for comparing losses with it. One process, no resume.

    Every epoch draws two seeds from the global generator, the second of which orders the pictures; every step draws
    the posterior's noise, the noise, its offset if any, and the timesteps. An epoch lasts until all class images have come,
    too, if they are more: instance images come again meanwhile. Pictures are encoded anew in each step, as there: the
    memory layout of the VAE's output decides which numbers the generator gives.
    """

    def __init__(self, config: TrainConfig, dataset: TrainingSet, vae: Any) -> None:
        self._config, self._dataset, self._vae = config, dataset, vae
        self._pending: list[list[int]] = []
        torch.manual_seed(config.seed)

    def batch(self, step: int, micro: int) -> Batch:
        if not self._pending:
            self._start_epoch()
        indices = self._pending.pop(0)
        count, prior = len(indices), self._dataset.prior
        images = [kind[index % len(kind)] for kind in (self._dataset.instance, prior) if kind for index in indices]
        pixels = torch.stack([pixels_of(image.path) for image in images])
        with torch.no_grad():
            posterior = self._vae.encode(pixels.to(self._vae.device)).latent_dist
        mean, std = posterior.mean.cpu(), posterior.std.cpu()
        latents = (mean + std * torch.randn(mean.shape)) * self._vae.config.scaling_factor
        noise = torch.randn_like(latents)
        if self._config.noise_offset:
            noise = noise + self._config.noise_offset * torch.randn(len(images), latents.shape[1], 1, 1)
        timesteps = torch.randint(0, TIMESTEPS, (len(images),))
        pictures = Pictures(latents, noise, timesteps, tuple(image.prompt for image in images))
        return Batch(pictures.rows(slice(0, count)), pictures.rows(slice(count, None)) if prior else None, count)

    def _start_epoch(self) -> None:
        torch.empty((), dtype=torch.int64).random_()  # the loader's base seed, of no effect in one process
        seed = int(torch.empty((), dtype=torch.int64).random_().item())
        count = max(len(self._dataset.instance), len(self._dataset.prior))
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
        size = self._config.train_batch_size
        self._pending = [order[start : start + size] for start in range(0, len(order), size)]


def noise_like(latents: torch.Tensor, offset: float, draws: torch.Generator) -> torch.Tensor:
    """Unit noise; with an offset each channel of each picture is also moved as a whole."""
    noise = torch.randn(latents.shape, generator=draws)
    if offset:
        noise = noise + offset * torch.randn((*latents.shape[:2], 1, 1), generator=draws)
    return noise
