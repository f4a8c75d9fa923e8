"""Gradient checkpointing of any of the networks (Chen et al. 2016): activations are computed again instead of kept."""

from __future__ import annotations

from typing import Any

import torch


def checkpoint_gradients(module: Any, wanted: bool = True) -> list[Any]:
    """Switch it on or off; returns the hooks that this took, to be removed after training.

    Transformers before 5 checkpoints a layer by a function of torch's that gives no gradients to what is inside unless what goes
    in wants one. Below adapters nothing does: a LoRA's text encoders would learn nothing, without a word.
    """
    if hasattr(module, "enable_gradient_checkpointing"):
        (module.enable_gradient_checkpointing if wanted else module.disable_gradient_checkpointing)()
        return []
    (module.gradient_checkpointing_enable if wanted else module.gradient_checkpointing_disable)()
    return [module.get_input_embeddings().register_forward_hook(_want_gradient)] if wanted else []


def _want_gradient(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output.requires_grad_() if torch.is_grad_enabled() and not output.requires_grad else output
