"""Reading the pickle of a .ckpt without executing anything.

This interprets the opcodes itself. What a pickle can ask for is a table of our own functions, which make tensors'
descriptions, containers and numbers; there is no way from here to an import or a call of anything else.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import NotACheckpoint, UnsafeCheckpoint

STORAGES = {
    "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16", "DoubleStorage": "F64",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
    "BoolStorage": "BOOL", "UntypedStorage": "U8",
}
EIGHT_BITS = {  # torch's dtypes that have no storage of their own
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
}


@dataclass(frozen=True)
class Storage:
    """A block of numbers in the zip's entry data/KEY."""

    dtype: str  # as safetensors names it
    key: str
    numel: int


@dataclass(frozen=True)
class TensorView:
    """What `torch._utils._rebuild_tensor_v2` was asked for: a view into a storage, in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Symbol:
    """A global that the pickle names. `make` is our own stand-in, or None where it may be named but not called."""

    name: str
    make: Callable[..., Any] | None = None


class Broken(Exception):
    """The pickle contradicts itself; `load` turns this into NotACheckpoint."""


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> TensorView:
    numbers = (offset, *shape, *stride)
    if not isinstance(storage, Storage) or len(shape) != len(stride):
        raise Broken("a tensor without storage")
    if not all(type(number) is int and 0 <= number < 2**62 for number in numbers):
        raise Broken("a tensor of impossible shape")
    return TensorView(storage, offset, tuple(shape), tuple(stride))


def _eight_bit_tensor(storage: Any, offset: Any, shape: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any) -> TensorView:
    """What is quantised is described like the rest, so that it can be told what it is."""
    name = dtype.name.rpartition(".")[2] if isinstance(dtype, Symbol) else ""
    if name not in EIGHT_BITS or not isinstance(storage, Storage):
        raise Broken("a tensor of unknown kind")
    return _tensor(Storage(EIGHT_BITS[name], storage.key, storage.numel), offset, shape, stride)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _mapping(pairs: Any = ()) -> dict[Any, Any]:
    return {_key(key): value for key, value in pairs}


def _nothing(*_: Any) -> None:
    return None


def _encoded(text: Any, *_: Any) -> bytes:
    return text.encode("latin-1")


def _size(numbers: Any = ()) -> tuple[Any, ...]:
    return tuple(numbers)


_Make = Callable[..., Any]
_NAMES: tuple[tuple[str, str, _Make | None], ...] = (
    ("collections", "OrderedDict", _mapping),
    ("torch._utils", "_rebuild_tensor_v2", _tensor),
    ("torch._utils", "_rebuild_tensor", _tensor),
    ("torch._utils", "_rebuild_tensor_v3", _eight_bit_tensor),
    ("torch._utils", "_rebuild_parameter", _parameter),
    ("torch", "Size", _size),
    ("_codecs", "encode", _encoded),
    # Numbers of numpy, as the first official files have them beside the weights: dropped.
    ("numpy.core.multiarray", "scalar", _nothing),
    ("numpy._core.multiarray", "scalar", _nothing),
    ("numpy", "dtype", _nothing),
    # Named, never called, by Lightning's files (SD 1.4's own among them).
    ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint", None),
    ("pytorch_lightning.callbacks", "model_checkpoint", None),
    *(("torch", storage, None) for storage in STORAGES), ("torch.storage", "UntypedStorage", None),
    *(("torch", dtype, None) for dtype in ("float32", "float16", "bfloat16", "float64", "int64", "int32", "uint8", *EIGHT_BITS)),
)
ALLOWED = {(module, name): Symbol(f"{module}.{name}", make) for module, name, make in _NAMES}
_MARK = object()
_KEYS = (str, int, float, bytes, Symbol, type(None))


def load(data: bytes, file: str) -> Any:
    """What the pickle describes. Raises UnsafeCheckpoint, NotACheckpoint."""
    try:
        return _Machine(data, file).run()
    except (Broken, IndexError, KeyError, TypeError, ValueError, AttributeError, struct.error) as error:
        raise NotACheckpoint(f"{file} is to be read", f"its table of tensors is damaged ({error})",
                             "Download or copy the file again.") from error


class _Machine:
    """The pickle machine, protocols 2 to 5, as far as tensors, containers and numbers need it."""

    def __init__(self, data: bytes, file: str) -> None:
        self.data, self.file, self.at = data, file, 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.copied = 0

    def run(self) -> Any:
        while True:
            code = self.take(1)[0]
            if code == 0x2E:  # STOP
                return self.stack.pop()
            if code in _CONSTANTS:
                self.stack.append(_CONSTANTS[code]())
            elif code in _OPERATIONS:
                _OPERATIONS[code](self)
            else:
                raise UnsafeCheckpoint(f"{self.file} is to be read",
                                       f"its pickle uses opcode {code:#04x}, which tensors do not need",
                                       "Get the model as .safetensors from a source that you trust.")

    def take(self, count: int) -> bytes:
        if count < 0 or self.at + count > len(self.data):
            raise Broken("cut off")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        end = self.data.index(b"\n", self.at)
        return self.take(end - self.at + 1)[:-1].decode("utf-8")

    def sized(self, form: str) -> bytes:
        return self.take(self.number(form))

    def marked(self) -> list[Any]:
        place = len(self.stack) - 1
        while self.stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise Broken("a mark is missing")
        items = self.stack[place + 1 :]
        del self.stack[place:]
        return items

    def last(self, count: int) -> list[Any]:
        items = [self.stack.pop() for _ in range(count)][::-1]
        if any(item is _MARK for item in items):
            raise Broken("a mark in the wrong place")
        return items

    def top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise Broken(f"no {kind.__name__} where one is needed")
        return self.stack[-1]

    def set_items(self, items: list[Any]) -> None:
        target = self.top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def symbol(self, module: Any, name: Any) -> None:
        found = ALLOWED.get((module, name))
        if found is None:
            raise UnsafeCheckpoint(f"{self.file} is to be read",
                                   f"it asks for {module}.{name}, which is no tensor, container or number",
                                   "Such a file can run programs when it is loaded. "
                                   "Get the model as .safetensors from a source that you trust.")
        self.stack.append(found)

    def reduce(self) -> None:
        called, arguments = self.last(2)
        if not isinstance(called, Symbol) or called.make is None:
            raise UnsafeCheckpoint(f"{self.file} is to be read", f"it calls {getattr(called, 'name', 'an object')}",
                                   "Get the model as .safetensors from a source that you trust.")
        if not isinstance(arguments, tuple):
            raise Broken("arguments that are no tuple")
        # A pickle of a few bytes could have one long list copied again and again.
        self.copied += sum(len(item) for item in arguments if isinstance(item, (list, tuple, str, bytes)))
        if self.copied > 16 * len(self.data):
            raise Broken("the same data over and over")
        self.stack.append(called.make(*arguments))

    def persistent(self) -> None:
        given = self.last(1)[0]
        kind, storage, key, _, numel = given[:5]
        name = storage.name.rpartition(".")[2] if isinstance(storage, Symbol) else ""
        if kind != "storage" or name not in STORAGES or not isinstance(key, str) or type(numel) is not int or numel < 0:
            raise Broken("a storage of unknown kind")
        self.stack.append(Storage(STORAGES[name], key, numel))


def _key(key: Any) -> Any:
    # Nested tuples could be hashed to any depth.
    if not isinstance(key, _KEYS):
        raise Broken("a key that is neither text nor number")
    return key


def _get(machine: _Machine, form: str) -> None:
    machine.stack.append(machine.memo[machine.number(form)])


def _put(machine: _Machine, form: str) -> None:
    machine.memo[machine.number(form)] = machine.stack[-1]


def _push_text(machine: _Machine, form: str) -> None:
    machine.stack.append(machine.sized(form).decode("utf-8", "surrogatepass"))


def _build(machine: _Machine) -> None:
    machine.last(1)  # the attributes of an OrderedDict (`_metadata`): not needed


def _append(machine: _Machine, items: list[Any]) -> None:
    machine.top(list).extend(items)


def _long(machine: _Machine) -> None:
    machine.stack.append(int.from_bytes(machine.sized("<B"), "little", signed=True))


_CONSTANTS: dict[int, Callable[[], Any]] = {
    ord("}"): dict, ord("]"): list, ord(")"): tuple, ord("N"): lambda: None, 0x88: lambda: True, 0x89: lambda: False,
    ord("("): lambda: _MARK, 0x8F: list,  # EMPTY_SET: nothing asks what is in it
}
_OPERATIONS: dict[int, Callable[[_Machine], Any]] = {
    0x80: lambda m: m.take(1),  # PROTO
    0x95: lambda m: m.take(8),  # FRAME
    ord("J"): lambda m: m.stack.append(m.number("<i")),
    ord("K"): lambda m: m.stack.append(m.number("<B")),
    ord("M"): lambda m: m.stack.append(m.number("<H")),
    ord("G"): lambda m: m.stack.append(m.number(">d")),
    0x8A: _long,
    ord("X"): lambda m: _push_text(m, "<I"),
    0x8C: lambda m: _push_text(m, "<B"),
    0x8D: lambda m: _push_text(m, "<Q"),
    ord("U"): lambda m: m.stack.append(m.sized("<B").decode("latin-1")),
    ord("T"): lambda m: m.stack.append(m.sized("<i").decode("latin-1")),
    ord("C"): lambda m: m.stack.append(m.sized("<B")),
    ord("B"): lambda m: m.stack.append(m.sized("<I")),
    0x8E: lambda m: m.stack.append(m.sized("<Q")),
    ord("q"): lambda m: _put(m, "<B"),
    ord("r"): lambda m: _put(m, "<I"),
    0x94: lambda m: m.memo.__setitem__(len(m.memo), m.stack[-1]),
    ord("h"): lambda m: _get(m, "<B"),
    ord("j"): lambda m: _get(m, "<I"),
    ord("c"): lambda m: m.symbol(m.line(), m.line()),
    0x93: lambda m: m.symbol(*m.last(2)),
    ord("Q"): _Machine.persistent,
    ord("R"): _Machine.reduce,
    0x81: _Machine.reduce,  # NEWOBJ
    ord("b"): _build,
    ord("t"): lambda m: m.stack.append(tuple(m.marked())),
    0x85: lambda m: m.stack.append(tuple(m.last(1))),
    0x86: lambda m: m.stack.append(tuple(m.last(2))),
    0x87: lambda m: m.stack.append(tuple(m.last(3))),
    ord("a"): lambda m: _append(m, m.last(1)),
    ord("e"): lambda m: _append(m, m.marked()),
    0x90: lambda m: _append(m, m.marked()),  # ADDITEMS
    ord("s"): lambda m: m.set_items(m.last(2)),
    ord("u"): lambda m: m.set_items(m.marked()),
    ord("0"): lambda m: m.last(1),
}
