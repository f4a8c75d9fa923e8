"""Prompts to what the UNet reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import ConfigError
from .stable_diffusion import StableDiffusion


@dataclass(frozen=True)
class Conditioning:
    """A batch of encoded prompts. SDXL also has `pooled` (B, P) and `time_ids` (B, 6): sizes and crop, in px."""

    hidden_states: torch.Tensor  # (B, 77, C)
    pooled: torch.Tensor | None = None
    time_ids: torch.Tensor | None = None

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Conditioning:
        return self.each(lambda tensor: tensor.to(device=device, dtype=dtype))

    def detach(self) -> Conditioning:
        return self.each(lambda tensor: tensor.detach())

    def repeat(self, count: int) -> Conditioning:
        """Each row `count` times in succession."""
        return self.each(lambda tensor: tensor.repeat_interleave(count, dim=0))

    def zeros_like(self) -> Conditioning:
        """SDXL's empty negative prompt."""
        pooled = None if self.pooled is None else torch.zeros_like(self.pooled)
        return Conditioning(torch.zeros_like(self.hidden_states), pooled, self.time_ids)

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """One batch after the other."""
        def joined(tensors: list[Any]) -> torch.Tensor | None:
            return None if tensors[0] is None else torch.cat(tensors)

        hidden = torch.cat([part.hidden_states for part in parts])
        return Conditioning(hidden, joined([p.pooled for p in parts]), joined([p.time_ids for p in parts]))

    def tensors(self) -> list[torch.Tensor]:
        return [tensor for tensor in (self.hidden_states, self.pooled, self.time_ids) if tensor is not None]

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Conditioning:
        pooled, time_ids = (None if value is None else change(value) for value in (self.pooled, self.time_ids))
        return Conditioning(change(self.hidden_states), pooled, time_ids)


def tokenize(model: StableDiffusion, prompts: Sequence[str]) -> list[torch.Tensor]:
    """One (B, 77) int64 tensor for each text encoder, on the CPU. What exceeds 75 tokens is cut off."""
    return [torch.tensor([tokenizer(prompt) for prompt in prompts], dtype=torch.int64).reshape(-1, 77)
            for tokenizer in model.tokenizers]


def encode_tokens(
    model: StableDiffusion, token_ids: Sequence[torch.Tensor], clip_skip: int = 1, size: tuple[int, int] | None = None
) -> Conditioning:
    """Encode what `tokenize` gave; differentiable. `size` is (height, width) in px, by default the model's own.

    clip_skip 1 is the layer that the model was trained on, 2 the one before it, as hosts count (SD 1.x, 2.x; the
    final norm is applied as in inference). SDXL always reads its last but one. Raises ConfigError.
    """
    rows = model.family.text_encoders
    hidden, pooled = [], None
    for row, encoder, ids in zip(rows, model.text_encoders, token_ids, strict=True):
        layers = encoder.config.num_hidden_layers
        if clip_skip > layers or (row.penultimate and clip_skip > 2):
            most = "always takes the last but one layer" if row.penultimate else f"has {layers} layers"
            raise ConfigError([f"--clip-skip: {clip_skip}, but {model.family.name} {most}"])
        out = encoder(ids.to(encoder.device), output_hidden_states=row.penultimate or clip_skip > 1)
        if row.penultimate:
            hidden.append(out.hidden_states[-2])
        elif clip_skip == 1:
            hidden.append(out.last_hidden_state)
        else:
            hidden.append(_final_norm(encoder)(out.hidden_states[-clip_skip]))
        if row.projected:
            pooled = out.text_embeds
    states = torch.cat(hidden, dim=-1)
    return Conditioning(states, pooled, _time_ids(model, states, size) if model.family.has_time_ids else None)


def encode_prompts(
    model: StableDiffusion, prompts: Sequence[str], clip_skip: int = 1, size: tuple[int, int] | None = None
) -> Conditioning:
    """`tokenize` and `encode_tokens` in one, without gradients."""
    with torch.no_grad():
        return encode_tokens(model, tokenize(model, prompts), clip_skip, size)


def _time_ids(model: StableDiffusion, states: torch.Tensor, size: tuple[int, int] | None) -> torch.Tensor:
    height, width = size or (model.resolution, model.resolution)
    ids = states.new_zeros(states.shape[0], 6)  # filled on its device: a copy from RAM would be waited for
    ids[:, 0::4] = height
    ids[:, 1::4] = width
    return ids


def _final_norm(encoder: Any) -> Any:
    # transformers 5.6 dropped the module between.
    return getattr(encoder, "text_model", encoder).final_layer_norm
