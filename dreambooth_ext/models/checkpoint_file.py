"""One view of .safetensors and .ckpt files: names, shapes and dtypes from the header, tensors one at a time.

Files are read with plain reads, never mapped: a file that shrinks meanwhile is an error, not a crash, and one that is
to be replaced is not held.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch

from ..errors import BadNumbers, NotACheckpoint, UnsupportedFamily
from .torch_zip import read_torch_zip

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}
DTYPE_OF = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}  # as our options name them
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
              "U64": 8, "U32": 4, "U16": 2, "C64": 8, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1}
HEADER_AT_MOST = 32 * 2**20
CHUNK_BYTES = 2**20  # what fits a processor's cache is read, judged and written fastest
_AGAIN = "Download or copy the file again."


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: where its bytes are. `strides` (in elements) only where they are not contiguous."""

    name: str
    dtype: str  # as safetensors names it: F32, F16, BF16, I64, ...
    shape: tuple[int, ...]
    start: int
    nbytes: int
    strides: tuple[int, ...] | None = None

    @property
    def is_float(self) -> bool:
        return self.dtype in ("F16", "BF16", "F32", "F64")


@dataclass
class CheckpointFile:
    """An open model file. `entries` keeps the file's order; `numbers` are plain numbers beside the tensors."""

    path: Path
    format: str  # "safetensors" or "ckpt"
    entries: Mapping[str, Entry]
    stream: IO[bytes]
    metadata: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self.entries.items()}

    @property
    def global_step(self) -> int:
        """How many steps its trainer says that it took; 0 where it says nothing, or what is no count."""
        number = self.numbers.get("global_step", 0)
        return int(number) if 0 <= number < 2**31 else 0

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor in memory of its own, contiguous, in its own dtype. Raises NotACheckpoint, UnsupportedFamily."""
        entry = self.entries[name]
        if entry.dtype not in DTYPES:
            raise UnsupportedFamily(f"{self.path.name} is to be used", f"{name} is stored as {entry.dtype}",
                                    "Use a file in fp32, fp16 or bf16.")
        raw = torch.empty(entry.nbytes, dtype=torch.uint8)
        self._fill(entry.start, memoryview(raw.numpy()))
        flat = raw.view(DTYPES[entry.dtype])
        if entry.strides is None:
            return flat.reshape(entry.shape)
        return flat.as_strided(entry.shape, entry.strides).contiguous()

    def finite_tensor(self, name: str) -> torch.Tensor:
        """`tensor`, proven to hold neither NaN nor Inf. Raises BadNumbers."""
        tensor = self.tensor(name)
        if not is_finite(tensor):
            raise BadNumbers(f"{self.path.name} is to be used", f"{name} holds NaN or Inf",
                             "The file is damaged, or its training diverged; use another.")
        return tensor

    def chunks(self, name: str) -> Iterator[torch.Tensor]:
        """The tensor's bytes in order, as flat uint8 tensors that are valid until the next one."""
        entry = self.entries[name]
        if entry.strides is not None:
            yield self.tensor(name).reshape(-1).view(torch.uint8)
            return
        buffer = torch.empty(min(CHUNK_BYTES, entry.nbytes), dtype=torch.uint8)
        for start in range(0, entry.nbytes, CHUNK_BYTES):
            part = buffer[: min(CHUNK_BYTES, entry.nbytes - start)]
            self._fill(entry.start + start, memoryview(part.numpy()))
            yield part

    def _fill(self, start: int, target: memoryview) -> None:
        self.stream.seek(start)
        done = 0
        while done < len(target):
            count = self.stream.readinto(target[done:])  # type: ignore[attr-defined]
            if not count:
                raise NotACheckpoint(f"{self.path.name} is to be read", "it ends too early", _AGAIN)
            done += count

    def close(self) -> None:
        self.stream.close()

    def __enter__(self) -> CheckpointFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def is_finite(tensor: torch.Tensor) -> bool:
    """True if there is neither NaN nor Inf; no temporary larger than a few MiB."""
    if not tensor.is_floating_point():
        return True
    # A sum is many times faster than isfinite, in the tensor's own dtype at most so; finite numbers may overflow it, so that it
    # proves only one thing.
    return all(
        bool(torch.isfinite(part.sum())) or bool(torch.isfinite(part).all())
        for part in tensor.reshape(-1).split(2**20)
    )


def open_checkpoint(path: Path) -> CheckpointFile:
    """Read a model file's header. Raises NotACheckpoint, UnsafeCheckpoint, UnsupportedFamily.

    What it is, is told by its content, not by its name.
    """
    asked = f"{path.name} is to be used"
    if os.path.isdir(path):
        raise NotACheckpoint(asked, "it is a folder", "Choose a .safetensors or .ckpt file.")
    try:
        stream = path.open("rb", buffering=0)
    except OSError as error:
        why = "there is no such file" if isinstance(error, FileNotFoundError) else str(error.strerror or error)
        raise NotACheckpoint(asked, why, "Check the path.") from error
    try:
        return _recognised(path, asked, stream)
    except BaseException:
        stream.close()
        raise


def _recognised(path: Path, asked: str, stream: IO[bytes]) -> CheckpointFile:
    size = path.stat().st_size
    head = stream.read(64)
    if head[8:9] != b"{":  # the bytes before are a safetensors file's length, and could be anything
        _refuse_by_magic(path, asked, head)
    if head.startswith(b"PK\x03\x04"):
        found, numbers = read_torch_zip(stream, size, path.name)
        entries = {name: Entry(name, *found[name]) for name in found}
        return CheckpointFile(path, "ckpt", entries, stream, {}, numbers)
    entries, metadata = _read_safetensors_header(stream, size, asked)
    return CheckpointFile(path, "safetensors", entries, stream, metadata)


def _refuse_by_magic(path: Path, asked: str, head: bytes) -> None:
    use = "Use the model's .safetensors or .ckpt file in fp32, fp16 or bf16."
    if head.startswith(b"GGUF"):
        raise UnsupportedFamily(asked, "it is a quantised model (GGUF)", use)
    if path.suffix.lower() == ".onnx":
        raise UnsupportedFamily(asked, "it is an ONNX model, which cannot be trained", use)
    if head.startswith(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."):
        raise NotACheckpoint(asked, "it is in PyTorch's format of before version 1.6",
                             "Load it in a trusted place and save it as .safetensors.")
    signs = {
        b"": "it is empty", b"<": "it is a web page, not a model",
        b"version https://git-lfs": "it is a Git LFS pointer",
        b"\x89HDF": "it is an HDF5 file", b"\x80": "it is a pickle, but no PyTorch file",
        b"\x89PNG": "it is a picture", b"\xff\xd8\xff": "it is a picture",
    }
    for sign, why in signs.items():
        if (sign and head.startswith(sign)) or (not sign and not head):
            raise NotACheckpoint(asked, why, "Choose a model file." if why == "it is a picture" else _AGAIN)


def _read_safetensors_header(stream: IO[bytes], size: int, asked: str) -> tuple[dict[str, Entry], dict[str, str]]:
    stream.seek(0)
    start = stream.read(9)
    length = struct.unpack("<Q", start[:8])[0] if len(start) == 9 else 0
    if start[8:] != b"{" or length < 2:
        raise NotACheckpoint(asked, "it is neither a .safetensors nor a .ckpt file", "Choose a model file.")
    if 8 + length > size or length > HEADER_AT_MOST:
        raise NotACheckpoint(asked, "it is cut off or damaged", _AGAIN)
    stream.seek(8)
    text = stream.read(length)
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_int=_short_int)
        metadata = header.pop("__metadata__", {})
        entries = {name: _entry(name, value, 8 + length) for name, value in header.items()}
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("metadata that is no table of texts")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise NotACheckpoint(asked, f"its header is damaged ({error})", _AGAIN) from error
    end = 8 + length
    for entry in sorted(entries.values(), key=lambda entry: (entry.start, entry.nbytes)):
        if entry.start != end:
            raise NotACheckpoint(asked, f"the data of {entry.name} is not where it should be", _AGAIN)
        end += entry.nbytes
    if end != size:
        raise NotACheckpoint(asked, f"it has {size} bytes, and its header promises {end}", _AGAIN)
    return entries, metadata


def _entry(name: str, value: Mapping[str, Any], base: int) -> Entry:
    begin, end = value["data_offsets"]
    shape = tuple(value["shape"])
    if not all(type(number) is int and 0 <= number < 2**62 for number in (begin, end, *shape)):
        raise ValueError(f"impossible numbers for {name}")
    dtype = value["dtype"]
    if not isinstance(dtype, str) or end < begin or len(shape) > 16:
        raise ValueError(f"impossible values for {name}")
    if dtype in ITEM_BYTES and math.prod(shape) * ITEM_BYTES[dtype] != end - begin:
        raise ValueError(f"{name} has another size than its shape")
    return Entry(name, dtype, shape, base + begin, end - begin)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name that comes twice")
    return made


def _short_int(digits: str) -> int:
    if len(digits) > 20:  # older Pythons would work on it for hours
        raise ValueError("a number too long")
    return int(digits)
