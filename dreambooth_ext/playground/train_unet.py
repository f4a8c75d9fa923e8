"""The playground's text encoder and UNet, from nothing, together: predict the noise in captioned pictures' latents."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from ..models.noise import alphas_cumprod
from ..models.tokenizer import tokenizer_folder
from . import latents, networks, pacing, world

LEARNING_RATE = 1.0e-3
EMPTY_SHARE = 0.1  # captions left empty, for classifier-free guidance
SNR_GAMMA = 5.0
EMA_DECAY = 0.999
# Most of the time goes to many coarse steps that see the first tokens only; the rest sees prompts as they are.
FIRST_SHARE = 0.75
CONTEXT = (20, 77)  # tokens
BATCH = (32, 64)


class Captions:
    """Token ids of captions, padded to 77 as Stable Diffusion pads, remembered."""

    def __init__(self) -> None:
        self._tokenizer = CLIPTokenizer.from_pretrained(str(tokenizer_folder()))
        self._ids: dict[str, torch.Tensor] = {}

    def ids(self, caption: str) -> torch.Tensor:
        """int64 (77,)."""
        if caption not in self._ids:
            options = {"padding": "max_length", "max_length": 77, "truncation": True, "return_tensors": "pt"}
            self._ids[caption] = self._tokenizer(caption, **options).input_ids[0]
        return self._ids[caption]


def random_caption(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    """A caption with parts left out at random, or none at all."""
    return "" if rng.random() < EMPTY_SHARE else world.random_caption(rng, words)


def encode_captions(encoder: CLIPTextModel, captions: Captions, texts: list[str], length: int) -> torch.Tensor:
    """Last hidden states (n, length, width); each different caption is encoded once."""
    different = sorted(set(texts))
    ids = torch.stack([captions.ids(text)[:length] for text in different])
    hidden = encoder(ids).last_hidden_state
    return hidden[torch.tensor([different.index(text) for text in texts])]


class Trainer:
    """Both networks, their moving averages and the optimizer."""

    def __init__(self, out: Path, minutes: float) -> None:
        torch.manual_seed(0)
        self.out = out
        self.nets = nn.ModuleDict({"unet": networks.build_unet(), "text": networks.build_text_encoder()}).train()
        text = self.nets["text"]
        embeddings = getattr(text, "text_model", text).embeddings  # the newest transformers dropped a level
        with torch.no_grad():
            embeddings.position_embedding.weight *= 0.5
        self.parameters = list(self.nets.parameters())
        embedding = embeddings.token_embedding.weight
        rest = [parameter for parameter in self.parameters if parameter is not embedding]
        # Without decay the embeddings of words that no caption has stay as drawn, ready for Dreambooth's token.
        groups = [{"params": rest, "weight_decay": 0.01}, {"params": [embedding], "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.99), foreach=True)
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        self.step, spent_s = 0, 0.0
        state = pacing.load_state(out / "unet_state.pt")
        if state:
            self.nets.load_state_dict(state["nets"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.average, self.step, spent_s = state["average"], state["step"], state["spent_s"]
        self.clock = pacing.Clock(minutes, spent_s)
        self.rng = np.random.default_rng((5, self.step))
        torch.manual_seed(int(self.rng.integers(2**31)))
        self.alphas_cumprod = alphas_cumprod().float()
        self.captions = Captions()

    def loss(self, clean: torch.Tensor, texts: list[str], length: int) -> torch.Tensor:
        """Noise prediction error, weighted by min-SNR-gamma (Hang et al., 2023)."""
        hidden = encode_captions(self.nets["text"], self.captions, texts, length)
        # One timestep from each of as many equal ranges: uniform, with less spread between batches.
        n = len(clean)
        timesteps = ((torch.arange(n) + torch.rand(n)) * (1000 / n)).long()[torch.randperm(n)]
        level = self.alphas_cumprod[timesteps][:, None, None, None]
        noise = torch.randn_like(clean)
        noisy = level.sqrt() * clean + (1 - level).sqrt() * noise
        error = (self.nets["unet"](noisy, timesteps, hidden, return_dict=False)[0] - noise).square().mean(dim=(1, 2, 3))
        snr = (level / (1 - level)).flatten()
        return (error * (snr.clamp(max=SNR_GAMMA) / snr)).mean()

    def update(self, loss: torch.Tensor) -> None:
        """One step of the optimizer and of the moving average."""
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        pacing.set_learning_rate(self.optimizer, LEARNING_RATE * pacing.cosine(self.clock.progress))
        self.optimizer.step()
        self.step += 1
        decay = min(EMA_DECAY, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.parameters, 1 - decay)

    def save(self) -> None:
        pacing.save_state(
            self.out / "unet_state.pt", nets=self.nets.state_dict(), optimizer=self.optimizer.state_dict(),
            average=self.average, step=self.step, spent_s=self.clock.spent_s,
        )


def train(out: Path, minutes: float) -> None:
    """Train, or go on training, up to `minutes` in all; `unet_state.pt` holds everything."""
    torch.set_num_threads(1)
    trainer = Trainer(out, minutes)
    clean, words = latents.load(out)
    said, seen, recent = time.monotonic(), 0, []
    while trainer.clock.progress < 1:
        phase = int(trainer.clock.progress >= FIRST_SHARE)
        rows = trainer.rng.integers(len(clean), size=BATCH[phase])
        texts = [random_caption(trainer.rng, words[row]) for row in rows]
        loss = trainer.loss(clean[rows], texts, CONTEXT[phase])
        trainer.update(loss)
        seen += len(rows)
        recent.append(loss.item())
        if time.monotonic() - said > 30:
            rate = seen / (time.monotonic() - said)
            head = f"unet {trainer.clock.progress:6.1%} step {trainer.step}"
            print(f"{head} loss {np.mean(recent):.4f} {rate:.1f} images/s", flush=True)
            said, seen, recent = time.monotonic(), 0, []
        if trainer.clock.save_is_due():
            trainer.save()
    trainer.save()


def load_average(out: Path) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """The averaged networks of the training so far, in eval mode."""
    nets = nn.ModuleDict({"unet": networks.build_unet(), "text": networks.build_text_encoder()})
    state = torch.load(out / "unet_state.pt", weights_only=True)
    nets.load_state_dict(state["nets"])
    with torch.no_grad():
        for parameter, average in zip(nets.parameters(), state["average"], strict=True):
            parameter.copy_(average)
    nets.eval().requires_grad_(False)
    return nets["unet"], nets["text"]
