"""Writing .safetensors and .ckpt files a piece at a time, whatever their size."""

from __future__ import annotations

import json
import math
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

import torch

from ..errors import UnsupportedFamily
from ..files import reserve
from .checkpoint_file import CHUNK_BYTES, DTYPE_NAMES, HEADER_AT_MOST, ITEM_BYTES
from .restricted_pickle import STORAGES

# Torch's own alignment: a file that is mapped into memory must have its numbers there.
ALIGNMENT = 64
# What the WebUI's safe unpickler lets through, 1.6 to 1.10.
STORAGE_NAMES = {dtype: name for name, dtype in STORAGES.items()
                 if name in ("FloatStorage", "HalfStorage", "BFloat16Storage", "DoubleStorage", "LongStorage",
                             "IntStorage", "ByteStorage")}
Wrote = Callable[[int], None]


@dataclass(frozen=True)
class Output:
    """One tensor to be written; `chunks` gives its bytes in order, as flat uint8 tensors."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[torch.Tensor]]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def output_of(name: str, tensor: torch.Tensor) -> Output:
    """A tensor in memory as something to be written."""
    def chunks() -> Iterable[torch.Tensor]:
        flat = tensor.detach().to("cpu").contiguous().reshape(-1)
        yield from flat.view(torch.uint8).split(CHUNK_BYTES) if flat.numel() else ()

    return Output(name, DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), chunks)


def write_safetensors(
    stream: IO[bytes], outputs: Sequence[Output], metadata: Mapping[str, str], wrote: Wrote = lambda count: None
) -> None:
    """Header in the given order; the data too, unless that would leave some tensor where it cannot be mapped."""
    placed, at = {}, 0
    for output in _in_mappable_order(outputs):
        placed[output.name] = (at, at + output.nbytes)
        at += output.nbytes
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    for output in outputs:
        header[output.name] = {"dtype": output.dtype, "shape": list(output.shape), "data_offsets": placed[output.name]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    if len(text) > HEADER_AT_MOST:
        raise ValueError(f"a header of {len(text)} bytes")
    reserve(stream, 8 + len(text) + at)
    stream.write(struct.pack("<Q", len(text)) + text)
    for output in _in_mappable_order(outputs):
        _copy(output, stream.write, wrote)


def _in_mappable_order(outputs: Sequence[Output]) -> list[Output]:
    at = 0
    for output in outputs:
        if at % ITEM_BYTES[output.dtype]:
            return sorted(outputs, key=lambda output: -ITEM_BYTES[output.dtype])
        at += output.nbytes
    return list(outputs)


def write_ckpt(
    stream: IO[bytes], outputs: Sequence[Output], numbers: Mapping[str, int], wrote: Wrote = lambda count: None
) -> None:
    """`{"state_dict": ..., **numbers}` as torch.save has it, in a form that every WebUI's safe unpickler takes.

    An uncompressed zip of data.pkl, data/N and version, nothing else. Raises UnsupportedFamily for a tensor of a kind
    that the safe unpickler forbids.
    """
    for output in outputs:
        if output.dtype not in STORAGE_NAMES:
            raise UnsupportedFamily("a .ckpt is to be written",
                                    f"WebUIs refuse one with {output.dtype} in it ({output.name})",
                                    "Save it as .safetensors.")
    reserve(stream, sum(output.nbytes for output in outputs))  # zip's own words come on top, so that all of it is used
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        _write_member(archive, "archive/data.pkl", _pickled(outputs, numbers))
        for number, output in enumerate(outputs):
            member = _member(archive, f"archive/data/{number}", output.nbytes)
            with archive.open(member, "w") as target:
                _copy(output, target.write, wrote)
        _write_member(archive, "archive/version", b"3\n")


def _copy(output: Output, write: Callable[[memoryview], object], wrote: Wrote) -> None:
    written = 0
    for chunk in output.chunks():
        write(memoryview(chunk.numpy()))
        written += chunk.numel()
        wrote(chunk.numel())
    if written != output.nbytes:
        raise ValueError(f"{output.name} gave {written} bytes instead of {output.nbytes}")


def _write_member(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    with archive.open(_member(archive, name, len(data)), "w") as target:
        target.write(data)


def _member(archive: zipfile.ZipFile, name: str, nbytes: int) -> zipfile.ZipInfo:
    """A member whose data will be aligned: its header is padded with an extra field, as torch.save does."""
    member = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    member.file_size = nbytes
    assert archive.fp is not None
    header = 30 + len(name) + (20 if nbytes * 1.05 > zipfile.ZIP64_LIMIT else 0)
    padding = -(archive.fp.tell() + header + 4) % ALIGNMENT
    member.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
    return member


def _pickled(outputs: Sequence[Output], numbers: Mapping[str, int]) -> bytes:
    """Pickle protocol 2 of the whole table, tensors as views into storages 0, 1, 2, ..."""
    tensors = b"".join(_text(output.name) + _tensor(number, output) for number, output in enumerate(outputs))
    rest = b"".join(_text(name) + _int(value) for name, value in numbers.items())
    return b"\x80\x02}(" + _text("state_dict") + b"}(" + tensors + b"u" + rest + b"u."


def _tensor(number: int, output: Output) -> bytes:
    numel = math.prod(output.shape)
    stride = [math.prod(output.shape[i + 1 :]) for i in range(len(output.shape))]
    storage = b"(" + _text("storage") + b"ctorch\n" + STORAGE_NAMES[output.dtype].encode() + b"\n"
    storage += _text(str(number)) + _text("cpu") + _int(numel) + b"tQ"
    view = storage + _int(0) + _ints(output.shape) + _ints(stride) + b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + view + b"tR"


def _text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def _int(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def _ints(values: Sequence[int]) -> bytes:
    return b"(" + b"".join(_int(value) for value in values) + b"t"
