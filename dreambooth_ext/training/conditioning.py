"""What the prompts become for the UNet: anew in each step while text encoders are trained, else once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ..models.stable_diffusion import StableDiffusion
from ..models.text_encoder import Conditioning, encode_prompts, encode_tokens, tokenize
from .memory import on_device

Size = tuple[int, int]  # height, width in px


@dataclass(frozen=True)
class Texts:
    """Prompts on the device: tokens (B, 77) for each text encoder that is trained, else what was encoded before."""

    token_ids: tuple[torch.Tensor, ...] = ()
    encoded: Conditioning | None = None

    def tensors(self) -> list[torch.Tensor]:
        return [*self.token_ids, *(self.encoded.tensors() if self.encoded is not None else ())]

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Texts:
        return Texts(tuple(change(ids) for ids in self.token_ids), None if self.encoded is None else self.encoded.each(change))


class Prompts:
    """Encodes prompts. `trained` maps parts to the text encoders that compute, bare and as Accelerate prepared them."""

    def __init__(self, model: StableDiffusion, trained: Mapping[str, tuple[Any, Any]], clip_skip: int,
                 device: torch.device) -> None:
        self._model, self._clip_skip, self._device = model, clip_skip, device
        self._trained = dict(trained)  # empty once they are frozen
        self._tokens: dict[str, tuple[torch.Tensor, ...]] = {}  # on the device: a row each
        self._cache: dict[tuple[str, Size], Conditioning] = {}  # in RAM

    @property
    def are_trained(self) -> bool:
        return bool(self._trained)

    def texts(self, prompts: Sequence[str], size: Size) -> Texts:
        """What `encode` starts from, for pictures of one size. The device is not waited for."""
        if self._trained:
            rows = [self._tokens_of(prompt) for prompt in prompts]
            return Texts(tuple(torch.cat(ids) for ids in zip(*rows, strict=True)))
        kept = [self._cache[prompt, size].each(lambda tensor: tensor.to(self._device, non_blocking=True)) for prompt in prompts]
        return Texts(encoded=Conditioning.cat(kept))

    def encode(self, texts: Texts, size: Size) -> Conditioning:
        """With gradients while text encoders are trained."""
        if texts.encoded is not None:
            return texts.encoded
        model = self._model.with_parts({part: _Prepared(*encoders) for part, encoders in self._trained.items()})
        return encode_tokens(model, texts.token_ids, self._clip_skip, size)

    def freeze(self, prompts: Sequence[str], sizes: Sequence[Size], unet_yields: bool = False) -> None:
        """Encode all prompts for all sizes now; text encoders that came for it leave the device again.

        `unet_yields`: the UNet makes room for them meanwhile. SDXL's, which are frozen in fp32, need 3 GiB.
        """
        self._trained.clear()
        self._tokens.clear()
        encoders = torch.nn.ModuleList(self._model.text_encoders)
        with torch.no_grad(), on_device(encoders, self._device, self._model.unet if unet_yields else None):
            for prompt in sorted(set(prompts)):
                for size in sorted(set(sizes)):
                    encoded = encode_prompts(self._model, [prompt], self._clip_skip, size).to("cpu")
                    self._cache[prompt, size] = encoded.each(self._ready)

    def _tokens_of(self, prompt: str) -> tuple[torch.Tensor, ...]:
        if prompt not in self._tokens:
            self._tokens[prompt] = tuple(ids.to(self._device) for ids in tokenize(self._model, [prompt]))
        return self._tokens[prompt]

    def _ready(self, tensor: torch.Tensor) -> torch.Tensor:
        """In memory that a GPU reads by itself."""
        return tensor.pin_memory() if self._device.type == "cuda" else tensor


def freeze_unread(model: StableDiffusion, clip_skip: int) -> None:
    """Layers of text encoders that nothing reads are not trained: gradients that never come would be waited for.

    Those are the layers above the one that is read, unless a pooled embedding is taken from the top.
    """
    for row, encoder in zip(model.family.text_encoders, model.text_encoders, strict=True):
        if row.projected:
            continue
        inner = getattr(encoder, "text_model", encoder)  # transformers 5.6 dropped the module between
        layers = inner.encoder.layers
        unread = (2 if row.penultimate else clip_skip) - 1
        for module in [*layers[len(layers) - unread :], *([inner.final_layer_norm] if row.penultimate else [])]:
            module.requires_grad_(False)


@contextmanager
def masks_without_waiting() -> Iterator[None]:
    """In the block, CLIP's causal mask is made without asking the device for a number, as transformers before 4.32 do.

    The mask is the same; but each step would wait, and no pass could be recorded.
    """
    from transformers.models.clip import modeling_clip

    own = getattr(modeling_clip, "_make_causal_mask", None)
    if own is not None:
        modeling_clip._make_causal_mask = _causal_mask
    try:
        yield
    finally:
        if own is not None:
            modeling_clip._make_causal_mask = own


def _causal_mask(shape: torch.Size, dtype: torch.dtype, device: torch.device, past_key_values_length: int = 0) -> torch.Tensor:
    """(B, 1, n, n): the least number above the diagonal, else 0. For (B, n) tokens."""
    count, length = shape
    mask = torch.full((length, length), torch.finfo(dtype).min, dtype=dtype, device=device).triu_(1)
    return mask[None, None].expand(count, 1, length, length)


class _Prepared:
    """Calls go through Accelerate's wrapper, everything else to the text encoder itself."""

    def __init__(self, encoder: Any, prepared: Any) -> None:
        self._encoder, self._wrapper = encoder, prepared

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._wrapper(*arguments, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)
