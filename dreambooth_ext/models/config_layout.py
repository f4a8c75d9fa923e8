"""The table of names of a network whose configuration is known: a loaded module, or one in a diffusers folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .family import UNET, VAE, Family
from .layout import PartLayout
from .ldm_keys import Level, clip_rules, openclip_rules, unet_rules, vae_rules


def layout_of_config(part: str, config: Mapping[str, Any], family: Family) -> PartLayout:
    """How a file of this family names the tensors of `part`."""
    if part == "unet":
        levels, mid_depth = unet_levels(config)
        return PartLayout(part, dict(config), tuple(unet_rules(levels, mid_depth, UNET)))
    if part == "vae":
        count, layers = len(config["block_out_channels"]), config["layers_per_block"]
        return PartLayout(part, dict(config), tuple(vae_rules([layers] * count, [layers + 1] * count, VAE)))
    row = next(row for row in family.text_encoders if row.part == part)
    layers = config["num_hidden_layers"]
    rules = openclip_rules(layers, row.prefix, row.projected) if row.layout == "openclip" else clip_rules(layers, row.prefix)
    return PartLayout(part, dict(config), tuple(rules))


def unet_levels(config: Mapping[str, Any]) -> tuple[list[Level], int]:
    """Levels, outermost first, and the depth of the middle."""
    widths = list(config["block_out_channels"])
    layers = _each(config.get("layers_per_block", 2), len(widths))
    depths = _each(config.get("transformer_layers_per_block", 1), len(widths))
    attends = ["CrossAttn" in kind for kind in config["down_block_types"]]
    levels = [Level(width, count, depth if has else 0)
              for width, count, depth, has in zip(widths, layers, depths, attends, strict=True)]
    return levels, depths[-1]


def _each(value: Any, count: int) -> list[int]:
    return [value] * count if isinstance(value, int) else list(value)
