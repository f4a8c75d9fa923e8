"""What the prompts become for the UNet: anew in each step while text encoders are trained, else once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..models.load import StableDiffusion
from ..models.text_encoder import Conditioning, encode_prompts, encode_tokens, tokenize
from .memory import on_device

Size = tuple[int, int]  # height, width in px


class Prompts:
    """Encodes prompts. `trained` maps parts to text encoders as Accelerate prepared them; empty once they are frozen."""

    def __init__(self, model: StableDiffusion, trained: Mapping[str, Any], clip_skip: int, device: torch.device) -> None:
        self._model, self._clip_skip, self._device = model, clip_skip, device
        self._trained = dict(trained)
        self._cache: dict[tuple[str, Size], Conditioning] = {}

    @property
    def are_trained(self) -> bool:
        return bool(self._trained)

    def encode(self, prompts: Sequence[str], size: Size) -> Conditioning:
        """For pictures of one size. With gradients while text encoders are trained."""
        if not self._trained:
            return Conditioning.cat([self._cache[prompt, size] for prompt in prompts]).to(self._device)
        encoders = tuple(_Prepared(encoder, self._trained[row.part]) for row, encoder in
                         zip(self._model.family.text_encoders, self._model.text_encoders, strict=True))
        model = replace(self._model, text_encoders=encoders)
        return encode_tokens(model, tokenize(model, prompts), self._clip_skip, size)

    def freeze(self, prompts: Sequence[str], sizes: Sequence[Size]) -> None:
        """Encode all prompts for all sizes now; the text encoders leave the device."""
        self._trained.clear()
        encoders = torch.nn.ModuleList(self._model.text_encoders)
        with torch.no_grad(), on_device(encoders, self._device):
            for prompt in sorted(set(prompts)):
                for size in sorted(set(sizes)):
                    self._cache[prompt, size] = encode_prompts(self._model, [prompt], self._clip_skip, size).to("cpu")


class _Prepared:
    """Calls go through Accelerate's wrapper, everything else to the text encoder itself."""

    def __init__(self, encoder: Any, prepared: Any) -> None:
        self._encoder, self._wrapper = encoder, prepared

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._wrapper(*arguments, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)
