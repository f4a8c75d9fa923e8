"""The Dreambooth loss: mean over the instance images + prior_loss_weight x mean over the class images."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..config import TrainConfig
from .noise_schedule import NoiseSchedule


def dreambooth_loss(prediction: torch.Tensor, target: torch.Tensor, timesteps: torch.Tensor, instances: int,
                    schedule: NoiseSchedule, prediction_type: str, config: TrainConfig) -> dict[str, torch.Tensor]:
    """{"loss", "loss_instance", "loss_prior"} of a batch whose first `instances` pictures are instance images.

    prediction, target (B, 4, h, w); timesteps (B,). Weights are worked out for each picture before the two means are
    taken, so that they can never land on the wrong half.
    """
    errors = elementwise(prediction.float(), target.float(), config)
    per_picture = errors.mean(dim=tuple(range(1, errors.dim())))
    if config.snr_gamma is not None:
        per_picture = per_picture * min_snr_weights(schedule.snr(timesteps), config.snr_gamma, prediction_type)
    instance = per_picture[:instances].mean()
    if instances == len(per_picture):
        return {"loss": instance, "loss_instance": instance.detach()}
    prior = per_picture[instances:].mean()
    loss = instance + config.prior_loss_weight * prior
    return {"loss": loss, "loss_instance": instance.detach(), "loss_prior": prior.detach()}


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
