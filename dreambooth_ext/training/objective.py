"""What a batch costs: noise added, the UNet asked, its answer compared."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..models.unet import predict
from .conditioning import Texts
from .data import Batch, Pictures
from .loss import dreambooth_loss, errors_of_pictures
from .noise_schedule import NoiseSchedule
from .session import Session


@dataclass(frozen=True)
class Part:
    """Pictures of one size on the device, with what their prompts are made from."""

    pictures: Pictures
    texts: Texts

    def tensors(self) -> list[torch.Tensor]:
        masked = [] if self.pictures.masked is None else [self.pictures.masked]
        return [self.pictures.latents, self.pictures.noise, self.pictures.timesteps, *masked, *self.texts.tensors()]

    def cloned(self) -> Part:
        return Part(self.pictures.each(torch.clone), self.texts.each(torch.clone))


@dataclass(frozen=True)
class Inputs:
    """A batch on the device: one part, or two if class images have another size. `count` instance images come first."""

    parts: tuple[Part, ...]
    count: int
    has_prior: bool

    def tensors(self) -> list[torch.Tensor]:
        return [tensor for part in self.parts for tensor in part.tensors()]

    def cloned(self) -> Inputs:
        return replace(self, parts=tuple(part.cloned() for part in self.parts))

    @property
    def shape(self) -> tuple[object, ...]:
        """What two batches have in common whose passes are the same operations."""
        return (self.count, self.has_prior, *(tuple(tensor.shape) for tensor in self.tensors()))


class Objective:
    """The loss of batches under a session's model and settings."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._schedule = NoiseSchedule(session.model.alphas_cumprod().float()).to(session.device)
        self._kind = session.model.prediction_type

    def __call__(self, batch: Batch) -> dict[str, torch.Tensor]:
        """{"loss", "loss_instance", "loss_prior"}. Instance and class images of one size share a forward pass."""
        return self.losses(self.inputs(batch))

    def inputs(self, batch: Batch) -> Inputs:
        """Everything that the device needs, on its way to it: nothing waits for it to arrive."""
        # Joined on the device: in RAM they would be joined in memory that a GPU does not read by itself, and is waited for.
        groups = [self._on_device(pictures) for pictures in (batch.instance, batch.prior) if pictures is not None]
        if len(groups) == 2 and groups[0].size == groups[1].size:
            groups = [groups[0].followed_by(groups[1])]
        return Inputs(tuple(self._part(group) for group in groups), len(batch.instance), batch.prior is not None)

    def losses(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        """As `__call__`; touches nothing but the device, so that it can be recorded and played again."""
        errors = torch.cat([self._errors(part) for part in inputs.parts])
        of_instance, of_prior = errors[: inputs.count], errors[inputs.count :]
        return dreambooth_loss(of_instance, of_prior if inputs.has_prior else None, self._session.config.prior_loss_weight)

    @torch.no_grad()
    def plain_error(self, pictures: Pictures) -> float:
        """Mean squared error, unweighted, with the networks in eval mode: comparable from step to step."""
        modules = self._session.computing.values()
        for module in modules:
            module.eval()
        try:
            prediction, target = self._predicted(self._part(self._on_device(pictures)))
            return float(torch.mean((prediction.float() - target) ** 2))
        finally:
            for module in modules:
                module.train()

    def _on_device(self, pictures: Pictures) -> Pictures:
        return pictures.each(lambda tensor: tensor.to(self._session.device, non_blocking=True))

    def _part(self, pictures: Pictures) -> Part:
        return Part(pictures, self._session.prompts.texts(pictures.prompts, pictures.size))

    def _errors(self, part: Part) -> torch.Tensor:
        prediction, target = self._predicted(part)
        return errors_of_pictures(prediction, target, part.pictures.timesteps, self._schedule, self._kind, self._session.config)

    def _predicted(self, part: Part) -> tuple[torch.Tensor, torch.Tensor]:
        session, pictures = self._session, part.pictures
        latents, noise, timesteps = pictures.latents, pictures.noise, pictures.timesteps
        noisy = self._schedule.add_noise(latents, noise, timesteps)
        target = noise if self._kind == "epsilon" else self._schedule.velocity(latents, noise, timesteps)
        if pictures.masked is not None:
            noisy = torch.cat([noisy, pictures.masked], dim=1)
        conditioning = session.prompts.encode(part.texts, pictures.size).to(dtype=session.input_dtype)
        layout = torch.channels_last if session.plan.channels_last else torch.contiguous_format
        noisy = noisy.to(session.input_dtype, memory_format=layout)
        return predict(session.prepared["unet"], noisy, timesteps, conditioning), target
