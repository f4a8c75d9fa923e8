"""What a checkpoint's shapes say about its networks: the configuration of each part, and the table of its names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..errors import MissingTensors
from .family import UNET, VAE, Family, Shapes, TextEncoderRow
from .ldm_keys import Level, Rule, clip_rules, openclip_rules, unet_rules, vae_rules
from .sidecar import Sidecar

NORM_GROUPS = 32  # ldm's group norms


@dataclass(frozen=True)
class PartLayout:
    """One network: the keyword arguments of its configuration, and all names that it may have in the file."""

    part: str  # "unet", "vae", "text_encoder", "text_encoder_2"
    config: dict[str, Any]
    rules: tuple[Rule, ...]


class Reader:
    """Looks up shapes below a prefix and names what is missing."""

    def __init__(self, shapes: Shapes, prefix: str, file: str) -> None:
        self.shapes, self.prefix, self.file = shapes, prefix, file

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.shapes

    def shape(self, name: str, dims: int) -> tuple[int, ...]:
        found = self.shapes.get(self.prefix + name)
        if found is None:
            raise missing(self.file, [self.prefix + name])
        if len(found) != dims or min(found) < 1:
            raise self.odd(f"{self.prefix}{name} has shape {list(found)}")
        return found

    def odd(self, why: str) -> MissingTensors:
        return MissingTensors(f"{self.file} is to be loaded", why,
                              "It may be damaged, or of a kind that is not known here.")

    def count(self, pattern: str) -> int:
        number = 0
        while pattern.format(number) in self:
            number += 1
        return number


def missing(file: str, names: Iterable[str]) -> MissingTensors:
    """The error for tensors that a file lacks; names a few."""
    listed = sorted(names)
    some = ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")
    return MissingTensors(f"{file} is to be loaded", f"it lacks {some}",
                          "Use a whole checkpoint; this one is incomplete.")


def layouts(
    shapes: Shapes, family: Family, sidecar: Sidecar | None, file: str, *, vae: bool = True
) -> tuple[PartLayout, ...]:
    """UNet, VAE (unless nothing is to be known of it) and text encoders of a file. Raises MissingTensors."""
    sidecar = sidecar or Sidecar()
    texts = tuple(text_layout(shapes, row, sidecar, file) for row in family.text_encoders)
    pooled = texts[-1].config["projection_dim"] if family.text_encoders[-1].projected else 0
    unet = unet_layout(Reader(shapes, UNET, file), family, sidecar, pooled)
    if vae and not any(name.startswith(VAE) for name in shapes):
        raise MissingTensors(f"{file} is to be used", "it has no VAE of its own",
                             "Name a VAE file (VAE, in Advanced; --vae), or use a checkpoint that has one.")
    return (unet, vae_layout(shapes, VAE, family, sidecar, file), *texts) if vae else (unet, *texts)


def unet_layout(reader: Reader, family: Family, sidecar: Sidecar, pooled: int) -> PartLayout:
    """Configuration of a UNet2DConditionModel; `pooled` is the width of SDXL's pooled text embedding."""
    levels, mid_depth = _unet_levels(reader)
    widths = tuple(level.channels for level in levels)
    heads = _heads(reader, family, sidecar, widths)
    depths = [level.depth or 1 for level in levels]
    if levels[-1].depth not in (0, mid_depth):
        raise reader.odd("the middle of its UNet has another depth than the level above")
    depths[-1] = mid_depth
    context = reader.shape("middle_block.1.transformer_blocks.0.attn2.to_k.weight", 2)[1]
    first = reader.shape("input_blocks.0.0.weight", 4)
    layers = tuple(level.layers for level in levels)
    config: dict[str, Any] = {
        "sample_size": family.resolution // 8, "in_channels": first[1],
        "out_channels": reader.shape("out.2.weight", 4)[0], "block_out_channels": widths,
        "layers_per_block": layers[0] if len(set(layers)) == 1 else layers, "cross_attention_dim": context,
        "attention_head_dim": heads, "norm_num_groups": NORM_GROUPS,
        "down_block_types": tuple("CrossAttnDownBlock2D" if level.depth else "DownBlock2D" for level in levels),
        "up_block_types": tuple("CrossAttnUpBlock2D" if level.depth else "UpBlock2D" for level in reversed(levels)),
        "transformer_layers_per_block": 1 if set(depths) == {1} else tuple(depths),
        "use_linear_projection": len(reader.shapes[f"{reader.prefix}middle_block.1.proj_in.weight"]) == 2,
    }
    if family.key == "sd2":
        config["upcast_attention"] = True
    if family.has_time_ids:
        label = reader.shape("label_emb.0.0.weight", 2)[1]
        if label <= pooled or (label - pooled) % 6:
            raise reader.odd(f"label_emb takes {label} numbers, and the pooled text embedding has {pooled}")
        config |= {"addition_embed_type": "text_time", "addition_time_embed_dim": (label - pooled) // 6,
                   "projection_class_embeddings_input_dim": label}
    elif "label_emb.0.0.weight" in reader:
        raise reader.odd("its UNet takes labels, which this family does not")
    return PartLayout("unet", config, tuple(unet_rules(levels, mid_depth, reader.prefix)))


def _unet_levels(reader: Reader) -> tuple[list[Level], int]:
    blocks: list[list[tuple[int, int]]] = [[]]
    at = 1
    while True:
        block = f"input_blocks.{at}."
        if f"{block}0.op.weight" in reader:
            blocks.append([])
        elif f"{block}0.in_layers.2.weight" in reader:
            channels = reader.shape(f"{block}0.in_layers.2.weight", 4)[0]
            blocks[-1].append((channels, reader.count(block + "1.transformer_blocks.{}.norm1.weight")))
        else:
            break
        at += 1
    mid_depth = reader.count("middle_block.1.transformer_blocks.{}.norm1.weight")
    if not mid_depth or not all(blocks):
        lacking = "middle_block.1.transformer_blocks.0.norm1" if all(blocks) else f"input_blocks.{at}.0.in_layers.2"
        raise missing(reader.file, [f"{reader.prefix}{lacking}.weight"])
    if any(len(set(level)) != 1 for level in blocks):
        raise reader.odd("its UNet has levels of more than one width or depth")
    levels = [Level(level[0][0], len(level), level[0][1]) for level in blocks]
    if reader.shape("input_blocks.0.0.weight", 4)[0] != levels[0].channels:
        raise reader.odd("its UNet does not begin with the width of its first level")
    if any(level.channels % NORM_GROUPS for level in levels):
        raise reader.odd(f"its UNet has widths that are no multiples of {NORM_GROUPS}")
    return levels, mid_depth


def _heads(reader: Reader, family: Family, sidecar: Sidecar, widths: tuple[int, ...]) -> Any:
    """diffusers' `attention_head_dim`, which means the number of heads."""
    if sidecar.num_head_channels:
        heads: Any = tuple(width // sidecar.num_head_channels for width in widths)
    else:
        number = sidecar.num_heads or family.heads
        heads = number or tuple(width // 64 for width in widths)
    each = heads if isinstance(heads, tuple) else (heads,) * len(widths)
    if not all(number > 0 and width % number == 0 for width, number in zip(widths, each, strict=True)):
        raise reader.odd(f"UNet widths {list(widths)} cannot be shared among {list(each)} attention heads")
    return heads


def vae_layout(shapes: Shapes, prefix: str, family: Family, sidecar: Sidecar, file: str) -> PartLayout:
    """Configuration of an AutoencoderKL."""
    reader = Reader(shapes, prefix, file)
    levels = reader.count("encoder.down.{}.block.0.conv1.weight")
    if not levels or f"decoder.up.{levels - 1}.block.0.conv1.weight" not in reader:
        raise missing(file, [f"{prefix}{'decoder.up' if levels else 'encoder.down'}.0.block.0.conv1.weight"])
    widths = tuple(reader.shape(f"encoder.down.{i}.block.0.conv1.weight", 4)[0] for i in range(levels))
    layers = reader.count("encoder.down.0.block.{}.conv1.weight")
    if any(width % NORM_GROUPS for width in widths):
        raise reader.odd(f"its VAE has widths that are no multiples of {NORM_GROUPS}")
    config = {
        "in_channels": reader.shape("encoder.conv_in.weight", 4)[1],
        "out_channels": reader.shape("decoder.conv_out.weight", 4)[0],
        "down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": widths, "layers_per_block": layers, "norm_num_groups": NORM_GROUPS,
        "latent_channels": reader.shape("post_quant_conv.weight", 4)[1], "sample_size": family.resolution,
        "scaling_factor": sidecar.scale_factor or family.scaling_factor,
    }
    return PartLayout("vae", config, tuple(vae_rules([layers] * levels, [layers + 1] * levels, prefix)))


def text_layout(shapes: Shapes, row: TextEncoderRow, sidecar: Sidecar, file: str) -> PartLayout:
    """Configuration of a CLIPTextModel. SD2's has one layer less than the file: it was trained on the last but one."""
    openclip = row.layout == "openclip"
    prefix = row.prefix
    if not openclip and f"{prefix}embeddings.token_embedding.weight" not in shapes:
        early = prefix.removesuffix("text_model.")
        prefix = early if f"{early}embeddings.token_embedding.weight" in shapes else prefix
    reader = Reader(shapes, prefix, file)
    layer = "transformer.resblocks.{}." if openclip else "encoder.layers.{}."
    stored = reader.count(layer + ("ln_1.weight" if openclip else "layer_norm1.weight"))
    if not stored:
        raise missing(file, [prefix + layer.format(0)])
    layers = stored - 1 if openclip and not row.projected and sidecar.text_layer != "last" else stored
    if layers < (2 if row.penultimate else 1):
        raise reader.odd(f"its text encoder has {stored} layer")
    words, width = reader.shape("token_embedding.weight" if openclip else "embeddings.token_embedding.weight", 2)
    positions = reader.shape("positional_embedding" if openclip else "embeddings.position_embedding.weight", 2)[0]
    inner = reader.shape(layer.format(0) + ("mlp.c_fc.weight" if openclip else "mlp.fc1.weight"), 2)[0]
    heads = max(1, width // 64)
    if width % heads:
        raise reader.odd(f"its text encoder has width {width}, which is no multiple of 64")
    if positions != 77 or words < 2:
        raise reader.odd(f"its text encoder reads {positions} tokens of {words}")
    config = {
        "vocab_size": words, "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "max_position_embeddings": positions,
        "hidden_act": "gelu" if openclip else "quick_gelu",
        "projection_dim": reader.shape("text_projection", 2)[1] if row.projected else width,
        "bos_token_id": words - 2, "eos_token_id": words - 1, "pad_token_id": 1,
    }
    rules = openclip_rules(layers, row.prefix, row.projected) if openclip else clip_rules(layers, row.prefix)
    return PartLayout(row.part, config, tuple(rules))
