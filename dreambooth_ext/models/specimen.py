"""Checkpoints of random weights with a family's real names: for tests, benchmarks and estimates. They render noise."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..files import write_atomically
from . import noise
from .checkpoint_file import DTYPE_NAMES
from .checkpoint_writer import Output, write_ckpt, write_safetensors
from .family import SD1, SDXL, UNET, VAE, Family, TextEncoderRow
from .ldm_keys import Level, Rule, clip_rules, openclip_rules, unet_rules, vae_rules
from .networks import build, shapes_of
from .sidecar import sidecar_path

WORDS = 49408


@dataclass(frozen=True)
class Size:
    """The dimensions in which models of one family may differ. Text widths and layers: one for each text encoder."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    mid_depth: int
    text_widths: tuple[int, ...]
    text_layers: tuple[int, ...]
    vae_widths: tuple[int, ...] = (128, 256, 512, 512)
    head_channels: int = 64  # where the family does not fix the number of heads


FULL = {
    "sd1": Size((320, 640, 1280, 1280), (1, 1, 1, 0), 1, (768,), (12,)),
    "sd2": Size((320, 640, 1280, 1280), (1, 1, 1, 0), 1, (1024,), (24,)),
    "sdxl": Size((320, 640, 1280), (0, 2, 10), 10, (768, 1280), (12, 32)),
}
# The same names and number of tensors, a thousandth of the numbers.
SMALL = {
    "sd1": Size((32, 64, 96, 96), (1, 1, 1, 0), 1, (32,), (12,), (32, 64, 96, 96)),
    "sd2": Size((32, 64, 96, 96), (1, 1, 1, 0), 1, (32,), (24,), (32, 64, 96, 96), 8),
    "sdxl": Size((32, 64, 96), (0, 2, 10), 10, (32, 64), (12, 32), (32, 64, 96, 96), 8),
}


@dataclass
class Specimen:
    """Tensors of a checkpoint file: name -> (dtype, shape), and the values that are not random."""

    family: Family
    size: Size
    shapes: dict[str, tuple[int, ...]]
    fixed: dict[str, torch.Tensor] = field(default_factory=dict)

    def value(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """The tensor's numbers: always the same for the same name, tame enough for forward passes."""
        if name in self.fixed:
            return self.fixed[name]
        shape = self.shapes[name]
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        values = torch.empty(shape, dtype=torch.float32).normal_(generator=generator)
        if len(shape) > 1:
            values /= math.sqrt(max(1, math.prod(shape[1:])))
        else:
            values = values * 0.1 + (1.0 if name.endswith(".weight") else 0.0)
        return values.to(dtype)

    def tensors(self, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
        return {name: self.value(name, dtype) for name in self.names()}

    def names(self) -> Iterator[str]:
        yield from self.shapes
        yield from (name for name in self.fixed if name not in self.shapes)

    def write(self, path: Path, dtype: torch.dtype = torch.float32, metadata: Mapping[str, str] | None = None) -> Path:
        """Write a .ckpt or .safetensors file, by its suffix, and the sidecar that a scaled-down model needs."""
        outputs = [self._output(name, dtype) for name in self.names()]
        with write_atomically(path) as stream:
            if path.suffix == ".ckpt":
                write_ckpt(stream, outputs, {"global_step": 7})
            else:
                write_safetensors(stream, outputs, metadata or {})
        if self.size is not FULL[self.family.key]:
            sidecar_path(path).write_text(sidecar_text(self.family, self.size), encoding="utf-8")
        return path

    def _output(self, name: str, dtype: torch.dtype) -> Output:
        fixed = self.fixed.get(name)
        kind, shape = (dtype, self.shapes[name]) if fixed is None else (fixed.dtype, tuple(fixed.shape))

        def chunks() -> Iterable[torch.Tensor]:
            yield self.value(name, dtype).reshape(-1).view(torch.uint8)

        return Output(name, DTYPE_NAMES[kind], shape, chunks)


def specimen(family: Family, *, size: Size | None = None, inpainting: bool = False) -> Specimen:
    """A whole checkpoint of the family, small unless a size is given."""
    size = size or SMALL[family.key]
    context = sum(size.text_widths)
    shapes: dict[str, tuple[int, ...]] = {}
    levels = [Level(width, 2, depth) for width, depth in zip(size.widths, size.depths, strict=True)]
    rules = unet_rules(levels, size.mid_depth, UNET)
    shapes |= _ldm_shapes(rules, "unet", unet_config(family, size, context, 9 if inpainting else 4))
    shapes |= _ldm_shapes(vae_rules([2] * 4, [3] * 4, VAE), "vae", _vae_config(size))
    for row, width, layers in zip(family.text_encoders, size.text_widths, size.text_layers, strict=True):
        config = _text_config(row, width, layers)
        text = (clip_rules(layers, row.prefix) if row.layout == "clip"
                else openclip_rules(layers, row.prefix, projected=True))
        shapes |= _ldm_shapes(text, row.part, config, projected=row.layout == "openclip")
    return Specimen(family, size, shapes, _fixed(family))


def modules_of(family: Family, size: Size | None = None) -> dict[str, Any]:
    """The family's networks on the meta device, by part; full-sized unless told otherwise."""
    size = size or FULL[family.key]
    found: dict[str, Any] = {"unet": build("unet", unet_config(family, size, sum(size.text_widths)), "unet"),
                             "vae": build("vae", _vae_config(size), "vae")}
    for row, width, layers in zip(family.text_encoders, size.text_widths, size.text_layers, strict=True):
        found[row.part] = build(row.part, _text_config(row, width, layers), row.part, row.projected)
    return found


def _fixed(family: Family) -> dict[str, torch.Tensor]:
    """What real files have beside weights."""
    found: dict[str, torch.Tensor] = {}
    for row in family.text_encoders:
        if row.layout == "clip":
            found[f"{row.prefix}embeddings.position_ids"] = torch.arange(77).reshape(1, 77)
        else:
            found[f"{row.prefix}logit_scale"] = torch.tensor(4.6052)
    return found if family is SDXL else found | _schedule()


def _schedule() -> dict[str, torch.Tensor]:
    """The tables of ldm's DDPM class that files of SD 1.x and 2.x carry."""
    betas = noise.betas()
    alphas = 1 - betas
    after = alphas.cumprod(0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), after[:-1]])
    variance = betas * (1 - before) / (1 - after)
    tables = {
        "betas": betas, "alphas_cumprod": after, "alphas_cumprod_prev": before, "sqrt_alphas_cumprod": after.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - after).sqrt(), "log_one_minus_alphas_cumprod": (1 - after).log(),
        "sqrt_recip_alphas_cumprod": (1 / after).sqrt(), "sqrt_recipm1_alphas_cumprod": (1 / after - 1).sqrt(),
        "posterior_variance": variance, "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * before.sqrt() / (1 - after),
        "posterior_mean_coef2": (1 - before) * alphas.sqrt() / (1 - after),
    }
    return {name: table.float() for name, table in tables.items()}


def _ldm_shapes(
    rules: Iterable[Rule], part: str, config: dict[str, Any], *, projected: bool = False
) -> dict[str, tuple[int, ...]]:
    wanted = shapes_of(build(part, config, part, projected))
    return {rule.ldm: rule.ldm_shapes(wanted[rule.ours[0]])[0] for rule in rules if rule.ours[0] in wanted}


def unet_config(family: Family, size: Size, context: int, in_channels: int = 4) -> dict[str, Any]:
    """Keyword arguments of a UNet2DConditionModel of this size."""
    levels = len(size.widths)
    config: dict[str, Any] = {
        "in_channels": in_channels, "block_out_channels": size.widths, "cross_attention_dim": context,
        "down_block_types": tuple("CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in size.depths),
        "up_block_types": tuple("CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(size.depths)),
        "attention_head_dim": family.heads or tuple(width // size.head_channels for width in size.widths),
        "transformer_layers_per_block": 1 if levels == 4 else (1, *size.depths[1:]),
        "use_linear_projection": family is not SD1,
    }
    if family is SDXL:
        config |= {"addition_embed_type": "text_time", "addition_time_embed_dim": 256,
                   "projection_class_embeddings_input_dim": size.text_widths[-1] + 6 * 256}
    return config


def _vae_config(size: Size) -> dict[str, Any]:
    levels = len(size.vae_widths)
    return {"block_out_channels": size.vae_widths, "layers_per_block": 2,
            "down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels}


def _text_config(row: TextEncoderRow, width: int, layers: int) -> dict[str, Any]:
    return {"vocab_size": WORDS, "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers,
            "num_attention_heads": max(1, width // 64), "hidden_act": "quick_gelu" if row.layout == "clip" else "gelu",
            "projection_dim": width}


def sidecar_text(family: Family, size: Size) -> str:
    """What a scaled-down model needs beside it, as far as we read it."""
    heads = f"num_heads: {family.heads}" if family.heads else f"num_head_channels: {size.head_channels}"
    unet = "network_config" if family is SDXL else "unet_config"
    image = "" if family is SDXL else "    image_size: 8\n"
    return f"model:\n  params:\n{image}    {unet}:\n      params:\n        {heads}\n"
