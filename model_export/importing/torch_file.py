"""The tensors of a PyTorch state dict (`torch.save`, the zip form since 1.6), read without torch and without pickle.

Unpickling runs whatever the file names. So its opcodes are read by this module's own small machine, which knows what
`torch.save` writes for a state dict and nothing else. The rules:
- the only globals are `collections.OrderedDict`, `torch._utils._rebuild_tensor_v2` and torch's storages; any other is
  refused by its name, and none is ever imported or called;
- keys are text or numbers, and nothing is nested where Python's own recursion would follow it;
- a storage is exactly as long as its member of the archive, and a tensor lies inside its storage;
- sizes are checked before anything is made: of the archive's members, of the pickle, of each tensor, of all tensors.
"""

import math
import pickletools
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model_export.broken_archive import BROKEN_ARCHIVE
from model_export.importing.refusal import MAX_ARRAYS, MAX_SOURCE_BYTES, BadImport
from wire_contract.manifest import MAX_PARAMETERS

MAX_PICKLE_BYTES: Final = 8 * 1024 * 1024
_MAX_DEPTH: Final = 8
# A dictionary may stand in another many times over: what is looked at is counted, not what is written.
_MAX_VISITS: Final = 16 * MAX_ARRAYS
_DICT, _TENSOR = "collections OrderedDict", "torch._utils _rebuild_tensor_v2"
_STORAGES: Final = {
    "torch FloatStorage": "<f4",
    "torch HalfStorage": "<f2",
    "torch DoubleStorage": "<f8",
    # bfloat16 is the upper half of a float32.
    "torch BFloat16Storage": "<u2",
    "torch LongStorage": "<i8",
    "torch IntStorage": "<i4",
    "torch ShortStorage": "<i2",
    "torch CharStorage": "|i1",
    "torch ByteStorage": "|u1",
    "torch BoolStorage": "|b1",
}
_BFLOAT16 = "torch BFloat16Storage"


@dataclass(frozen=True, slots=True)
class _Global:
    name: str


@dataclass(frozen=True, slots=True)
class _Storage:
    kind: str
    key: str
    length: int


@dataclass(frozen=True, slots=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


_MARK: Final = object()


def read_torch(path: Path) -> dict[str, NDArray[np.generic]]:
    """Return the tensors by name; dictionaries inside dictionaries give dotted names, other values are left out.

    bfloat16 comes as float32. Raises `BadImport`, or `OSError` where the file cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            if sum(info.file_size for info in members.values()) > MAX_SOURCE_BYTES:
                raise BadImport(f"{path.name}: a state dict has at most {MAX_SOURCE_BYTES} bytes")
            pickles = [name for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise BadImport(f"{path.name}: a file of torch.save holds one data.pkl, got {len(pickles)}")
            if members[pickles[0]].file_size > MAX_PICKLE_BYTES:
                raise BadImport(f"{path.name}: data.pkl has at most {MAX_PICKLE_BYTES} bytes")
            folder = pickles[0].removesuffix("data.pkl")
            if f"{folder}byteorder" in members and archive.read(f"{folder}byteorder") != b"little":
                raise BadImport(f"{path.name}: values are little-endian, got another byte order")
            found = _tensors(_Machine().run(archive.read(pickles[0])))
            return _arrays(archive, members, folder, found)
    except zipfile.BadZipFile as e:
        raise BadImport(
            f"{path.name}: a state dict is the zip form of torch.save (PyTorch 1.6 or newer) or .safetensors: {e}"
        ) from e
    except BROKEN_ARCHIVE as e:
        raise BadImport(f"{path.name}: the archive cannot be read: {e}") from e


class _Machine:
    """Runs the opcodes of one pickle over a stack of plain values."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        try:
            for opcode, argument, _ in pickletools.genops(data):
                if opcode.name == "STOP":
                    break
                self._step(opcode.name, argument)
            return self.stack[-1]
        except BadImport:
            raise
        except (ValueError, IndexError, KeyError, TypeError, OverflowError, UnicodeError, RecursionError) as e:
            raise BadImport(f"data.pkl is what torch.save writes of a state dict: {type(e).__name__}: {e}") from e

    def _step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in ("PROTO", "FRAME"):
            return
        if name in ("BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"):
            stack.append(argument)
        elif name in ("NONE", "NEWTRUE", "NEWFALSE"):
            stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
        elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
            stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[name]())
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            if len(stack) < count:
                raise IndexError("the stack is empty")
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "TUPLE":
            stack.append(tuple(self._to_mark()))
        elif name in ("APPEND", "APPENDS"):
            values = [stack.pop()] if name == "APPEND" else self._to_mark()
            self._top(list).extend(values)
        elif name in ("SETITEM", "SETITEMS"):
            values = [stack.pop(), stack.pop()][::-1] if name == "SETITEM" else self._to_mark()
            # A tuple as a key is hashed to its bottom, however deep: that ends the process and not the reading.
            if any(type(key) not in (str, int) for key in values[::2]):
                raise TypeError("a key is text or a number")
            self._top(dict).update(zip(values[::2], values[1::2], strict=True))
        elif name == "GLOBAL":
            stack.append(self._global(argument))
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_call(function, arguments))
        elif name == "BUILD":
            # The `_metadata` of an OrderedDict: versions of the layers, which say nothing about the values.
            stack.pop()
            self._top(dict)
        else:
            raise BadImport(f"a state dict is written with the opcodes of torch.save, got {name}")

    def _to_mark(self) -> list[Any]:
        values = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def _top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise TypeError(f"a {kind.__name__} is filled, got {type(self.stack[-1]).__name__}")
        return self.stack[-1]

    @staticmethod
    def _global(name: str) -> _Global:
        if name not in (_DICT, _TENSOR) and name not in _STORAGES:
            shown = ".".join(str(name).split(" ", 1))[:120]
            raise BadImport(
                f"a state dict names OrderedDict, _rebuild_tensor_v2 and storages only, got {shown!r}: "
                "save model.state_dict(), or .safetensors"
            )
        return _Global(name)


def _storage(named: Any) -> _Storage:
    if type(named) is not tuple or len(named) != 5:
        raise TypeError("a persistent id has five parts")
    kind_of, kind, key, _, length = named
    if type(kind_of) is not str or kind_of != "storage" or not isinstance(kind, _Global) or kind.name not in _STORAGES:
        raise TypeError("a persistent id is a storage that torch.save knows")
    if not isinstance(key, str) or type(length) is not int or not 0 <= length <= MAX_PARAMETERS:
        raise ValueError(f"a storage has at most {MAX_PARAMETERS} values, got {str(length)[:40]}")
    return _Storage(kind.name, key, length)


def _call(function: Any, arguments: Any) -> Any:
    if not isinstance(function, _Global) or not isinstance(arguments, tuple):
        raise TypeError("a function is called by name with a tuple")
    if function.name == _DICT:
        # torch.save makes it empty, and fills it.
        if arguments:
            raise TypeError("an OrderedDict is made empty")
        return {}
    if function.name != _TENSOR:
        raise TypeError(f"a storage is not called, got {function.name}")
    storage, offset, shape, strides = arguments[:4]
    if type(shape) is not tuple or type(strides) is not tuple or len(shape) > _MAX_DEPTH:
        raise TypeError(f"a tensor has at most {_MAX_DEPTH} dimensions")
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or len(shape) != len(strides) or any(type(n) is not int for n in numbers):
        raise TypeError("a tensor has a storage, an offset, and as many strides as dimensions")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _tensors(root: Any) -> dict[str, _Tensor]:
    found: dict[str, _Tensor] = {}
    visits = 0

    def walk(value: Any, prefix: str, depth: int) -> None:
        nonlocal visits
        visits += 1
        if visits > _MAX_VISITS:
            raise BadImport(f"a state dict holds at most {_MAX_VISITS} values, dictionaries within it counted")
        if isinstance(value, _Tensor):
            found[prefix] = value
        elif isinstance(value, dict) and depth <= _MAX_DEPTH:
            for key, inner in value.items():
                if isinstance(key, str):
                    walk(inner, f"{prefix}.{key}" if prefix else key, depth + 1)
        if len(found) > MAX_ARRAYS:
            raise BadImport(f"a state dict has at most {MAX_ARRAYS} tensors")

    if not isinstance(root, dict):
        raise BadImport(f"a state dict is a dictionary of tensors, got {type(root).__name__}: save model.state_dict()")
    walk(root, "", 0)
    return found


def _arrays(
    archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], folder: str, found: dict[str, _Tensor]
) -> dict[str, NDArray[np.generic]]:
    total = 0
    storages: dict[str, NDArray[np.generic]] = {}
    arrays = {}
    for name, tensor in found.items():
        storage = tensor.storage
        total += math.prod(tensor.shape) if len(tensor.shape) <= _MAX_DEPTH else MAX_PARAMETERS + 1
        if min((tensor.offset, *tensor.shape, *tensor.strides), default=0) < 0 or total > MAX_PARAMETERS:
            raise BadImport(f"a state dict has at most {MAX_PARAMETERS} values, got {name[:80]}: {tensor.shape[:9]}")
        last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True) if n)
        # A step along an axis of one value, or of a tensor of none, is never taken: torch writes any number there.
        holds = bool(math.prod(tensor.shape))
        steps = [step if n > 1 and holds else 0 for n, step in zip(tensor.shape, tensor.strides, strict=True)]
        if tensor.offset > storage.length or (holds and last >= storage.length):
            raise BadImport(f"a tensor lies inside its storage of {storage.length} values, got {name[:80]} to {last}")
        if storage.key not in storages:
            storages[storage.key] = _values(archive, members, f"{folder}data/{storage.key}", storage)
        values = storages[storage.key]
        if values.dtype != np.dtype(_STORAGES[storage.kind]) or len(values) != storage.length:
            raise BadImport(f"a storage has one type and length, got {storage.kind} for {storage.key[:40]!r}")
        strides = tuple(step * values.itemsize for step in steps)
        view = np.lib.stride_tricks.as_strided(values[tensor.offset :], tensor.shape, strides, writeable=False)
        copy = np.array(view, order="C")
        if storage.kind == _BFLOAT16:
            copy = (copy.astype(np.uint32) << 16).view(np.float32)
        arrays[name] = copy
    return arrays


def _values(
    archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], member: str, storage: _Storage
) -> NDArray[np.generic]:
    dtype = np.dtype(_STORAGES[storage.kind])
    if member not in members or members[member].file_size != storage.length * dtype.itemsize:
        got = members[member].file_size if member in members else "none"
        raise BadImport(f"{member[-60:]} has {storage.length * dtype.itemsize} bytes, got {got}")
    return np.frombuffer(archive.read(member), dtype)
