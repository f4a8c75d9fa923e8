"""NAME.yaml beside a checkpoint: what of a model its tensors do not tell."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import NotACheckpoint

AT_MOST_BYTES = 64 * 2**10  # real ones have 2 or 3 KiB


@dataclass(frozen=True)
class Sidecar:
    """Values of an ldm or sgm configuration; None where it does not say."""

    num_heads: int | None = None
    num_head_channels: int | None = None
    image_size: int | None = None  # side of a latent
    prediction_type: str | None = None
    linear_start: float | None = None
    linear_end: float | None = None
    scale_factor: float | None = None
    text_layer: str | None = None  # of an OpenCLIP text encoder: last, penultimate
    zero_terminal_snr: bool = False


def sidecar_path(checkpoint: Path) -> Path:
    """Where every host looks for it."""
    return checkpoint.with_suffix(".yaml")


def read_sidecar(checkpoint: Path) -> Sidecar | None:
    """The configuration beside the file, or None if there is none. Raises NotACheckpoint if it cannot be read."""
    path = sidecar_path(checkpoint)
    if not os.path.isfile(path):
        return None
    asked = f"{path.name} is to be read"
    instead = "Correct it, or move it away if the model does not need it."
    if path.stat().st_size > AT_MOST_BYTES:
        raise NotACheckpoint(asked, "it is too large for a model's configuration", instead)
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
        return _from_mapping(values)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError, AttributeError, OSError) as error:
        why = " ".join(str(error).split())[:200]
        raise NotACheckpoint(asked, f"it is no model configuration ({why})", instead) from error


def _from_mapping(values: Any) -> Sidecar:
    if not isinstance(values, Mapping) or not isinstance(values.get("model"), Mapping):
        raise ValueError("there is no `model` in it")
    model = _inside(values, "model", "params")
    unet = _inside(model, "unet_config", "params") or _inside(model, "network_config", "params")
    scaling = str(_inside(model, "denoiser_config", "params", "scaling_config").get("target", ""))
    discretization = _inside(model, "denoiser_config", "params", "discretization_config")
    parameterization = model.get("parameterization")
    if scaling.endswith("VScaling") or parameterization == "v":
        prediction = "v_prediction"
    elif scaling.endswith("EpsScaling") or parameterization == "eps":
        prediction = "epsilon"
    else:
        prediction = None
    layer = _inside(model, "cond_stage_config", "params").get("layer")
    return Sidecar(
        num_heads=_positive(unet, "num_heads"), num_head_channels=_positive(unet, "num_head_channels"),
        image_size=_positive(model, "image_size"), prediction_type=prediction,
        linear_start=_beta(model, "linear_start"), linear_end=_beta(model, "linear_end"),
        scale_factor=_number(model, "scale_factor"), text_layer=layer if isinstance(layer, str) else None,
        zero_terminal_snr=str(discretization.get("target", "")).endswith("ZeroSNRDDPMDiscretization"),
    )


def _inside(values: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    for name in names:
        found = values.get(name)
        values = found if isinstance(found, Mapping) else {}
    return values


def _positive(values: Mapping[str, Any], name: str) -> int | None:
    """-1 is ldm's way to say that another field counts."""
    value = values.get(name)
    if value is None or value == -1:
        return None
    if type(value) is not int or not 0 < value <= 65536:
        raise ValueError(f"{name} is {value!r:.40}")
    return value


def _number(values: Mapping[str, Any], name: str) -> float | None:
    value = values.get(name)
    if value is None:
        return None
    number = float(value)  # YAML reads 1.e-4 as a text
    if not 0 < number < 1e6:
        raise ValueError(f"{name} is {value!r:.40}")
    return number


def _beta(values: Mapping[str, Any], name: str) -> float | None:
    number = _number(values, name)
    if number is not None and number >= 1:
        raise ValueError(f"{name} is {number}")
    return number
