"""What a training run holds while it runs: the model, what of it is trained, the optimizer, the averages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from ..config import TrainConfig
from ..errors import Diverged
from ..models.load import StableDiffusion, save_diffusers
from ..models.networks import tensors_of
from ..ram import trim_heap
from . import optimizer as optimizers
from . import upcast
from .conditioning import Prompts, freeze_unread
from .ema import Ema
from .figures import Figures
from .lora import FILE, Lora
from .memory import Plan, release
from .optimizers.fused import FusedBackward
from .schedule import lr_factor

TEXT_ENCODER = "text_encoder"


class Session:
    """The parts of a run on their device. `modules` are the networks that are trained, by part."""

    def __init__(self, config: TrainConfig, plan: Plan, model: StableDiffusion, accelerator: Any) -> None:
        self.config, self.plan, self.model, self.accelerator = config, plan, model, accelerator
        self.device = accelerator.device
        self.modules: dict[str, Any] = {
            part: module for part, module in model.parts.items()
            if part == "unet" or (config.train_text_encoder and part.startswith(TEXT_ENCODER))}
        model.requires_grad_(False)
        self.lora: Lora | None = None
        self._widened: list[Any] = []
        self._wishes: Figures | None = None  # of all processes, on their way
        self._skipped = 0  # updates that fp16's scaler left out
        self.optimizer = self._set_up_networks()
        if not plan.fused_backward:
            self.optimizer = accelerator.prepare(self.optimizer)
        prepared = [accelerator.prepare(module) for module in self.modules.values()]
        self.prepared = dict(zip(self.modules, prepared, strict=True))
        self.prompts = Prompts(model, {part: module for part, module in self.prepared.items() if part != "unet"},
                               config.clip_skip, self.device)
        self._fused = FusedBackward(self.optimizer, config.max_grad_norm) if plan.fused_backward else None
        release()  # what the networks were before they were made ready
        averages_on = "cpu" if plan.averages_in_ram else None
        self.ema = Ema(self.trained_parameters(), config.ema_decay, averages_on) if config.ema_decay else None

    def _set_up_networks(self) -> torch.optim.Optimizer:
        """Dtype, device and adapters of the trained networks, and the optimizer of what is trained in them."""
        config, plan = self.config, self.plan
        whole = not config.lora_rank
        for module in self.modules.values():
            module.requires_grad_(whole)
            module.train()
        freeze_unread(self.model, config.clip_skip)
        early = self._build_optimizer() if plan.optimizer == "offloaded_adamw" else None  # from the fp32 weights
        for module in self.modules.values():
            if plan.weights == "bf16":
                module.to(torch.bfloat16)
            module.to(self.device, memory_format=torch.channels_last if plan.channels_last else torch.preserve_format)
            if plan.gradient_checkpointing:
                _checkpoint_gradients(module)
        if plan.weights == "bf16" and self.device.type == "cpu":
            self._widened = upcast.install(self.modules.values())
        if not whole:
            self.lora = Lora(self.modules, config.lora_rank, config.lora_alpha, config.lora_conv_rank, config.seed)
            freeze_unread(self.model, config.clip_skip)
        return early or self._build_optimizer()

    def _build_optimizer(self) -> torch.optim.Optimizer:
        groups = [{"params": [parameter for parameter in module.parameters() if parameter.requires_grad],
                   "name": part, "lr": self._base_lr(part)} for part, module in self.modules.items()]
        return optimizers.build(groups, self.config, self.plan)

    @property
    def input_dtype(self) -> torch.dtype:
        """What the UNet is fed."""
        return torch.bfloat16 if self.plan.weights == "bf16" and not self._widened else torch.float32

    def set_learning_rates(self, step: int) -> dict[str, float]:
        """Set and return each part's rate for optimizer step `step` (from 0)."""
        config = self.config
        factor = lr_factor(config.lr_scheduler, step, config.steps or 1, config.lr_warmup_steps, config.lr_num_cycles)
        rates = {}
        for group in self.optimizer.param_groups:
            rates[group["name"]] = group["lr"] = self._base_lr(group["name"]) * factor
        return rates

    @contextmanager
    def backward_pass(self, last: bool) -> Iterator[None]:
        """Several processes average their gradients only in the `last` backward pass before an update."""
        with ExitStack() as stack:
            if not last:
                for module in self.prepared.values():
                    stack.enter_context(self.accelerator.no_sync(module))
            yield

    def gradient_norm(self) -> torch.Tensor:
        """Clip what was gathered by its global norm; returns the norm before that (0 if nothing is to be clipped)."""
        if self._fused is not None:
            return self._fused.finish()  # done already, tensor by tensor
        if not self.config.max_grad_norm:
            return torch.zeros((), device=self.device)
        norm = self.accelerator.clip_grad_norm_(self.trained_parameters(), self.config.max_grad_norm)
        return torch.as_tensor(norm, device=self.device)

    def update(self) -> None:
        """One optimizer step."""
        if self._fused is None:
            self.optimizer.step()
            self._skipped += bool(getattr(self.optimizer, "step_was_skipped", False))
            self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update()

    def mean_over_processes(self, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Scalars, averaged over the processes of a distributed run."""
        if self.accelerator.num_processes == 1:
            return values
        stacked = torch.stack([torch.as_tensor(value, device=self.device).float() for value in values.values()])
        return dict(zip(values, self.accelerator.reduce(stacked, reduction="mean"), strict=True))

    def any_process(self, *wishes: bool) -> list[bool]:
        """Which wishes any of the processes has: what all must do at the same step.

        Several processes hear of those of the step before: by then they have arrived, and nobody waits for them.
        """
        if self.accelerator.num_processes == 1:
            return list(wishes)
        own = torch.tensor(wishes, dtype=torch.float32, pin_memory=self.device.type == "cuda")
        counts = self.accelerator.reduce(own.to(self.device, non_blocking=True), reduction="sum")
        arriving, self._wishes = self._wishes, Figures({str(place): count for place, count in enumerate(counts)})
        return [False] * len(wishes) if arriving is None else [bool(count) for count in arriving.read().values()]

    def scaler_figures(self) -> dict[str, float]:
        """For fp16: the loss's scale and how many updates were skipped because a gradient overflowed."""
        scaler = self.accelerator.scaler
        return {} if scaler is None else {"loss_scale": scaler.get_scale(), "skipped_updates": self._skipped}

    def require_finite(self, step: int) -> None:
        """Raise Diverged if a trained number is NaN or infinite."""
        sums = [parameter.detach().float().sum() for parameter in self.trained_parameters()]
        trim_heap()  # of the wide copies, before a snapshot or a preview needs room
        if not bool(torch.isfinite(torch.stack(sums)).all()):
            raise Diverged(f"training at learning rate {self.config.learning_rate:g}",
                           f"weights became NaN or infinite before step {step}",
                           "The snapshots made before are good. Train again with a lower learning rate.")

    def stop_text_encoders(self, prompts: list[str], sizes: list[tuple[int, int]]) -> None:
        """From now on only the UNet is trained; their rows in the optimizer stay as they are."""
        for part, module in self.modules.items():
            if part != "unet":
                for parameter in module.parameters():
                    parameter.grad = None
        self.prompts.freeze(prompts, sizes)

    @contextmanager
    def published_weights(self) -> Iterator[None]:
        """What is previewed and published stands in the model: the averages, if any."""
        with ExitStack() as stack:
            if self.ema is not None:
                stack.enter_context(self.ema.swapped_in())
            yield

    def save_model(self, folder: Path) -> None:
        """What would be published, as a folder of diffusers' format; for a LoRA its file alone."""
        from safetensors.torch import save_file

        if self.lora is not None:
            save_file(self.lora.state_dict(), folder / FILE, metadata={"format": "pt"})
            return
        with self.published_weights():
            save_diffusers(self.model, folder)

    def save_result(self, folder: Path) -> None:
        """The finished model as a folder of diffusers' format; a LoRA's own file lies beside the merged networks."""
        self.save_model(folder)
        if self.lora is not None:
            with self.lora.merged():
                save_diffusers(self.model, folder)

    def trained_weights(self) -> dict[str, dict[str, torch.Tensor]]:
        """The trained tensors by file and name; names do not depend on the installed libraries."""
        if self.lora is not None:
            return {"lora": self.lora.state_dict()}
        return {part: tensors_of(module) for part, module in self.modules.items()}

    @torch.no_grad()
    def load_trained_weights(self, weights: dict[str, dict[str, torch.Tensor]]) -> None:
        if self.lora is not None:
            self.lora.load_state_dict(weights["lora"])
            return
        for part, module in self.modules.items():
            own = tensors_of(module)
            for name, tensor in own.items():
                tensor.copy_(weights[part][name])

    def state_dict(self, step: int) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {"step": step, "profile": self.plan.name, "eight_bit": self.plan.eight_bit, "skipped": self._skipped,
                "optimizer": self.optimizer.state_dict(), "ema": self.ema.state_dict() if self.ema else None,
                "scaler": scaler.state_dict() if scaler is not None else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self._skipped = state["skipped"]
        if self.ema is not None and state["ema"] is not None:
            self.ema.load_state_dict(state["ema"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def trained_parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for module in self.modules.values() for parameter in module.parameters() if parameter.requires_grad]

    def close(self) -> None:
        """Take every hook and wrapper off, so that the networks are as they were."""
        if self._fused is not None:
            self._fused.remove()
        if self.lora is not None:
            self.lora.remove()
        upcast.remove(self._widened)
        for part, module in self.modules.items():
            self.accelerator.unwrap_model(self.prepared[part], keep_fp32_wrapper=False)
            module.eval()
        self.accelerator.free_memory()

    def _base_lr(self, part: str) -> float:
        own = self.config.text_encoder_learning_rate if part.startswith(TEXT_ENCODER) else None
        return self.config.learning_rate if own is None else own


def _checkpoint_gradients(module: Any) -> None:
    if hasattr(module, "enable_gradient_checkpointing"):
        module.enable_gradient_checkpointing()
    else:
        module.gradient_checkpointing_enable()
