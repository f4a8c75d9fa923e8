"""The Dreambooth loss: mean over the instance images + prior_loss_weight x mean over the class images."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..config import TrainConfig
from .noise_schedule import NoiseSchedule


def dreambooth_loss(instance: torch.Tensor, prior: torch.Tensor | None, prior_loss_weight: float) -> dict[str, torch.Tensor]:
    """{"loss", "loss_instance", "loss_prior"} from the errors of each picture, (B,) and (B,) (Ruiz et al. 2023, eq. 2)."""
    of_instance = instance.mean()
    if prior is None:
        return {"loss": of_instance, "loss_instance": of_instance.detach()}
    of_prior = prior.mean()
    loss = of_instance + prior_loss_weight * of_prior
    return {"loss": loss, "loss_instance": of_instance.detach(), "loss_prior": of_prior.detach()}


def errors_of_pictures(prediction: torch.Tensor, target: torch.Tensor, timesteps: torch.Tensor, schedule: NoiseSchedule,
                       prediction_type: str, config: TrainConfig) -> torch.Tensor:
    """(B,) weighted mean errors of (B, 4, h, w) predictions at (B,) timesteps.

    Weights are applied to each picture before any mean over pictures is taken, so that they cannot land on another.
    """
    errors = elementwise(prediction.float(), target.float(), config)
    of_pictures = errors.mean(dim=tuple(range(1, errors.dim())))
    if config.snr_gamma is None:
        return of_pictures
    return of_pictures * min_snr_weights(schedule.snr(timesteps), config.snr_gamma, prediction_type)


def elementwise(prediction: torch.Tensor, target: torch.Tensor, config: TrainConfig) -> torch.Tensor:
    """Squared error, or pseudo-Huber (scaled so that it is the squared error for small ones)."""
    if config.loss_type == "l2":
        return F.mse_loss(prediction, target, reduction="none")
    c = config.huber_c
    return 2 * c * (torch.sqrt((prediction - target) ** 2 + c**2) - c)


def min_snr_weights(snr: torch.Tensor, gamma: float, prediction_type: str) -> torch.Tensor:
    """min(snr, gamma) / snr for epsilon and / (snr + 1) for v (Hang et al. 2023, section 3.4)."""
    clipped = snr.clamp(max=gamma)
    return clipped / (snr + 1) if prediction_type == "v_prediction" else clipped / snr
