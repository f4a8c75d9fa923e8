"""What a training run holds while it runs: the model, what of it is trained, the optimizer, the averages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch

from ..config import TrainConfig
from ..models.load import StableDiffusion
from ..models.text_encoder import Conditioning, encode_prompts, encode_tokens, tokenize
from . import optimizer as optimizers
from .ema import Ema
from .schedule import lr_factor


class Session:
    """The parts of a run on their device. `modules` are the bare modules that are trained, by part."""

    def __init__(self, config: TrainConfig, model: StableDiffusion, accelerator: Any) -> None:
        self.config, self.model, self.accelerator = config, model, accelerator
        self.device = accelerator.device
        self.text_encoders = {part: module for part, module in model.parts.items() if part.startswith("text_encoder")}
        self.modules: dict[str, Any] = {"unet": model.unet}
        if config.train_text_encoder:
            self.modules |= self.text_encoders
        for module in model.modules:
            module.requires_grad_(False)
        for module in self.modules.values():
            module.requires_grad_(True)
            module.train()
            if config.gradient_checkpointing:
                _checkpoint_gradients(module)
        model.unet.to(self.device)
        self.move_text_encoders(self.device)
        groups = [{"params": list(module.parameters()), "name": part, "lr": self._base_lr(part)}
                  for part, module in self.modules.items()]
        self.optimizer = accelerator.prepare(optimizers.build(groups, config))
        self.prepared = {part: accelerator.prepare(module) for part, module in self.modules.items()}
        trained = [parameter for module in self.modules.values() for parameter in module.parameters()]
        self.ema = Ema(trained, config.ema_decay) if config.ema_decay else None
        self._embeddings: dict[tuple[str, tuple[int, int]], Conditioning] = {}

    @property
    def trains_text(self) -> bool:
        return "text_encoder" in self.modules

    def move_text_encoders(self, device: Any) -> None:
        for module in self.text_encoders.values():
            module.to(device)

    def conditioning(self, prompts: Sequence[str], size: tuple[int, int]) -> Conditioning:
        """Of prompts for pictures of (height, width) pixels; with gradients while the text encoders are trained."""
        if self.trains_text:
            encoders = tuple(self.prepared[part] for part in self.text_encoders)
            model = replace(self.model, text_encoders=encoders)
            return encode_tokens(model, tokenize(model, prompts), self.config.clip_skip, size)
        for prompt in prompts:
            if (prompt, size) not in self._embeddings:
                self._embeddings[prompt, size] = encode_prompts(self.model, [prompt], self.config.clip_skip, size)
        return Conditioning.cat([self._embeddings[prompt, size] for prompt in prompts]).to(self.device)

    def cache_prompts(self, prompts: Sequence[tuple[str, tuple[int, int]]]) -> None:
        """Encode all (prompt, size) pairs of frozen text encoders now, and let the encoders leave the device."""
        if not self.trains_text:
            for prompt, size in sorted(set(prompts)):
                self.conditioning([prompt], size)
            self.move_text_encoders("cpu")

    def set_learning_rates(self, step: int) -> dict[str, float]:
        """Set and return each part's rate for optimizer step `step` (from 0)."""
        config = self.config
        factor = lr_factor(config.lr_scheduler, step, config.steps or 1, config.lr_warmup_steps, config.lr_num_cycles)
        rates = {}
        for group in self.optimizer.param_groups:
            rates[group["name"]] = group["lr"] = self._base_lr(group["name"]) * factor
        return rates

    def stop_text_encoder(self) -> None:
        """From now on only the UNet is trained; the text encoders' rows in the optimizer stay as they are."""
        for module in self.text_encoders.values():
            for parameter in module.parameters():
                parameter.requires_grad_(False)
                parameter.grad = None

    @contextmanager
    def published_weights(self) -> Iterator[None]:
        """What is previewed and published stands in the model: the averages, if any."""
        with self.ema.swapped_in() if self.ema is not None else nullcontext():
            yield

    def state_dict(self, step: int) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {"step": step, "optimizer": self.optimizer.state_dict(),
                "ema": self.ema.state_dict() if self.ema else None,
                "scaler": scaler.state_dict() if scaler is not None else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None and state["ema"] is not None:
            self.ema.load_state_dict(state["ema"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def trained_parameters(self) -> list[torch.nn.Parameter]:
        everything = (parameter for module in self.modules.values() for parameter in module.parameters())
        return [parameter for parameter in everything if parameter.requires_grad]

    def close(self) -> None:
        """Take Accelerate's wrappers off, so that the modules are as they were."""
        for part, module in self.modules.items():
            self.accelerator.unwrap_model(self.prepared[part], keep_fp32_wrapper=False)
            module.eval()
        self.accelerator.free_memory()

    def _base_lr(self, part: str) -> float:
        own = self.config.text_encoder_learning_rate if part.startswith("text_encoder") else None
        return self.config.learning_rate if own is None else own


def _checkpoint_gradients(module: Any) -> None:
    if hasattr(module, "enable_gradient_checkpointing"):
        module.enable_gradient_checkpointing()
    else:
        module.gradient_checkpointing_enable()
