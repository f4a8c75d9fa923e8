"""Writing tensors to .safetensors and .ckpt, one at a time.

The .ckpt is what a WebUI's safe unpickler from 1.6 on accepts: a dictionary of tensors and numbers, in a zip that holds
data.pkl, data/N and version, and nothing else; stored uncompressed and aligned, so that it can be mapped into memory.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

import torch

from .checkpoint_file import SAFETENSORS_NAMES, contiguous_stride

ALIGNMENT_BYTES = 64
LOCAL_HEADER_BYTES = 30
ZIP64_EXTRA_BYTES = 20  # what zipfile puts before our own extra field
_STORAGES = {torch.float32: torch.FloatStorage, torch.float16: torch.HalfStorage, torch.bfloat16: torch.BFloat16Storage,
             torch.float64: torch.DoubleStorage, torch.int64: torch.LongStorage, torch.int32: torch.IntStorage,
             torch.int16: torch.ShortStorage, torch.int8: torch.CharStorage, torch.uint8: torch.ByteStorage,
             torch.bool: torch.BoolStorage}


@dataclass(frozen=True)
class Entry:
    """A tensor to be written; `read` gives its bytes in C order when its turn comes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], bytes]

    @property
    def count(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def size_bytes(self) -> int:
        return self.count * self.dtype.itemsize


def write_safetensors(stream: IO[bytes], entries: Sequence[Entry], metadata: Mapping[str, str],
                      told: Callable[[int], None]) -> None:
    """Header, then all tensors in the order given. `told` hears how many are written."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    place = 0
    for entry in entries:
        header[entry.name] = {"dtype": SAFETENSORS_NAMES[entry.dtype], "shape": list(entry.shape),
                              "data_offsets": [place, place + entry.size_bytes]}
        place += entry.size_bytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    stream.write(struct.pack("<Q", len(text)) + text)
    for number, entry in enumerate(entries, start=1):
        stream.write(entry.read())
        told(number)


def write_ckpt(stream: IO[bytes], entries: Sequence[Entry], plain: Mapping[str, Any], told: Callable[[int], None]) -> None:
    """`{"state_dict": {name: tensor}, **plain}` as torch.load reads it."""
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "archive/data.pkl", _pickled(entries, plain))
        for number, entry in enumerate(entries, start=1):
            _add(archive, f"archive/data/{number - 1}", entry.read())
            told(number)
        _add(archive, "archive/version", b"3\n")


class _Storage:
    def __init__(self, key: str, dtype: torch.dtype, count: int) -> None:
        self.identity = ("storage", _STORAGES[dtype], key, "cpu", count)


class _Tensor:
    def __init__(self, key: str, entry: Entry) -> None:
        self.storage = _Storage(key, entry.dtype, entry.count)
        self.shape = entry.shape

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild = torch._utils._rebuild_tensor_v2
        return rebuild, (self.storage, 0, self.shape, contiguous_stride(self.shape), False, OrderedDict())


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        return value.identity if isinstance(value, _Storage) else None


def _pickled(entries: Sequence[Entry], plain: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    state = {entry.name: _Tensor(str(number), entry) for number, entry in enumerate(entries)}
    _Pickler(buffer, protocol=2).dump({"state_dict": state, **plain})
    return buffer.getvalue()


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    info = zipfile.ZipInfo(name, time.localtime()[:6])
    large = len(data) >= zipfile.ZIP64_LIMIT
    start = archive.fp.tell() + LOCAL_HEADER_BYTES + len(name) + (ZIP64_EXTRA_BYTES if large else 0)  # type: ignore[union-attr]
    padding = -(start + 4) % ALIGNMENT_BYTES
    info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
    with archive.open(info, "w", force_zip64=large) as target:
        target.write(data)
