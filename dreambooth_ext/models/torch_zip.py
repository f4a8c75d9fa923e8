"""The zip file that torch.save writes: which tensors it holds, and where their bytes are."""

from __future__ import annotations

import math
import struct
import zipfile
from typing import IO, Any

from ..errors import NotACheckpoint
from . import restricted_pickle
from .restricted_pickle import EIGHT_BITS, TensorView

PICKLE_AT_MOST = 64 * 2**20
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
               **dict.fromkeys(EIGHT_BITS.values(), 1)}
_LOCAL_HEADER = 30
_AGAIN = "Download or copy the file again."

Found = tuple[str, tuple[int, ...], int, int, "tuple[int, ...] | None"]  # dtype, shape, start, bytes, strides


def read_torch_zip(stream: IO[bytes], size: int, file: str) -> tuple[dict[str, Found], dict[str, float]]:
    """Tensors by name (dtype, shape, first byte, bytes, strides unless contiguous), and plain numbers by name.

    Raises NotACheckpoint, UnsafeCheckpoint.
    """
    try:
        archive = zipfile.ZipFile(stream)
        members = {member.filename: member for member in archive.infolist()}
        pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise zipfile.BadZipFile("it is a zip archive, but none of PyTorch")
        prefix = pickles[0][: -len("data.pkl")]
        _check(members, size)
        if prefix + "byteorder" in members and archive.read(prefix + "byteorder") != b"little":
            raise zipfile.BadZipFile("it was written on a big-endian machine")
        if members[pickles[0]].file_size > PICKLE_AT_MOST:
            raise zipfile.BadZipFile("its table of tensors is too large")
        data = archive.read(pickles[0])
        starts = {name[len(prefix) + 5 :]: (_start(stream, member, size), member.file_size)
                  for name, member in members.items() if name.startswith(prefix + "data/")}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError, OSError, struct.error,
            OverflowError, KeyError, IndexError) as error:
        raise NotACheckpoint(f"{file} is to be read", str(error).strip("'\"") or "it is damaged", _AGAIN) from error
    return _tensors(restricted_pickle.load(data, file), starts, size, file)


def _check(members: dict[str, zipfile.ZipInfo], size: int) -> None:
    if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
        raise zipfile.BadZipFile("its parts are compressed, which PyTorch never does")
    if sum(member.file_size for member in members.values()) > size:
        raise zipfile.BadZipFile("its parts overlap")


def _start(stream: IO[bytes], member: zipfile.ZipInfo, size: int) -> int:
    """Where a member's bytes begin: its own header has a name and an extra field of lengths of their own."""
    stream.seek(member.header_offset)
    header = stream.read(_LOCAL_HEADER)
    if header[:4] != b"PK\x03\x04":
        raise zipfile.BadZipFile("it is damaged")
    name_bytes, extra_bytes = struct.unpack("<HH", header[26:30])
    start = member.header_offset + _LOCAL_HEADER + name_bytes + extra_bytes
    if start + member.file_size > size:
        raise zipfile.BadZipFile("it is cut off")
    return start


def _tensors(
    root: Any, starts: dict[str, tuple[int, int]], size: int, file: str
) -> tuple[dict[str, Found], dict[str, float]]:
    asked = f"{file} is to be read"
    if not isinstance(root, dict):
        raise NotACheckpoint(asked, "it holds no table of tensors", "Choose a model file.")
    nested = root.get("state_dict")
    state = nested if isinstance(nested, dict) else root
    numbers = {name: value for name, value in root.items() if isinstance(name, str) and type(value) in (int, float)}
    found = {name: _place(name, value, starts, asked) for name, value in state.items()
             if isinstance(name, str) and isinstance(value, TensorView)}
    if sum(place[3] for place in found.values()) > 2 * size:
        raise NotACheckpoint(asked, "its tensors are more than the file can hold", _AGAIN)
    return found, numbers


def _place(name: str, view: TensorView, starts: dict[str, tuple[int, int]], asked: str) -> Found:
    storage, item = view.storage, _ITEM_BYTES[view.storage.dtype]
    start, nbytes = starts.get(storage.key, (0, -1))
    if len(view.shape) > 16 or storage.numel * item > nbytes:
        raise NotACheckpoint(asked, f"the numbers of {name} are missing or cut off", _AGAIN)
    numel = math.prod(view.shape)
    reach = 1 + sum((length - 1) * step for length, step in zip(view.shape, view.stride, strict=True)) if numel else 0
    if view.offset + reach > storage.numel or numel > storage.numel:
        raise NotACheckpoint(asked, f"{name} reaches beyond its own numbers", _AGAIN)
    contiguous, step = True, 1
    for length, stride in zip(reversed(view.shape), reversed(view.stride), strict=True):
        contiguous &= length == 1 or stride == step
        step *= length
    contiguous |= numel == 0
    begin = start + view.offset * item
    if contiguous:
        return storage.dtype, view.shape, begin, numel * item, None
    return storage.dtype, view.shape, begin, reach * item, view.stride
