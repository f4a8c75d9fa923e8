"""Reading the pickle of a .ckpt: tensors, containers and numbers. Nothing that a pickle names is imported or called."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

import torch

from ..errors import NotACheckpoint, UnsafeCheckpoint

LARGEST_PICKLE_BYTES = 64 * 2**20
STORAGES = {
    "FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}
# Left in old files by their trainers. They are put aside unread: what stands for them has no behaviour.
IGNORED = {("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"), ("numpy.core.multiarray", "scalar"),
           ("numpy._core.multiarray", "scalar"), ("numpy", "dtype"), ("_codecs", "encode"), ("torch", "Size")}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor's place in the zip file: entry data/`key`, offset and strides in elements."""

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


class _Ignored:
    """What stands for an object that we neither need nor trust."""

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> StoredTensor:
    dtype, key = storage
    sizes, steps = tuple(shape), tuple(stride)
    if len(sizes) != len(steps) or not all(type(n) is int and n >= 0 for n in (*sizes, *steps, offset)):
        raise pickle.UnpicklingError("a tensor has an impossible shape")
    return StoredTensor(str(key), dtype, sizes, steps, offset)


def _rebuild_parameter(tensor: Any, *rest: Any) -> Any:
    return tensor


# The unpickler in pure Python: its memo is a dictionary, where the one in C takes gigabytes at a damaged file's word.
class _Unpickler(pickle._Unpickler):  # type: ignore[name-defined]
    def find_class(self, module: str, name: str) -> Any:
        if module == "collections" and name == "OrderedDict":
            return OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
            return _rebuild_tensor if name == "_rebuild_tensor_v2" else _rebuild_parameter
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) in IGNORED:
            return _Ignored
        raise _Refused(f"{module}.{name}")

    def persistent_load(self, identity: Any) -> Any:
        kind, dtype, key = identity[0], identity[1], identity[2]
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError("an unknown kind of storage")
        return dtype, key


class _Refused(Exception):
    pass


def load_pickle(stream: IO[bytes], size_bytes: int, name: str) -> tuple[dict[str, StoredTensor], dict[str, Any]]:
    """(tensors by name, the plain values beside them) of a checkpoint's data.pkl.

    Raises UnsafeCheckpoint if it names anything else, NotACheckpoint if it is damaged or holds no tensors.
    """
    if size_bytes > LARGEST_PICKLE_BYTES:
        raise NotACheckpoint(f"{name} is to be read", "its index is larger than any model's", "Choose another file.")
    try:
        value = _Unpickler(stream).load()
    except _Refused as error:
        raise UnsafeCheckpoint(f"{name} is to be read", f"it asks for {error} to be run",
                               "Do not use this file, or convert it where you trust it to .safetensors.") from error
    except Exception as error:  # noqa: BLE001  a damaged pickle can raise anything; it is told, not swallowed
        raise NotACheckpoint(f"{name} is to be read", f"its index is damaged ({type(error).__name__}: {error})",
                             "Download it again.") from error
    state = value.get("state_dict", value) if isinstance(value, Mapping) else {}
    tensors = {key: tensor for key, tensor in state.items() if isinstance(tensor, StoredTensor)} if isinstance(state, Mapping) else {}
    if not tensors or not all(isinstance(key, str) for key in tensors):
        raise NotACheckpoint(f"{name} is to be read", "it holds no named tensors", "Choose a Stable Diffusion checkpoint.")
    plain = {key: entry for key, entry in value.items() if isinstance(entry, (int, float, str))}
    return tensors, plain
