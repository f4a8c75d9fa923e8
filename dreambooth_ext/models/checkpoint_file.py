"""A model file on disk: names, shapes and dtypes at once, values one tensor at a time. Nothing in it is ever executed."""

from __future__ import annotations

import json
import math
import mmap
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import NotACheckpoint
from .restricted_pickle import StoredTensor, load_pickle

SAFETENSORS_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}
SAFETENSORS_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
LONGEST_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor stands: `offset` and `size_bytes` in the file, strides in elements."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    size_bytes: int
    stride: tuple[int, ...]

    @property
    def contiguous(self) -> bool:
        return self.stride == contiguous_stride(self.shape)


class CheckpointFile:
    """Open a .safetensors or .ckpt file for reading; use as a context manager.

    Raises NotACheckpoint if it is neither or cut off, UnsafeCheckpoint if its pickle asks for code.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, Any] = {}
        try:
            self._stream = path.open("rb")
        except OSError as error:
            raise NotACheckpoint(f"{path.name} is to be read", str(error.strerror or error),
                                 "Choose a .safetensors or .ckpt file.") from error
        try:
            self._map = mmap.mmap(self._stream.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            self._stream.close()
            raise _unreadable(path, "the file is empty") from error
        try:
            is_zip = self._map[:4] == b"PK\x03\x04"
            self.format = "ckpt" if is_zip else "safetensors"
            self.tensors: dict[str, TensorInfo] = self._read_zip() if is_zip else self._read_safetensors()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> CheckpointFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._map.close()
        self._stream.close()

    def raw(self, name: str) -> bytes:
        """The tensor's bytes as they stand in the file, in C order."""
        info = self.tensors[name]
        if info.contiguous:
            return self._map[info.offset : info.offset + info.size_bytes]
        return self.tensor(name).contiguous().view(torch.uint8).numpy().tobytes()

    def tensor(self, name: str) -> torch.Tensor:
        """A copy of the tensor that outlives the file."""
        info = self.tensors[name]
        if math.prod(info.shape) == 0:
            return torch.empty(info.shape, dtype=info.dtype)
        # A bytearray so that torch gets memory it may write to.
        flat = torch.frombuffer(bytearray(self._map[info.offset : info.offset + info.size_bytes]), dtype=info.dtype)
        return flat.as_strided(info.shape, info.stride)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def _read_safetensors(self) -> dict[str, TensorInfo]:
        if len(self._map) < 8:
            raise _unreadable(self.path, "it is too short")
        (length,) = struct.unpack("<Q", self._map[:8])
        if length > min(LONGEST_HEADER_BYTES, len(self._map) - 8):
            raise _unreadable(self.path, "it is neither a .safetensors nor a .ckpt file, or it is cut off")
        try:
            header = json.loads(self._map[8 : 8 + length])
            self.metadata = header.pop("__metadata__", {})
            return {name: self._checked(name, entry, 8 + length) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise _unreadable(self.path, f"its header is damaged ({error})") from error

    def _checked(self, name: str, entry: dict[str, Any], start: int) -> TensorInfo:
        if entry["dtype"] not in SAFETENSORS_DTYPES:
            raise _unreadable(self.path, f"{name} is stored as {entry['dtype']}: quantised files cannot be trained")
        dtype, shape = SAFETENSORS_DTYPES[entry["dtype"]], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        if not all(type(size) is int and size >= 0 for size in (*shape, begin, end)):
            raise ValueError(f"{name} has an impossible shape or place")
        if end - begin != math.prod(shape) * dtype.itemsize or start + end > len(self._map):
            raise ValueError(f"{name} reaches beyond the end of the file")
        return TensorInfo(dtype, shape, start + begin, end - begin, contiguous_stride(shape))

    def _read_zip(self) -> dict[str, TensorInfo]:
        try:
            with zipfile.ZipFile(self._stream) as archive:
                entries = {info.filename: info for info in archive.infolist()}
                pickles = [name for name in entries if name.endswith("data.pkl")]
                if len(pickles) != 1:
                    raise _unreadable(self.path, "it is a zip file, but holds no PyTorch checkpoint")
                tensors, self.metadata = load_pickle(archive.open(pickles[0]), entries[pickles[0]].file_size, self.path.name)
        except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError) as error:
            raise _unreadable(self.path, f"it is damaged or cut off ({error})") from error
        root = pickles[0][: -len("data.pkl")]
        return {name: self._placed(name, stored, entries.get(f"{root}data/{stored.key}")) for name, stored in tensors.items()}

    def _placed(self, name: str, stored: StoredTensor, entry: zipfile.ZipInfo | None) -> TensorInfo:
        if entry is None or entry.compress_type != zipfile.ZIP_STORED:
            raise _unreadable(self.path, f"the values of {name} are missing or compressed")
        header = self._map[entry.header_offset : entry.header_offset + 30]
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise _unreadable(self.path, f"the values of {name} are damaged")
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        start = entry.header_offset + 30 + name_length + extra_length
        size = stored.dtype.itemsize
        last = sum((count - 1) * stride for count, stride in zip(stored.shape, stored.stride, strict=True))
        elements = 0 if math.prod(stored.shape) == 0 else last + 1
        begin = start + stored.offset * size
        if stored.offset * size + elements * size > entry.file_size or begin + elements * size > len(self._map):
            raise _unreadable(self.path, f"{name} reaches beyond the end of its values")
        return TensorInfo(stored.dtype, stored.shape, begin, elements * size, stored.stride)


def contiguous_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides, in elements, of a tensor in C order."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def _unreadable(path: Path, why: str) -> NotACheckpoint:
    return NotACheckpoint(f"{path.name} is to be read as a checkpoint", why,
                          "Choose a Stable Diffusion .safetensors or .ckpt file, or download it again.")
