"""What a model's UNet predicts, noise or velocity: told by its user, its sidecar, its file, or by trying."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import ConfigError
from .checkpoint_file import CheckpointFile
from .convert import read_part, resolved
from .family import UNET, V_PRED, ZTSNR, Family
from .layout import layouts
from .networks import built, fill, shapes_of
from .sidecar import Sidecar

_NAMES = {"v": "v_prediction", "v_prediction": "v_prediction", "epsilon": "epsilon", "eps": "epsilon"}


def prediction_of(
    file: CheckpointFile, family: Family, sidecar: Sidecar | None, unet: Any | None, wish: str
) -> tuple[str, bool]:
    """("epsilon" or "v_prediction", whether the last timestep has no signal).

    In order: the user's wish, the sidecar, marks in the file (`v_pred`, `ztsnr`, modelspec), for SD 2.x a trial.
    """
    zero_snr = ZTSNR in file.entries or (sidecar is not None and sidecar.zero_terminal_snr)
    zero_snr = zero_snr or _stored_schedule_ends_in_zero(file)
    told = wish if wish != "auto" else (sidecar.prediction_type if sidecar else None)
    told = told or ("v_prediction" if V_PRED in file.entries else None)
    told = told or _NAMES.get(file.metadata.get("modelspec.prediction_type", ""))
    told = told or _NAMES.get(file.metadata.get("modelspec.predict_key", ""))
    if told is None and family.key == "sd2" and file.entries[f"{UNET}input_blocks.0.0.weight"].shape[1] == 4:
        told = "v_prediction" if predicts_velocity(unet or _load_unet(file, family, sidecar)) else "epsilon"
    return told or "epsilon", zero_snr and told == "v_prediction"  # noise alone tells nothing where there is no signal


def require_possible_snr(prediction_type: str, zero_terminal_snr: bool) -> None:
    """Raise ConfigError where a last timestep without signal is asked of a model that predicts noise (Lin et al. 2023)."""
    if zero_terminal_snr and prediction_type == "epsilon":
        raise ConfigError(["--zero-terminal-snr: epsilon prediction has no signal at the last timestep; it needs v_prediction"],
                          "Leave it out, or add --prediction-type v_prediction if the model was trained for that.")


@torch.no_grad()
def predicts_velocity(unet: Any) -> bool:
    """The WebUI's own test: at the last timestep, nearly pure noise x, eps is about x and v far below it."""
    weight = next(unet.parameters())
    x = torch.full((1, 4, 8, 8), 0.5, device=weight.device, dtype=weight.dtype)
    context = torch.full((1, 2, unet.config.cross_attention_dim), 0.5, device=weight.device, dtype=weight.dtype)
    out = unet(x, torch.tensor([999], device=weight.device), context).sample
    return bool((out.float() - x.float()).mean() < -1)


def _load_unet(file: CheckpointFile, family: Family, sidecar: Sidecar | None) -> Any:
    layout = layouts(file.shapes, family, sidecar, file.path.name)[0]
    module = built(layout, file.path.name)
    rules = resolved(layout.rules, file.shapes, shapes_of(module), file.path.name)
    fill(module, read_part(file, rules, torch.float32))
    return module.eval()


def _stored_schedule_ends_in_zero(file: CheckpointFile) -> bool:
    entry = file.entries.get("alphas_cumprod")
    if entry is None or entry.shape != (1000,) or entry.dtype not in ("F32", "F64"):
        return False
    return bool(file.tensor("alphas_cumprod")[-1] < 1e-4)
