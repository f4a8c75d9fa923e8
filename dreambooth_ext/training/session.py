"""What a training run holds while it runs: the model, what of it is trained, the optimizer, the averages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
        self.modules: dict[str, Any] = {"unet": model.unet}
        if config.train_text_encoder:
            self.modules["text_encoder"] = model.text_encoder
        for module in model.modules:
            module.requires_grad_(False)
        for module in self.modules.values():
            module.requires_grad_(True)
            module.train()
            if config.gradient_checkpointing:
                _checkpoint_gradients(module)
        model.unet.to(self.device)
        model.text_encoder.to(self.device)
        groups = [{"params": list(module.parameters()), "name": part, "lr": self._base_lr(part)}
                  for part, module in self.modules.items()]
        self.optimizer = accelerator.prepare(optimizers.build(groups, config))
        self.prepared = dict(zip(self.modules, accelerator.prepare(*self.modules.values()), strict=True)) \
            if len(self.modules) > 1 else {"unet": accelerator.prepare(model.unet)}
        trained = [parameter for module in self.modules.values() for parameter in module.parameters()]
        self.ema = Ema(trained, config.ema_decay) if config.ema_decay else None
        self._embeddings: dict[str, Conditioning] = {}

    def conditioning(self, prompts: Sequence[str]) -> Conditioning:
        """With gradients while the text encoder is trained; from the cache when it is frozen."""
        if "text_encoder" in self.modules:
            tokens = [ids.to(self.device) for ids in tokenize(self.model, prompts)]
            return encode_tokens(self._with_prepared_text_encoder(), tokens, self.config.clip_skip)
        for prompt in prompts:
            if prompt not in self._embeddings:
                self._embeddings[prompt] = encode_prompts(self.model, [prompt], self.config.clip_skip)
        return Conditioning.cat([self._embeddings[prompt] for prompt in prompts]).to(self.device)

    def cache_prompts(self, prompts: Sequence[str]) -> None:
        """Encode all prompts of a frozen text encoder now, and let it leave the device."""
        if "text_encoder" not in self.modules:
            self.conditioning(sorted(set(prompts)))
            self.model.text_encoder.to("cpu")

    def set_learning_rates(self, step: int) -> dict[str, float]:
        """Set and return each part's rate for optimizer step `step` (from 0)."""
        config = self.config
        factor = lr_factor(config.lr_scheduler, step, config.steps or 1, config.lr_warmup_steps, config.lr_num_cycles)
        rates = {}
        for group in self.optimizer.param_groups:
            rates[group["name"]] = group["lr"] = self._base_lr(group["name"]) * factor
        return rates

    def stop_text_encoder(self) -> None:
        """From now on only the UNet is trained; its rows in the optimizer stay as they are."""
        for parameter in self.modules["text_encoder"].parameters():
            parameter.requires_grad_(False)
            parameter.grad = None

    @contextmanager
    def published_weights(self) -> Iterator[None]:
        """What is previewed and published stands in the model: the averages, if any."""
        with ExitStack() as stack:
            if self.ema is not None:
                stack.enter_context(self.ema.swapped_in())
            yield

    def state_dict(self, step: int) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {"step": step, "optimizer": self.optimizer.state_dict(), "ema": self.ema.state_dict() if self.ema else None,
                "scaler": scaler.state_dict() if scaler is not None else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None and state["ema"] is not None:
            self.ema.load_state_dict(state["ema"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def trained_parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for module in self.modules.values() for parameter in module.parameters() if parameter.requires_grad]

    def close(self) -> None:
        """Take Accelerate's wrappers off, so that the modules are as they were."""
        for part, module in self.modules.items():
            self.accelerator.unwrap_model(self.prepared[part], keep_fp32_wrapper=False)
            module.eval()
        self.accelerator.free_memory()

    def _with_prepared_text_encoder(self) -> StableDiffusion:
        from dataclasses import replace

        return replace(self.model, text_encoders=(self.prepared["text_encoder"], *self.model.text_encoders[1:]))

    def _base_lr(self, part: str) -> float:
        own = self.config.text_encoder_learning_rate if part == "text_encoder" else None
        return self.config.learning_rate if own is None else own


def _checkpoint_gradients(module: Any) -> None:
    if hasattr(module, "enable_gradient_checkpointing"):
        module.enable_gradient_checkpointing()
    else:
        module.gradient_checkpointing_enable()
