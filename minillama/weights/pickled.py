"""PyTorch's `.pth` files, read without running a pickle.

Such a file is a zip archive: `data.pkl`, a pickle that describes the tensors, and one plain member for the bytes of
each storage. A pickle is a program that may call anything, so it is not handed to `pickle`: the few instructions that
a dict of tensors needs are interpreted here, the only calls understood are those that rebuild a tensor, and they make
a `StoredTensor`. Everything else is refused by name.
Source: the opcodes as documented in Python's `pickletools`; github.com/pytorch/pytorch, `torch/serialization.py`.
"""

from __future__ import annotations

import pickletools
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from minillama.errors import MinillamaError
from minillama.weights.reading import StoredTensor, plain

# Names a pickle of tensors refers to. A storage's name gives the type of its values; what is no float is kept as
# None, and refused only if such a tensor is asked for.
_STORAGES = {
    f"torch {kind}Storage": code
    for kind, code in {
        "Float": "F32",
        "Half": "F16",
        "BFloat16": "BF16",
        "Double": "F64",
        **dict.fromkeys(("Long", "Int", "Short", "Char", "Byte", "Bool")),
    }.items()
}
_REBUILD_TENSOR = "torch._utils _rebuild_tensor_v2"
_REBUILD_PARAMETER = "torch._utils _rebuild_parameter"
_ORDERED_DICT = "collections OrderedDict"
_KNOWN = {*_STORAGES, _REBUILD_TENSOR, _REBUILD_PARAMETER, _ORDERED_DICT}

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, …, length of the name, length of the extra field
_CONSTANTS: dict[str, Any] = {
    "NONE": None,
    "NEWTRUE": True,
    "NEWFALSE": False,
    "EMPTY_TUPLE": (),
}
_PUSH_ARGUMENT = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}


@dataclass(frozen=True)
class _Global:
    """A name in the pickle: what it stands for is never looked up."""

    name: str


@dataclass(frozen=True)
class _Storage:
    code: str | None
    key: str
    n_values: int


class _Mark:
    pass


_MARK = _Mark()


def read_tensors(path: Path) -> dict[str, StoredTensor]:
    """Name -> tensor of the dict in the `.pth` at `path`; tensors of integers are left out.

    Raises MinillamaError for what is no such file, and for a pickle that would call anything else: nothing is run.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_archive(path, archive)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, struct.error, RuntimeError) as error:
        raise MinillamaError(f"{path}: expected a PyTorch zip archive, found a broken one ({error})") from None


def _read_archive(path: Path, archive: zipfile.ZipFile) -> dict[str, StoredTensor]:
    members = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in members if name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise MinillamaError(f"{path}: expected one data.pkl in the archive, found {len(pickles)}")
    prefix = pickles[0].removesuffix("data.pkl")
    if f"{prefix}byteorder" in members and _content(path, members[f"{prefix}byteorder"]) != b"little":
        raise MinillamaError(f"{path}: expected little-endian tensors, found others")
    content = _interpret(path, _content(path, members[pickles[0]]))
    if not isinstance(content, dict):
        raise MinillamaError(f"{path}: expected a dict of tensors, found {type(content).__name__}")
    tensors = {}
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, tuple):
            raise MinillamaError(f"{path}: expected a dict of tensors, found {type(value).__name__} under {name!r}")
        if (tensor := _stored_tensor(path, members, prefix, name, *value)) is not None:
            tensors[name] = tensor
    return tensors


def _stored_tensor(
    path: Path,
    members: dict[str, zipfile.ZipInfo],
    prefix: str,
    name: str,
    storage: _Storage,
    start: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
) -> StoredTensor | None:
    """Where the values of one tensor lie, or None if they are no floats."""
    if storage.code is None:
        return None
    if strides != tuple(prod(shape[axis + 1 :]) for axis in range(len(shape))):
        raise MinillamaError(f"{path}: tensor {name}: expected contiguous values, found strides {strides}")
    member = members.get(f"{prefix}data/{storage.key}")
    if member is None:
        raise MinillamaError(f"{path}: tensor {name}: expected the archive to hold data/{storage.key}, found none")
    tensor = plain(path, 0, shape, storage.code)
    width = tensor.nbytes // prod(shape) if prod(shape) else 1
    needed = start * width + tensor.nbytes
    if needed > member.file_size:
        raise MinillamaError(f"{path}: tensor {name}: expected {needed} bytes of values, found {member.file_size}")
    return plain(path, _data_start(path, member) + start * width, shape, storage.code)


def _data_start(path: Path, member: zipfile.ZipInfo) -> int:
    """Where the bytes of an uncompressed member begin: after its local header, whose length only it knows."""
    if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
        raise MinillamaError(f"{path}: expected {member.filename} to be stored uncompressed, found it compressed")
    with open(path, "rb") as file:
        file.seek(member.header_offset)
        header = file.read(_LOCAL_HEADER.size)
    if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\3\4"):
        raise MinillamaError(f"{path}: expected the header of {member.filename} at {member.header_offset}, found none")
    _, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    return member.header_offset + _LOCAL_HEADER.size + name_length + extra_length


def _content(path: Path, member: zipfile.ZipInfo) -> bytes:
    """The bytes of a small member."""
    start, size = _data_start(path, member), path.stat().st_size
    if start + member.file_size > size:
        raise MinillamaError(f"{path}: expected {start + member.file_size} bytes, found {size}")
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(member.file_size)


def _interpret(path: Path, data: bytes) -> Any:
    """What the pickle `data` describes: a tensor becomes the tuple (storage, start, shape, strides)."""
    try:
        return _Interpreter(path).run(pickletools.genops(data))
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise MinillamaError(f"{path}: expected a pickled dict of tensors, found a broken pickle ({error})") from None


class _Interpreter:
    """A pickle's stack machine, as far as a dict of tensors needs it. It looks up no name and calls nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, opcodes: Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]]) -> Any:
        for opcode, argument, _ in opcodes:
            if opcode.name == "STOP":
                return self.stack.pop()
            self.step(opcode.name, argument)
        raise ValueError("no STOP")

    def step(self, name: str, argument: Any) -> None:
        stack, memo = self.stack, self.memo
        if name in ("PROTO", "FRAME"):
            return
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _PUSH_ARGUMENT:
            stack.append(argument)
        elif name in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append({} if name == "EMPTY_DICT" else [])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(self.pop_many(int(name[-1]))))
        elif name == "TUPLE":
            stack.append(tuple(self.pop_to_mark()))
        elif name in ("APPEND", "APPENDS"):
            values = self.pop_many(1) if name == "APPEND" else self.pop_to_mark()
            _expect(stack[-1], list).extend(values)
        elif name in ("SETITEM", "SETITEMS"):
            values = self.pop_many(2) if name == "SETITEM" else self.pop_to_mark()
            _expect(stack[-1], dict).update(zip(values[::2], values[1::2], strict=True))
        elif name == "BUILD":
            stack.pop()  # attributes of a dict, such as a module's version numbers
            _expect(stack[-1], dict)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            self.push_global(argument if name == "GLOBAL" else " ".join(map(str, self.pop_many(2))))
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif name == "REDUCE":
            arguments = _expect(stack.pop(), tuple)
            stack.append(self.rebuilt(_expect(stack.pop(), _Global), arguments))
        else:
            raise MinillamaError(f"{self.path}: refused: its pickle uses {name}, which no dict of tensors needs")

    def push_global(self, name: str) -> None:
        if name not in _KNOWN:
            raise MinillamaError(f"{self.path}: refused: its pickle asks for {name.replace(' ', '.')}; nothing was run")
        self.stack.append(_Global(name))

    def rebuilt(self, function: _Global, arguments: tuple[Any, ...]) -> Any:
        if function.name == _ORDERED_DICT and not arguments:
            return {}
        if function.name == _REBUILD_PARAMETER:
            return _expect(arguments[0], tuple)
        if function.name == _REBUILD_TENSOR:
            storage, start, shape, strides, *_ = arguments
            for number in (start, *_expect(shape, tuple), *_expect(strides, tuple)):
                if _expect(number, int) < 0:
                    raise ValueError(f"negative size {number}")
            return _expect(storage, _Storage), start, shape, strides
        raise ValueError(f"call of {function.name} with {len(arguments)} arguments")

    def pop_many(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError("stack too short")
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def pop_to_mark(self) -> list[Any]:
        values = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]


def _storage(description: Any) -> _Storage:
    """('storage', type, key, device, number of values) as a persistent id."""
    mark, kind, key, _, n_values = _expect(description, tuple)
    if mark != "storage":
        raise ValueError(f"persistent id {mark!r}")
    return _Storage(_STORAGES[_expect(kind, _Global).name], str(key), _expect(n_values, int))


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"expected {kind.__name__}, found {type(value).__name__}")
    return value
