"""Our key tables: what the original (ldm) files call a tensor that diffusers and transformers call something else.

Each function takes a diffusers name and gives the ldm name without the module's prefix. Names that have no counterpart
raise KeyError: a table that guesses would lose tensors.
"""

from __future__ import annotations

import re

UNET_PREFIX, VAE_PREFIX, TEXT_PREFIX = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."

_RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
           "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
_UNET_ENDS = {"conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0",
              "time_embedding.linear_2": "time_embed.2", "conv_norm_out": "out.0", "conv_out": "out.2",
              "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_UNET_MIDDLE = {("resnets", "0"): "0", ("attentions", "0"): "1", ("resnets", "1"): "2"}


def unet_name(name: str, layers_per_block: int, attention: tuple[bool, ...]) -> str:
    """The ldm name of a UNet2DConditionModel's tensor; `attention` says which levels have it, outermost first."""
    module, _, leaf = name.rpartition(".")
    if module in _UNET_ENDS:
        return f"{_UNET_ENDS[module]}.{leaf}"
    levels, group = len(attention), layers_per_block + 1
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", name):
        return f"middle_block.{_UNET_MIDDLE[found[1], found[2]]}.{_inner(found[1], found[3])}"
    if found := re.fullmatch(r"down_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)", name):
        block = 1 + int(found[1]) * group + int(found[3])
        return f"input_blocks.{block}.{int(found[2] == 'attentions')}.{_inner(found[2], found[4])}"
    if found := re.fullmatch(r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.(.+)", name):
        return f"input_blocks.{(int(found[1]) + 1) * group}.0.op.{found[2]}"
    if found := re.fullmatch(r"up_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)", name):
        block = int(found[1]) * group + int(found[3])
        return f"output_blocks.{block}.{int(found[2] == 'attentions')}.{_inner(found[2], found[4])}"
    if found := re.fullmatch(r"up_blocks\.(\d+)\.upsamplers\.0\.conv\.(.+)", name):
        level = int(found[1])
        place = 2 if attention[levels - 1 - level] else 1
        return f"output_blocks.{level * group + layers_per_block}.{place}.conv.{found[2]}"
    raise KeyError(name)


def vae_name(name: str, levels: int) -> str:
    """The ldm name of an AutoencoderKL's tensor. Its decoder counts its blocks from the other end."""
    if found := re.fullmatch(r"(encoder|decoder)\.mid_block\.resnets\.(\d)\.(.+)", name):
        return f"{found[1]}.mid.block_{int(found[2]) + 1}.{_shortcut(found[3])}"
    if found := re.fullmatch(r"(encoder|decoder)\.mid_block\.attentions\.0\.(.+)\.(weight|bias)", name):
        return f"{found[1]}.mid.attn_1.{_VAE_ATTENTION[found[2]]}.{found[3]}"
    if found := re.fullmatch(r"encoder\.down_blocks\.(\d+)\.resnets\.(\d+)\.(.+)", name):
        return f"encoder.down.{found[1]}.block.{found[2]}.{_shortcut(found[3])}"
    if found := re.fullmatch(r"encoder\.down_blocks\.(\d+)\.downsamplers\.0\.(.+)", name):
        return f"encoder.down.{found[1]}.downsample.{found[2]}"
    if found := re.fullmatch(r"decoder\.up_blocks\.(\d+)\.resnets\.(\d+)\.(.+)", name):
        return f"decoder.up.{levels - 1 - int(found[1])}.block.{found[2]}.{_shortcut(found[3])}"
    if found := re.fullmatch(r"decoder\.up_blocks\.(\d+)\.upsamplers\.0\.(.+)", name):
        return f"decoder.up.{levels - 1 - int(found[1])}.upsample.{found[2]}"
    if found := re.fullmatch(r"(encoder|decoder)\.conv_norm_out\.(.+)", name):
        return f"{found[1]}.norm_out.{found[2]}"
    if re.fullmatch(r"((encoder|decoder)\.conv_(in|out)|quant_conv|post_quant_conv)\.(weight|bias)", name):
        return name
    raise KeyError(name)


def is_vae_projection(ldm_name: str) -> bool:
    """True for the weights that ldm keeps as 1x1 convolutions (4-D) and diffusers as linear layers (2-D)."""
    return bool(re.search(r"\.mid\.attn_1\.(q|k|v|proj_out)\.weight$", ldm_name))


def text_name(name: str) -> str:
    """The canonical name of a CLIPTextModel's tensor. transformers 5.6 dropped the first part of its names."""
    return name if name.startswith("text_model.") else f"text_model.{name}"


def _inner(kind: str, rest: str) -> str:
    if kind == "attentions":
        return rest
    layer, _, leaf = rest.rpartition(".")
    return f"{_RESNET[layer]}.{leaf}"


def _shortcut(rest: str) -> str:
    return rest.replace("conv_shortcut", "nin_shortcut")
