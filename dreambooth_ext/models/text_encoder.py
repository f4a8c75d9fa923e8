"""From prompts to what the UNet is conditioned on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from .load import StableDiffusion, load_tokenizer

TOKENS = 77


@dataclass(frozen=True)
class Conditioning:
    """`hidden_states` (B, 77, C); for SDXL also `pooled` (B, P) and `time_ids` (B, 6)."""

    hidden_states: torch.Tensor
    pooled: torch.Tensor | None = None
    time_ids: torch.Tensor | None = None

    def __getitem__(self, index: Any) -> Conditioning:
        return Conditioning(*(None if part is None else part[index] for part in self._parts()))

    def to(self, *arguments: Any, **named: Any) -> Conditioning:
        return Conditioning(*(None if part is None else part.to(*arguments, **named) for part in self._parts()))

    @staticmethod
    def cat(several: Sequence[Conditioning]) -> Conditioning:
        """Join along the batch."""
        columns = zip(*(one._parts() for one in several), strict=True)
        return Conditioning(*(None if column[0] is None else torch.cat(column) for column in columns))

    def _parts(self) -> tuple[torch.Tensor | None, ...]:
        return self.hidden_states, self.pooled, self.time_ids


def tokenize(model: StableDiffusion, prompts: Sequence[str]) -> list[torch.Tensor]:
    """One int64 tensor (B, 77) for each text encoder; prompts are cut off or padded as in training."""
    encoded = [tokenizer(list(prompts), padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
               for tokenizer in model.tokenizers]
    return [each.input_ids for each in encoded]


def encode_tokens(model: StableDiffusion, token_ids: Sequence[torch.Tensor], clip_skip: int = 1) -> Conditioning:
    """Differentiable. clip_skip 1 takes the last layer, 2 the one before it; the final norm is applied either way."""
    encoder = model.text_encoders[0]
    output = encoder(token_ids[0].to(encoder.device), output_hidden_states=clip_skip > 1, return_dict=True)
    if clip_skip == 1:
        return Conditioning(output.last_hidden_state)
    norm = getattr(encoder, "text_model", encoder).final_layer_norm  # transformers 5.6 has no text_model in between
    return Conditioning(norm(output.hidden_states[-clip_skip]))


def encode_prompts(model: StableDiffusion, prompts: Sequence[str], clip_skip: int = 1) -> Conditioning:
    """(B, 77, C) for B prompts, without gradients."""
    with torch.no_grad():
        return encode_tokens(model, tokenize(model, prompts), clip_skip)


@cache
def _tokenizer() -> Any:
    return load_tokenizer()


def token_pieces(text: str) -> list[tuple[str, int]]:
    """(piece, its number in CLIP's vocabulary) of a text; the more common a piece, the lower its number."""
    tokenizer = _tokenizer()
    ids = tokenizer(text, add_special_tokens=False).input_ids
    return list(zip(tokenizer.convert_ids_to_tokens(ids), ids, strict=True))
