"""What a training run holds while it runs: the model, what of it is trained, the optimizer, the averages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from ..config import TrainConfig
from ..errors import Diverged
from ..gpu import release
from ..models.diffusers_folder import save_diffusers
from ..models.networks import in_dtype, tensors_of
from ..models.stable_diffusion import StableDiffusion
from ..ram import trim_heap
from ..words import half_of
from . import fast_layers, upcast
from . import optimizer as optimizers
from .checkpoint import Kept, Weights, bytes_of
from .conditioning import Prompts, freeze_unread
from .ema import Ema
from .figures import Figures
from .gradient_checkpointing import checkpoint_gradients
from .half_copies import HalfCopies
from .lora import FILE, Lora
from .memory import DTYPES, Plan
from .optimizers.chunked import flat, write_norm
from .optimizers.fused import FusedBackward
from .schedule import lr_factor
from .sharding import Sharding, clipped


class Session:
    """The parts of a run on their device. `modules` are the networks that are trained, by part; `computing` are those that
    passes go through, which may be copies of them; `prepared` are these as Accelerate wraps them."""

    def __init__(self, config: TrainConfig, plan: Plan, model: StableDiffusion, accelerator: Any) -> None:
        self.config, self.plan, self.model, self.accelerator = config, plan, model, accelerator
        self.device = accelerator.device
        self.modules: dict[str, Any] = model.trained_parts(config.train_text_encoder)
        self.computing = self.modules
        model.requires_grad_(False)
        self.lora: Lora | None = None
        self.sharding: Sharding | None = None
        self._halves: HalfCopies | None = None
        self._widened: list[Any] = []
        self._hooks: list[Any] = []
        self._wishes: Figures | None = None  # of all processes, on their way
        self._skipped = 0  # updates that fp16's scaler left out
        self.optimizer = self._set_up_networks()
        self._copied: Any = self.optimizer if plan.narrow_gradients else None  # which reads and writes the copies itself
        if not plan.fused_backward:
            self.optimizer = accelerator.prepare(self.optimizer)
        faster = plan.kernels and plan.channels_last and plan.on_gpu and plan.speed_up != "compile"  # which has its own kernels
        self._faster = fast_layers.install(self.computing["unet"]) if faster else []
        self.prepared = {part: self._prepared(part, module) for part, module in self.computing.items()}
        if self.sharding is not None:  # whoever renders with it has to call what gathers the weights
            model = self.model = model.with_parts(self.prepared)
        encoders = {part: (self.computing[part], prepared) for part, prepared in self.prepared.items() if part != "unet"}
        self.prompts = Prompts(model, encoders, config.clip_skip, self.device)
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
            if plan.weights != "fp32":
                in_dtype(module, DTYPES[plan.weights])
            if not plan.sharded:  # else each block is moved as it is split
                module.to(self.device, memory_format=torch.channels_last if plan.channels_last else torch.preserve_format)
            if plan.gradient_checkpointing:
                self._hooks += checkpoint_gradients(module)
        if plan.half_copies:
            self._halves = HalfCopies(self.modules, at_end=self.accelerator.num_processes > 1, keep=plan.narrow_gradients)
            self.computing = self._halves.modules
        if plan.computes_in_bf16 and self.device.type == "cpu":
            self._widened = upcast.install(self.computing.values())
        if not whole:
            self.lora = Lora(self.modules, config.lora_rank, config.lora_alpha, config.lora_conv_rank, config.seed)
            freeze_unread(self.model, config.clip_skip)
            if plan.channels_last:  # adapters too: torch 2.1's fused AdamW refuses gradients of another layout
                for module in self.modules.values():
                    module.to(memory_format=torch.channels_last)
        if plan.sharded:
            self.sharding = Sharding(self.modules, self.device)
        return early or self._build_optimizer()

    def _prepared(self, part: str, module: Any) -> Any:
        """As Accelerate wraps it; of a split network, precision is all that is left to be added."""
        if self.sharding is None:
            return self.accelerator.prepare(module)
        return self.accelerator.prepare_model(self.sharding.wrapped[part], device_placement=False, evaluation_mode=True)

    def _build_optimizer(self) -> torch.optim.Optimizer:
        groups = [{"params": [parameter for parameter in module.parameters() if parameter.requires_grad],
                   "name": part, "lr": self._base_lr(part)} for part, module in self.modules.items()]
        return optimizers.build(groups, self.config, self.plan, self._halves.of_weights if self._halves is not None else None)

    @property
    def input_dtype(self) -> torch.dtype:
        """What the UNet is fed."""
        return torch.bfloat16 if self.plan.computes_in_bf16 and not self._widened else torch.float32

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
        """Several processes average their gradients only in the `last` backward pass before an update.

        Split networks do so in each: to keep gradients for later, each process would have to keep them whole.
        """
        with ExitStack() as stack:
            if not last and self.sharding is None:
                for module in self.prepared.values():
                    stack.enter_context(self.accelerator.no_sync(module))
            yield

    def collect_gradients(self) -> None:
        """After a pass: its gradients are those of what is trained."""
        if self._halves is not None:
            self._halves.collect()

    def forget_gradients(self) -> None:
        """All that a pass has left, whole or cut short."""
        for module in (*self.modules.values(), *self.computing.values()):
            for parameter in module.parameters():
                parameter.grad = None
        if self._halves is not None:
            self._halves.forget()

    def gradient_norm(self) -> torch.Tensor:
        """Clip what was gathered by its global norm; returns the norm before that (0 if nothing is to be clipped)."""
        if self._fused is not None:
            return self._fused.finish()  # done already, by the norm foreseen
        if not self.config.max_grad_norm:
            return torch.zeros((), device=self.device)
        if self._copied is not None:
            return self._copied.clip(self.config.max_grad_norm)  # type: ignore[no-any-return]
        if self.sharding is not None:
            gradients = [parameter.grad for parameter in self.trained_parameters() if parameter.grad is not None]
            return clipped(gradients, self.config.max_grad_norm, self.accelerator.reduce, self.device)
        norm = self.accelerator.clip_grad_norm_(self.trained_parameters(), self.config.max_grad_norm)
        return torch.as_tensor(norm, device=self.device)

    def update(self, last: bool = False) -> None:
        """One optimizer step; `last` is the run's."""
        if self._fused is None:
            scaler = self.accelerator.scaler
            before = 0.0 if scaler is None else scaler.get_scale()
            self.optimizer.step()
            # Accelerate counts calls that were left out; a fused optimizer is called, and leaves the weights as they are.
            self._skipped += scaler is not None and scaler.get_scale() < before
            self.optimizer.zero_grad(set_to_none=True)
        if self._halves is not None and self._copied is None:
            self._halves.refresh()
        if self.ema is not None:
            self.ema.update(last)

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
        parameters = list(self.trained_parameters())
        norms = torch.zeros(len(parameters), device=self.device)
        for parameter, norm in zip(parameters, norms.unbind(), strict=True):
            write_norm(flat(parameter), norm)
        if self.sharding is not None:  # all stop, if one has to
            norms = self.accelerator.reduce(norms)
        trim_heap()  # before a snapshot or a preview needs room
        if not bool(torch.isfinite(norms).all()):
            raise diverged(self.config, f"weights became NaN or infinite before step {step}", "The snapshots made before are good.")

    def stop_text_encoders(self, prompts: list[str], sizes: list[tuple[int, int]]) -> None:
        """From now on only the UNet is trained; their rows in the optimizer stay as they are."""
        for part in self.modules:
            if part != "unet":
                for parameter in (*self.modules[part].parameters(), *self.computing[part].parameters()):
                    parameter.grad = None
        self.prompts.freeze(prompts, sizes)

    def published_weights(self) -> AbstractContextManager[None]:
        """In the block what is previewed and published stands in the model: the averages, if any."""
        return nullcontext() if self.ema is None else self.ema.swapped_in()

    def save_model(self, folder: Path) -> None:
        """What would be published, as a folder of diffusers' format; for a LoRA its file alone."""
        from safetensors.torch import save_file

        if self.lora is not None:
            save_file(self.lora.state_dict(), folder / FILE, metadata={"format": "pt"})
            return
        with self.published_weights():
            save_diffusers(self.model, folder)

    def saving(self) -> Callable[[Path], None]:
        """What writes the finished model. Split networks are joined for it: all processes call this."""
        return self.save_model if self.sharding is None else self._kept_of_split(self.sharding, 0).save_model

    def kept(self, step: int) -> Kept:
        """What a snapshot is to hold. Split networks are joined for it: all processes call this."""
        if self.sharding is None:
            return self._kept(self.trained_weights(), self.state_dict(step), self.save_model)
        return self._kept_of_split(self.sharding, step)

    def _kept_of_split(self, sharding: Sharding, step: int) -> Kept:
        weights, trained, state = sharding.joined_weights(), self.trained_parameters(), self.state_dict(step)
        state["optimizer"] = sharding.joined_optimizer_state(
            state["optimizer"], self._optimized(), flat=self.plan.optimizer != "adamw")
        averages: list[torch.Tensor] = []
        if self.ema is not None:
            averages = state["ema"]["shadows"] = sharding.joined_each(trained, self.ema.shadows)

        def save_model(folder: Path) -> None:
            try:
                save_diffusers(sharding.whole_model(self.model, weights, averages, trained), folder)
            finally:
                sharding.forget_whole()

        return self._kept(weights, state, save_model)

    def _kept(self, weights: Weights, state: dict[str, Any], save_model: Callable[[Path], None]) -> Kept:
        """What is published are the trained tensors themselves, unless it is their averages or a LoRA's file."""
        frozen = () if self.lora is not None else (module for part, module in self.model.parts.items() if part not in self.modules)
        model_bytes = bytes_of(weights) + sum(bytes_of(tensors_of(module)) for module in frozen)
        return Kept(weights, state, save_model, model_bytes, in_folder=self.ema is None and self.lora is None)

    def trained_weights(self) -> dict[str, dict[str, torch.Tensor]]:
        """The trained tensors by file and name; names do not depend on the installed libraries."""
        if self.lora is not None:
            return {"lora": self.lora.state_dict()}
        return {part: tensors_of(module) for part, module in self.modules.items()}

    @torch.no_grad()
    def load_trained_weights(self, weights: dict[str, dict[str, torch.Tensor]]) -> None:
        if self.lora is not None:
            self.lora.load_state_dict(weights["lora"])
        elif self.sharding is not None:
            self.sharding.load_weights(weights)
        else:
            for part, module in self.modules.items():
                for name, tensor in tensors_of(module).items():
                    tensor.copy_(weights[part][name])
        if self._halves is not None:
            self._halves.refresh()

    def state_dict(self, step: int) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        layout = None if self.plan.sharded else self.plan.channels_last  # joined state has the weights' shapes
        return {"step": step, "profile": self.plan.name, "optimizer_name": self.plan.optimizer, "eight_bit": self.plan.eight_bit,
                "channels_last": layout, "processes": self.accelerator.num_processes, "skipped": self._skipped,
                "learning_rate": self.config.learning_rate, "optimizer": self.optimizer.state_dict(),
                "ema": self.ema.state_dict() if self.ema else None,
                "clipping": self._fused.state_dict() if self._fused is not None else None,
                "scaler": scaler.state_dict() if scaler is not None else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.sharding is not None:
            state = self._own_pieces(self.sharding, state)
        optimizers.load(self.optimizer, state["optimizer"])
        self._skipped = state["skipped"]
        if self._fused is not None and state.get("clipping"):  # earlier versions clipped otherwise
            self._fused.load_state_dict(state["clipping"])
        if self.ema is not None and state["ema"] is not None:
            self.ema.load_state_dict(state["ema"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def _own_pieces(self, sharding: Sharding, state: dict[str, Any]) -> dict[str, Any]:
        """Of the state of whole networks, this process's part."""
        state = {**state, "optimizer": sharding.own_optimizer_state(state["optimizer"], self._optimized())}
        if self.ema is not None and state["ema"] is not None:
            wholes = zip(self.trained_parameters(), state["ema"]["shadows"], strict=True)
            state["ema"] = {**state["ema"], "shadows": [sharding.piece(parameter, whole) for parameter, whole in wholes]}
        return state

    def _optimized(self) -> list[torch.nn.Parameter]:
        """As the optimizer counts them."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def trained_parameters(self) -> list[torch.nn.Parameter]:
        return _trained_in(self.modules)

    def parameters_with_gradients(self) -> list[torch.nn.Parameter]:
        """In which a pass leaves its gradients."""
        return _trained_in(self.modules if self._copied is None else self.computing)

    def close(self) -> None:
        """Take every hook and wrapper off, so that the networks are as they were."""
        if self._fused is not None:
            self._fused.remove()
        if self.lora is not None:
            self.lora.remove()
        for hook in self._hooks:
            hook.remove()
        upcast.remove(self._widened)
        fast_layers.remove(self._faster)
        for part, module in self.modules.items():
            if self.sharding is None:
                self.accelerator.unwrap_model(self.prepared[part], keep_fp32_wrapper=False)
            module.eval()
        self.accelerator.free_memory()

    def _base_lr(self, part: str) -> float:
        own = self.config.text_encoder_learning_rate if part != "unet" else None
        return self.config.learning_rate if own is None else own


def _trained_in(modules: Mapping[str, Any]) -> list[torch.nn.Parameter]:
    return [parameter for module in modules.values() for parameter in module.parameters() if parameter.requires_grad]


def diverged(config: TrainConfig, why: str, where: str, what_to_do: str = "go on") -> Diverged:
    """The error of a run whose numbers are numbers no more; `where` says from what it can go on."""
    narrow = ", or start it anew in bf16 or fp32 instead of fp16" if config.mixed_precision == "fp16" else ""
    return Diverged(f"training at learning rate {config.learning_rate:g}", why,
                    f"{where} The same settings would lead there again: {what_to_do} at a lower learning rate, such as "
                    f"{half_of(config.learning_rate)}{narrow}.")
