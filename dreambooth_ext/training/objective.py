"""What a batch costs: noise added, the UNet asked, its answer compared."""

from __future__ import annotations

import torch

from ..models.unet import predict
from .data import Batch, Pictures
from .loss import dreambooth_loss, errors_of_pictures
from .noise_schedule import NoiseSchedule
from .session import Session


class Objective:
    """The loss of batches under a session's model and settings."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._schedule = NoiseSchedule(session.model.alphas_cumprod().float()).to(session.device)
        self._kind = session.model.prediction_type

    def __call__(self, batch: Batch) -> dict[str, torch.Tensor]:
        """{"loss", "loss_instance", "loss_prior"}. Instance and class images of one size share a forward pass."""
        config, prior = self._session.config, batch.prior
        if prior is None or prior.size == batch.instance.size:
            errors = self._errors(batch.instance if prior is None else batch.instance.followed_by(prior))
            of_instance, of_prior = errors[: len(batch.instance)], errors[len(batch.instance) :]
        else:
            of_instance, of_prior = self._errors(batch.instance), self._errors(prior)
        return dreambooth_loss(of_instance, None if prior is None else of_prior, config.prior_loss_weight)

    @torch.no_grad()
    def plain_error(self, pictures: Pictures) -> float:
        """Mean squared error, unweighted, with the networks in eval mode: comparable from step to step."""
        modules = self._session.modules.values()
        for module in modules:
            module.eval()
        try:
            prediction, target, _ = self._predicted(pictures)
            return float(torch.mean((prediction.float() - target) ** 2))
        finally:
            for module in modules:
                module.train()

    def _errors(self, pictures: Pictures) -> torch.Tensor:
        prediction, target, timesteps = self._predicted(pictures)
        return errors_of_pictures(prediction, target, timesteps, self._schedule, self._kind, self._session.config)

    def _predicted(self, pictures: Pictures) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        session = self._session
        latents, noise, timesteps = (_moved(each, session.device) for each in
                                     (pictures.latents, pictures.noise, pictures.timesteps))
        noisy = self._schedule.add_noise(latents, noise, timesteps)
        target = noise if self._kind == "epsilon" else self._schedule.velocity(latents, noise, timesteps)
        if pictures.masked is not None:
            noisy = torch.cat([noisy, _moved(pictures.masked, session.device)], dim=1)
        conditioning = session.prompts.encode(pictures.prompts, pictures.size).to(dtype=session.input_dtype)
        prediction = predict(session.prepared["unet"], noisy.to(session.input_dtype), timesteps, conditioning)
        return prediction, target, timesteps


def _moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """On a GPU the copy does not hold up whoever asks for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
