"""Tables of names: each tensor of a checkpoint file, and what it is called in diffusers' modules.

Generated from the structure (levels, layers, depths). Text encoders are named by ourselves, as transformers did before
5.6, without its leading `text_model.`: see `canonical`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

SAME, CONV, TRANSPOSED, JOINED = "same", "1x1 convolution", "transposed", "q, k, v joined"


@dataclass(frozen=True)
class Rule:
    """One tensor of the file and the module's tensors that it holds. `aliases`: its name in files of old converters."""

    ldm: str
    ours: tuple[str, ...]
    how: str = SAME
    aliases: tuple[str, ...] = ()

    def to_ours(self, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The file's tensor as the module's tensors. Exact."""
        if self.how == JOINED:
            return tuple(part.contiguous() for part in tensor.chunk(3))
        if self.how == TRANSPOSED:
            return (tensor.t().contiguous(),)
        if self.how == CONV:
            return (tensor.reshape(tensor.shape[:2]),)
        return (tensor,)

    def to_ldm(self, tensors: Sequence[torch.Tensor], shape: Sequence[int] | None = None) -> torch.Tensor:
        """The module's tensors as the file's, in the given shape where the file's own is known. Exact."""
        if self.how == JOINED:
            return torch.cat(list(tensors))
        if self.how == TRANSPOSED:
            return tensors[0].t().contiguous()
        if self.how == CONV:
            return tensors[0].reshape(tuple(shape) if shape else (*tensors[0].shape, 1, 1))
        return tensors[0]

    def ldm_shapes(self, ours: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """Which shapes the file's tensor may have when the module's (the first of them) has shape `ours`."""
        shape = tuple(ours)
        if self.how == JOINED:
            return ((3 * shape[0], *shape[1:]),)
        if self.how == TRANSPOSED:
            return (shape[::-1],)
        if self.how == CONV:
            return ((*shape, 1, 1), shape)
        return (shape,)


@dataclass(frozen=True)
class Level:
    """One resolution level of a UNet: `depth` is its transformer blocks per attention, 0 for none."""

    channels: int
    layers: int
    depth: int


@dataclass(frozen=True)
class Layer:
    """A pair of module prefixes and the kind of what stands under them."""

    ldm: str
    ours: str
    kind: str  # "plain", "resnet", "attention"
    depth: int = 0


def unet_rules(levels: Sequence[Level], mid_depth: int, prefix: str) -> Iterator[Rule]:
    """Every tensor that a UNet of this structure may have (`skip_connection` and labels only where it has them)."""
    for layer in _unet_layers(levels, mid_depth):
        for ldm, ours in _LEAVES[layer.kind](layer.depth):
            yield Rule(f"{prefix}{layer.ldm}.{ldm}", (f"{layer.ours}.{ours}",))


def _unet_layers(levels: Sequence[Level], mid_depth: int) -> Iterator[Layer]:
    for ldm, ours in (("time_embed.0", "time_embedding.linear_1"), ("time_embed.2", "time_embedding.linear_2"),
                      ("label_emb.0.0", "add_embedding.linear_1"), ("label_emb.0.2", "add_embedding.linear_2"),
                      ("input_blocks.0.0", "conv_in"), ("out.0", "conv_norm_out"), ("out.2", "conv_out")):
        yield Layer(ldm, ours, "plain")
    at = 1
    for i, level in enumerate(levels):
        for j in range(level.layers):
            yield Layer(f"input_blocks.{at}.0", f"down_blocks.{i}.resnets.{j}", "resnet")
            if level.depth:
                yield Layer(f"input_blocks.{at}.1", f"down_blocks.{i}.attentions.{j}", "attention", level.depth)
            at += 1
        if i < len(levels) - 1:
            yield Layer(f"input_blocks.{at}.0.op", f"down_blocks.{i}.downsamplers.0.conv", "plain")
            at += 1
    yield Layer("middle_block.0", "mid_block.resnets.0", "resnet")
    yield Layer("middle_block.1", "mid_block.attentions.0", "attention", mid_depth)
    yield Layer("middle_block.2", "mid_block.resnets.1", "resnet")
    at = 0
    for i, level in enumerate(reversed(levels)):
        for j in range(level.layers + 1):
            yield Layer(f"output_blocks.{at}.0", f"up_blocks.{i}.resnets.{j}", "resnet")
            if level.depth:
                yield Layer(f"output_blocks.{at}.1", f"up_blocks.{i}.attentions.{j}", "attention", level.depth)
            if j == level.layers and i < len(levels) - 1:
                index = 2 if level.depth else 1
                yield Layer(f"output_blocks.{at}.{index}.conv", f"up_blocks.{i}.upsamplers.0.conv", "plain")
            at += 1


def _both(ldm: str, ours: str) -> Iterator[tuple[str, str]]:
    yield from ((f"{ldm}.{kind}", f"{ours}.{kind}") for kind in ("weight", "bias"))


def _plain_leaves(depth: int) -> Iterator[tuple[str, str]]:
    yield from (("weight", "weight"), ("bias", "bias"))


def _resnet_leaves(depth: int) -> Iterator[tuple[str, str]]:
    for ldm, ours in (("in_layers.0", "norm1"), ("in_layers.2", "conv1"), ("emb_layers.1", "time_emb_proj"),
                      ("out_layers.0", "norm2"), ("out_layers.3", "conv2"), ("skip_connection", "conv_shortcut")):
        yield from _both(ldm, ours)


def _attention_leaves(depth: int) -> Iterator[tuple[str, str]]:
    names = ["norm.weight", "norm.bias", "proj_in.weight", "proj_in.bias", "proj_out.weight", "proj_out.bias"]
    for k in range(depth):
        block = f"transformer_blocks.{k}."
        names += [f"{block}norm{n}.{kind}" for n in (1, 2, 3) for kind in ("weight", "bias")]
        names += [f"{block}{attn}.{x}" for attn in ("attn1", "attn2")
                  for x in ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight", "to_out.0.bias")]
        names += [f"{block}ff.net.{x}" for x in ("0.proj.weight", "0.proj.bias", "2.weight", "2.bias")]
    yield from ((name, name) for name in names)


_LEAVES = {"plain": _plain_leaves, "resnet": _resnet_leaves, "attention": _attention_leaves}


def vae_rules(encoder_layers: Sequence[int], decoder_layers: Sequence[int], prefix: str) -> Iterator[Rule]:
    """Every tensor of an AutoencoderKL; layers per level, outermost level first, of encoder and decoder."""
    for ldm in ("quant_conv", "post_quant_conv"):
        for name, ours in _both(ldm, ldm):
            yield Rule(prefix + name, (ours,))
    for side, layers in (("encoder", encoder_layers), ("decoder", decoder_layers)):
        down, top = side == "encoder", len(layers) - 1
        for ldm, ours in (("conv_in", "conv_in"), ("norm_out", "conv_norm_out"), ("conv_out", "conv_out")):
            yield from _named(f"{prefix}{side}.{ldm}", f"{side}.{ours}")
        for n in (0, 1):
            yield from _vae_resnet(f"{prefix}{side}.mid.block_{n + 1}", f"{side}.mid_block.resnets.{n}")
        yield from _vae_attention(f"{prefix}{side}.mid.attn_1", f"{side}.mid_block.attentions.0")
        for i, count in enumerate(layers):
            block = f"{side}.down_blocks.{i}" if down else f"{side}.up_blocks.{top - i}"
            level = f"{prefix}{side}.{'down' if down else 'up'}.{i}"
            for j in range(count):
                yield from _vae_resnet(f"{level}.block.{j}", f"{block}.resnets.{j}")
            if down and i < top:
                yield from _named(f"{level}.downsample.conv", f"{block}.downsamplers.0.conv")
            if not down and i > 0:
                yield from _named(f"{level}.upsample.conv", f"{block}.upsamplers.0.conv")


def _named(ldm: str, ours: str) -> Iterator[Rule]:
    yield from (Rule(theirs, (mine,)) for theirs, mine in _both(ldm, ours))


def _vae_resnet(ldm: str, ours: str) -> Iterator[Rule]:
    for theirs, mine in (("norm1", "norm1"), ("conv1", "conv1"), ("norm2", "norm2"), ("conv2", "conv2"),
                         ("nin_shortcut", "conv_shortcut")):
        yield from _named(f"{ldm}.{theirs}", f"{ours}.{mine}")


def _vae_attention(ldm: str, ours: str) -> Iterator[Rule]:
    yield from _named(f"{ldm}.norm", f"{ours}.group_norm")
    for theirs, mine in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")):
        # Old converters left diffusers' names in the file, or what replacing "q" by "to_q" twice makes of them.
        for kind, how in (("weight", CONV), ("bias", SAME)):
            aliases = tuple(f"{ldm}.{alias}.{kind}" for alias in (mine, f"to_{mine}"))
            yield Rule(f"{ldm}.{theirs}.{kind}", (f"{ours}.{mine}.{kind}",), how, aliases)


def clip_rules(layers: int, prefix: str) -> Iterator[Rule]:
    """A CLIP text encoder under transformers' names. Early files lack `text_model.`."""
    for name in text_names(layers):
        yield Rule(prefix + name, (name,), aliases=(early_name(prefix + name),))


def early_name(name: str) -> str:
    """What early files call a tensor of a CLIP text encoder; any other tensor's own name."""
    return name.replace(".transformer.text_model.", ".transformer.", 1)


def openclip_rules(layers: int, prefix: str, projected: bool) -> Iterator[Rule]:
    """An OpenCLIP text tower: q, k, v joined, the projection transposed."""
    yield Rule(f"{prefix}token_embedding.weight", ("embeddings.token_embedding.weight",))
    yield Rule(f"{prefix}positional_embedding", ("embeddings.position_embedding.weight",))
    for i in range(layers):
        ldm, ours = f"{prefix}transformer.resblocks.{i}.", f"encoder.layers.{i}."
        for kind in ("weight", "bias"):
            joined = tuple(f"{ours}self_attn.{x}_proj.{kind}" for x in "qkv")
            yield Rule(f"{ldm}attn.in_proj_{kind}", joined, JOINED)
        for theirs, mine in (("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"), ("attn.out_proj", "self_attn.out_proj"),
                             ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2")):
            yield from _named(ldm + theirs, ours + mine)
    yield from _named(f"{prefix}ln_final", "final_layer_norm")
    if projected:
        yield Rule(f"{prefix}text_projection", ("text_projection.weight",), TRANSPOSED)


def text_names(layers: int) -> Iterator[str]:
    """Our own names of a CLIP text encoder's tensors."""
    yield from ("embeddings.token_embedding.weight", "embeddings.position_embedding.weight")
    for i in range(layers):
        for module in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj",
                       "layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"):
            yield from (f"encoder.layers.{i}.{module}.{kind}" for kind in ("weight", "bias"))
    yield from ("final_layer_norm.weight", "final_layer_norm.bias")


def canonical(name: str) -> str:
    """A tensor's name whatever the installed transformers calls it: 5.6 dropped `text_model.`."""
    return name.removeprefix("text_model.")


def present_vae_name(name: str) -> str:
    """A tensor of diffusers' VAE by its name of now: before 0.18 its attention's layers had others, which many files keep."""
    for early, now in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
        name = name.replace(f".attentions.0.{early}.", f".attentions.0.{now}.")
    return name
