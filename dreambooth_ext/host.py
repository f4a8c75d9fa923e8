"""The Host protocol: all that we ever ask of whoever hosts us (a WebUI, or this package alone)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from .config import TrainConfig
from .progress import Progress

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Txt2Img:
    """One request for pictures: one picture for each seed, all of one prompt.

    `sampler` is the WebUI's name for it; its DDIM is the one in models/sampling.py. `prediction_type` is what the user says of
    the checkpoint; "auto" leaves it to the host. `vae` is the VAE file for a checkpoint that has none of its own.
    """

    prompt: str
    seeds: tuple[int, ...]
    negative_prompt: str = ""
    steps: int = 30
    guidance_scale: float = 7.0
    width: int = 512
    height: int = 512
    sampler: str = "DDIM"
    clip_skip: int = 1  # 1: the text encoder's last layer
    prediction_type: str = "auto"
    vae: Path | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A model file as the host lists it."""

    path: Path
    title: str
    loaded: bool = False


@dataclass(frozen=True)
class OwnPictures:
    """What the user has set for the host's own pictures. `Host.txt2img` sets it aside, the host's txt2img does not."""

    vae: str = ""  # file name; empty: the checkpoint's own
    clip_skip: int = 1
    text_encoder: str = ""  # what takes the place of the checkpoint's own, which may have been trained


@runtime_checkable
class Host(Protocol):
    """What the corridor asks of its host. Every method may raise HostError."""

    name: str
    models_dir: Path  # where published checkpoints belong
    lora_dir: Path
    runs_dir: Path

    def device(self) -> str:
        """What it computes on: "cpu", "cuda", "cuda:1", ...; "auto" leaves it to whoever asks."""

    def checkpoints(self) -> list[Checkpoint]:
        """All checkpoints that the host knows; at most one is `loaded`."""

    def txt2img(self, base: Path, request: Txt2Img, progress: Progress) -> Iterator[Image]:
        """Render with the checkpoint file `base`; yield whole pictures only, in the order of the seeds."""

    def own_pictures(self) -> OwnPictures:
        """Settings by which the host's own txt2img may draw unlike `txt2img` above."""

    def batch_size(self, width: int, height: int) -> int:
        """How many pictures of this size, in px, `txt2img` should be asked for at once, by the memory that is free now."""

    def provenance(self) -> dict[str, str]:
        """What of the host shapes its pictures: name, version, neutralised settings (for the manifest)."""

    def job(self, job_id: str, progress: Progress) -> AbstractContextManager[None]:
        """Hold the host's queue for the whole job; its progress and interrupt are wired to `progress`."""

    def free_gpu(self) -> AbstractContextManager[None]:
        """Inside the block the host's own model takes no device memory; afterwards it is as before."""

    def select(self, path: Path) -> None:
        """Make a published file the host's current checkpoint (refreshing its list first)."""

    def upscalers(self) -> list[str]:
        """Names that `upscale` takes; empty if the host has none."""

    def upscale(self, image: Image, name: str, scale: float) -> Image:
        """Enlarge by `scale` with one of the host's upscalers."""

    def captioners(self) -> list[str]:
        """Names that `caption` takes, such as "BLIP"; empty if the host has none."""

    def caption(self, images: list[Image], name: str) -> list[str]:
        """One caption for each picture, in order."""


def on_device_of(host: Host, config: TrainConfig) -> TrainConfig:
    """The settings, with the host's own device for "auto". It is not kept with a run, which may go on in another host."""
    return replace(config, device=host.device()) if config.device == "auto" else config
