"""Whose attention kernels torch tries first, for measurements: on an H100's class cuDNN's may be faster than its own choice."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

# "torch" leaves the order to torch. What cannot serve a call is passed over for the next.
BACKENDS = {"torch": "", "cudnn": "CUDNN_ATTENTION", "flash": "FLASH_ATTENTION", "efficient": "EFFICIENT_ATTENTION"}


def attention_by(name: str) -> AbstractContextManager[None]:
    """In the block scaled_dot_product_attention tries these kernels first. Raises SystemExit where torch cannot order them."""
    if not BACKENDS[name]:
        return nullcontext()
    try:
        from torch.nn import attention

        order = [getattr(attention.SDPBackend, BACKENDS[name])]
        order += [backend for backend in (attention.SDPBackend.FLASH_ATTENTION, attention.SDPBackend.EFFICIENT_ATTENTION,
                                          attention.SDPBackend.MATH) if backend not in order]
        return attention.sdpa_kernel(order, set_priority=True)
    except (ImportError, AttributeError, TypeError) as error:
        raise SystemExit(f"--attention {name}: torch {torch.__version__} cannot order attention kernels ({error})") from error
