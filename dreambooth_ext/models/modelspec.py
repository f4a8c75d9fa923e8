"""The header of a .safetensors file: Stability's modelspec fields, and how the model was made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .checkpoint_file import CheckpointFile
from .family import SDXL, UNET, Family
from .load import resolution_of
from .prediction import prediction_of
from .sidecar import Sidecar

_OURS = "dreambooth."
# They describe the source's bytes, not ours; the former also its making.
_OF_THE_MODEL, _OF_THE_FILE = ("modelspec.", _OURS), ("sd_merge", "sshs_", "modelspec.hash")
_KEPT = ("modelspec.license", "modelspec.author", "modelspec.usage_hint", "modelspec.trigger_phrase")


def header_of(
    file: CheckpointFile, family: Family, sidecar: Sidecar | None, metadata: Mapping[str, Any], *, same_model: bool = False
) -> dict[str, str]:
    """All fields as texts: what the source says that still holds, modelspec's, and `metadata` under `dreambooth.`.

    `same_model`: nothing was trained or merged, so that title, date and provenance hold too.
    """
    given = dict(metadata)
    kind = str(given.pop("prediction_type", "")) or prediction_of(file, family, sidecar, None, "auto")[0]
    side = int(given.pop("resolution", 0) or resolution_of(family, sidecar, kind))
    inpainting = file.entries[f"{UNET}input_blocks.0.0.weight"].shape[1] == 9
    return fields_of(family, kind, side, inpainting, still_true(file.metadata, same_model), given)


def still_true(metadata: Mapping[str, str], same_model: bool) -> dict[str, str]:
    """What of a source's header holds for a file made of it, with the same model in it or another."""
    stale = _OF_THE_FILE if same_model else (*_OF_THE_FILE, *_OF_THE_MODEL)
    return {name: value for name, value in metadata.items() if not name.startswith(stale) or name in _KEPT}


def fields_of(
    family: Family, prediction_type: str, side: int, inpainting: bool, kept: Mapping[str, str], given: Mapping[str, Any]
) -> dict[str, str]:
    """The same for a model of these properties; `side` in px, `kept` is what an earlier header said."""
    rest = dict(given)
    if not rest.get("zero_terminal_snr"):
        rest.pop("zero_terminal_snr", None)
    fields = dict(kept) | {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": _architecture(family, side) + ("-inpainting" if inpainting else ""),
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models" if family is SDXL
        else "https://github.com/CompVis/stable-diffusion",
        "modelspec.prediction_type": "v" if prediction_type == "v_prediction" else "epsilon",
        "modelspec.resolution": f"{side}x{side}",
    }
    for name in ("title", "date", "description", "author", "license"):
        if rest.get(name):
            fields[f"modelspec.{name}"] = str(rest.pop(name))
    fields |= {_OURS + name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
               for name, value in rest.items()}
    fields["format"] = "pt"
    return fields


def _architecture(family: Family, side: int) -> str:
    return f"{family.architecture}-{'768-v' if side == 768 else '512'}" if family.key == "sd2" else family.architecture
