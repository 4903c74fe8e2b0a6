"""Is a `.tflite` file built as its format says? Pure: bytes in; nothing native has opened the file yet.

Interpreters read a flatbuffer by following offsets, and many of them follow without looking. Everything reachable that
they read is checked here first, as Google's own verifier does it (flatbuffers, `verifier.h`), and a little beyond, for
a graph can also crash an interpreter that is built of whole tables. The rules:
- every table, vtable, vector and string lies inside the file and is aligned; there are at most `MAX_TABLES` tables,
  none has more than `MAX_FIELDS` fields, and what is read of the structure, however often a file refers to one place,
  is at most `MAX_READ_BYTES`: a file of 64 MB costs no more time and memory than one that is honest;
- every index (tensor, buffer, opcode, subgraph) is of something that is there; a constant holds as many bytes as its
  shape and type say; an op reads only what is a constant, an input, or was made before it; nothing is made twice;
- the signatures are those of the manifest, no more and no fewer;
- what a version may change lies inside constants of its kind and inside scales, and these overlap neither each other
  nor any table, vector or string: no patch can touch the structure, or a constant that says what an op does;
- an op is one of `flatbuffer_operators`, with as many inputs and outputs and the options that it has there;
- what this release's exporter never makes is refused by name: custom (Flex) ops, variables, control flow, sparse
  tensors, data outside the flatbuffer.
The layout is that of TensorFlow Lite's schema, version 3 (`schema.fbs`).
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from struct import Struct
from typing import Final

from edge_runtime.flatbuffer_operators import OPERATORS, Operator
from wire_contract.manifest import Manifest, patched_ranges

MAX_TENSOR_BYTES: Final = 1 << 28
MAX_RANK: Final = 8
MAX_TABLES: Final = 1 << 17
MAX_FIELDS: Final = 64
MAX_READ_BYTES: Final = 1 << 24
_IDENTIFIER: Final = b"TFL3"
_SCHEMA: Final = 3
_U16, _I32, _U32 = Struct("<H"), Struct("<i"), Struct("<I")
# TensorType: name and bytes a value. Strings, resources, variants and types of part of a byte are not exported.
_TYPES: Final = {
    0: ("float32", 4), 1: ("float16", 2), 2: ("int32", 4), 3: ("uint8", 1), 4: ("int64", 8), 6: ("bool", 1),
    7: ("int16", 2), 9: ("int8", 1), 15: ("uint32", 4),
}  # fmt: skip
# Options that hold a vector of int32, by type: the field (quantization of FULLY_CONNECTED, shapes of RESHAPE, SQUEEZE).
_OPTION_VECTORS: Final = {8: 5, 17: 0, 30: 0}


class FileRefused(Exception):  # noqa: N818 - an answer, not a fault
    """A rule of this module forbids the file; `reason` is its stable name: `bad_flatbuffer`, or `bad_signatures`,
    `bad_ranges`, `unsupported_graph`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Contents:
    """What a sound file holds. `constants`: (start, stop, type) of buffers that a tensor uses, in order; `scales`:
    (start, stop) of the quantization scales; `structure`: likewise of all else that was read, apart from each other."""

    signatures: tuple[str, ...]
    constants: tuple[tuple[int, int, str], ...]
    scales: tuple[tuple[int, int], ...]
    structure: tuple[tuple[int, int], ...]
    tables: int


def check(data: bytes, manifest: Manifest) -> Contents:
    """Return what the file holds. Raises `FileRefused` unless every rule holds for it and `manifest`."""
    contents = verify(data)
    stated = sorted(manifest.signatures)
    if sorted(contents.signatures) != stated:
        raise FileRefused("bad_signatures", f"the manifest lists {stated}, the file {sorted(contents.signatures)}")
    constants = _Ranges([(start, stop) for start, stop, _ in contents.constants])
    scales = _Ranges(list(contents.scales))
    structure = _Ranges(list(contents.structure))
    for start, stop in patched_ranges(manifest):
        if structure.touch(start, stop):
            raise FileRefused("bad_ranges", f"a version changes no table, got {start}..{stop}")
    for tensor in manifest.tensors:
        for offset in tensor.offsets:
            place = constants.around(offset, tensor.size_bytes)
            if place is None or contents.constants[place][2] != tensor.kind:
                raise FileRefused("bad_ranges", f"{tensor.name} at {offset} is no {tensor.kind} constant of the file")
        for offset in tensor.scale_offsets:
            place = constants.around(offset, 4)
            # A graph may take its scales from a constant instead of a tensor's own.
            is_scale = place is not None and contents.constants[place][2] == "float32"
            if offset % 4 or not (is_scale or scales.around(offset, 4) is not None):
                raise FileRefused("bad_ranges", f"the scale of {tensor.name} at {offset} is no scale of the file")
    return contents


class _Ranges:
    """Ranges in order that do not overlap, to look up what lies in one."""

    def __init__(self, ranges: list[tuple[int, int]]) -> None:
        self._ranges = ranges
        self._starts = [start for start, _ in ranges]

    def around(self, offset: int, size: int) -> int | None:
        """Return which range holds `size` bytes from `offset`, if one does."""
        place = bisect_right(self._starts, offset) - 1
        return place if place >= 0 and offset + size <= self._ranges[place][1] else None

    def touch(self, start: int, stop: int) -> bool:
        """Whether any of them holds a byte of `start` to `stop`."""
        place = bisect_left(self._starts, stop) - 1
        return place >= 0 and self._ranges[place][1] > start


def verify(data: bytes) -> Contents:
    """Return what a file holds, whatever it was made for. Raises `FileRefused`."""
    return _Verifier(data).model()


@dataclass(frozen=True, slots=True)
class _Tensor:
    """`constant`: its buffer has bytes; `empty`: it has no values, and needs none; `rank`: how many dimensions."""

    constant: bool
    empty: bool
    rank: int


class _Verifier:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._size = len(data)
        self._tables: dict[int, tuple[int, ...]] = {}
        self._buffers: list[tuple[int, int]] = []
        self._types: dict[int, str] = {}
        self._scales: set[tuple[int, int]] = set()
        self._opcodes: list[Operator] = []
        self._structure: set[tuple[int, int]] = {(0, 8)}
        self._read_bytes = 0

    def model(self) -> Contents:
        if self._size < 8 or self._data[4:8] != _IDENTIFIER:
            raise _broken(f"a model begins with its root and {_IDENTIFIER!r}, got {self._data[:8]!r}")
        root = self._table(self._follow(0))
        version = self._number(root, 0, 4)
        if version != _SCHEMA:
            raise _broken(f"this release reads schema version {_SCHEMA}, got {version}")
        self._string(root, 3)
        self._vector(root, 5, 4)
        for field, name in ((8, "external buffer groups"), (9, "external buffers")):
            if root[field]:
                raise _unsupported(f"a model has no {name}")
        self._opcodes = [self._opcode(table) for table in self._children(root, 1)]
        self._buffers = [self._buffer(table) for table in self._children(root, 4)]
        for table in self._children(root, 6):
            self._string(table, 0)
            self._index(self._number(table, 1, 4), len(self._buffers), "buffer")
        graphs = [self._graph(table) for table in self._children(root, 2)]
        signatures = [self._signature(table, graphs) for table in self._children(root, 7)]
        if len(set(signatures)) != len(signatures):
            raise FileRefused("bad_signatures", f"a signature is listed once, got {sorted(signatures)}")
        constants = sorted({(*self._buffers[i], kind) for i, kind in self._types.items() if self._buffers[i][1]})
        scales = sorted(self._scales)
        for (start, stop), (following, _) in pairwise(sorted([*((a, b) for a, b, _ in constants), *scales])):
            if following < stop:
                raise _broken(f"constants and scales lie apart, got {start}..{stop} and another at {following}")
        return Contents(
            tuple(signatures), tuple(constants), tuple(scales), tuple(_merged(self._structure)), len(self._tables)
        )

    def _opcode(self, table: tuple[int, ...]) -> Operator:
        code = max(self._number(table, 0, 1), self._number(table, 3, 4, signed=True))
        custom = self._string(table, 1)
        known = OPERATORS.get(code)
        if known is None or custom:
            raise _unsupported(f"a model is built of ops that the runtime lists, got {custom[:40] or f'op {code}'}")
        self._number(table, 2, 4)
        return known

    def _buffer(self, table: tuple[int, ...]) -> tuple[int, int]:
        # 0 and 1 mean: in the flatbuffer.
        if self._number(table, 1, 8) > 1 or self._number(table, 2, 8) > 1:
            raise _unsupported("a model has no data outside the flatbuffer")
        start, count = self._vector(table, 0, 1, values=True)
        return start, start + count if count else 0

    def _graph(self, table: tuple[int, ...]) -> int:
        tensors = [self._tensor(each) for each in self._children(table, 0)]
        self._string(table, 4)
        made = [each.constant or each.empty for each in tensors]
        for index in self._numbers(table, 1):
            self._index(index, len(tensors), "tensor")
            made[index] = True
        for operator in self._children(table, 3):
            self._operator(operator, tensors, made)
        for index in self._numbers(table, 2):
            self._index(index, len(tensors), "tensor")
            if not made[index]:
                raise _broken(f"a graph gives what it has made, got tensor {index}")
        return len(tensors)

    def _tensor(self, table: tuple[int, ...]) -> _Tensor:
        shape = self._numbers(table, 0)
        known = _TYPES.get(self._number(table, 1, 1))
        if known is None:
            raise _unsupported(f"a tensor has a type of numbers, got type {self._number(table, 1, 1)}")
        kind, width = known
        size = math.prod(shape) * width
        if len(shape) > MAX_RANK or any(n < 0 for n in shape) or size > MAX_TENSOR_BYTES:
            raise _broken(f"a tensor has at most {MAX_RANK} dimensions and {MAX_TENSOR_BYTES} bytes, got {shape[:9]}")
        if any(n not in (shape[i], -1) for i, n in enumerate(self._numbers(table, 7)[: len(shape)])):
            raise _broken(f"a shape's signature is the shape, or -1, got {self._numbers(table, 7)[:9]} for {shape}")
        self._string(table, 3)
        self._quantization(table, shape)
        if self._number(table, 5, 1) or table[6] or table[9] or self._number(table, 10, 4):
            raise _unsupported("a tensor is no variable, not sparse, no variant and not outside the flatbuffer")
        number = self._number(table, 2, 4)
        self._index(number, len(self._buffers), "buffer")
        start, stop = self._buffers[number]
        if stop:
            if stop - start != size:
                raise _broken(f"a constant {kind} of shape {shape} has {size} bytes, got {stop - start}")
            if self._types.setdefault(number, kind) != kind:
                raise _broken(f"a buffer holds one type, got {self._types[number]} and {kind}")
        return _Tensor(bool(stop), not size, len(shape))

    def _quantization(self, tensor: tuple[int, ...], shape: list[int]) -> None:
        if not tensor[4]:
            return
        table = self._table(self._follow(tensor[4]))
        if self._number(table, 4, 1) or table[5]:
            raise _unsupported("a tensor is quantized by scales and zero points alone")
        self._vector(table, 0, 4)
        self._vector(table, 1, 4)
        start, scales = self._vector(table, 2, 4, values=True)
        _, zeros = self._vector(table, 3, 8)
        axis = self._number(table, 6, 4, signed=True)
        # One for all, or one a row of an axis that is there.
        rows = shape[axis] if 0 <= axis < len(shape) else 1
        if scales not in (0, 1, rows) or zeros not in (0, scales):
            raise _broken(f"a tensor of shape {shape} has scales for axis {axis}, got {scales} and {zeros} zero points")
        if scales:
            self._scales.add((start, start + 4 * scales))

    def _operator(self, table: tuple[int, ...], tensors: list[_Tensor], made: list[bool]) -> None:
        number = self._number(table, 0, 4)
        self._index(number, len(self._opcodes), "opcode")
        known = self._opcodes[number]
        inputs, outputs = self._numbers(table, 1), self._numbers(table, 2)
        for count, (low, high), what in (
            (len(inputs), known.inputs, "inputs"),
            (len(outputs), known.outputs, "outputs"),
        ):
            if not low <= count <= high:
                raise _broken(f"{known.name} has {low} to {high} {what}, got {count}")
        for place, index in enumerate(inputs):
            if index == -1 and place >= known.inputs[0]:
                continue
            self._index(index, len(tensors), "tensor")
            if not made[index]:
                raise _broken(f"an op reads what was made before it, got tensor {index}")
        if known.ranked is not None and not tensors[inputs[known.ranked]].rank:
            raise _broken(f"{known.name} is of a tensor that has a dimension, got a scalar")
        for index in outputs:
            self._index(index, len(tensors), "tensor")
            if made[index] and not tensors[index].empty:
                raise _broken(f"a tensor is made once, got tensor {index}")
            made[index] = True
        self._options(table, known, len(inputs), len(outputs))
        self._vector(table, 7, 1)
        if table[5] or table[8] or self._number(table, 9, 8) or self._number(table, 10, 8):
            raise _unsupported("an op has neither custom options nor intermediates")
        if self._number(table, 11, 1) or table[12]:
            raise _unsupported("an op has options of the first kind alone")

    def _options(self, operator: tuple[int, ...], known: Operator, inputs: int, outputs: int) -> None:
        kind = self._number(operator, 3, 1)
        if kind != known.options and (kind or not known.may_lack_options):
            raise _broken(f"{known.name} has options of type {known.options}, got {kind}")
        if bool(kind) != bool(operator[4]):
            raise _broken(f"an op has options and their type, or neither, got type {kind}")
        if not kind:
            return
        table = self._table(self._follow(operator[4]))
        if any(at + 4 > self._size for at in table):
            raise _broken("an op's options lie in the file")
        if kind in _OPTION_VECTORS:
            self._vector(table, _OPTION_VECTORS[kind], 4)
        stated = self._number(table, 0, 4, signed=True) if known.counted else 0
        if known.counted and stated != (inputs if known.counted == "inputs" else outputs):
            raise _broken(f"{known.name} says how many {known.counted} it has, got {stated}")

    def _signature(self, table: tuple[int, ...], graphs: list[int]) -> str:
        graph = self._number(table, 4, 4)
        self._index(graph, len(graphs), "subgraph")
        for field in (0, 1):
            for entry in self._children(table, field):
                if not self._string(entry, 0):
                    raise _broken("a signature's tensor has a name")
                self._index(self._number(entry, 1, 4), graphs[graph], "tensor")
        return self._string(table, 2)

    # Flatbuffers: a table is told by the absolute positions of its fields, 0 for one that is not there.

    def _table(self, at: int) -> tuple[int, ...]:
        known = self._tables.get(at)
        if known is not None:
            self._count(_TABLE_COST)
            return known
        self._count(_TABLE_COST)
        if len(self._tables) >= MAX_TABLES:
            raise _broken(f"a file has at most {MAX_TABLES} tables, got another at {at}")
        if at % 4 or at + 4 > self._size:
            raise _broken(f"a table lies in the file, got {at}")
        vtable = at - _I32.unpack_from(self._data, at)[0]
        if vtable % 2 or not 0 <= vtable <= self._size - 4:
            raise _broken(f"a vtable lies in the file, got {vtable}")
        length, size = _U16.unpack_from(self._data, vtable)[0], _U16.unpack_from(self._data, vtable + 2)[0]
        if length > 2 * MAX_FIELDS + 4:
            raise _broken(f"a table has at most {MAX_FIELDS} fields, got a vtable of {length} bytes")
        if length < 4 or length % 2 or vtable + length > self._size or size < 4 or at + size > self._size:
            raise _broken(f"a table at {at} lies in the file, got {size} bytes, its vtable {length}")
        offsets = Struct(f"<{length // 2 - 2}H").unpack_from(self._data, vtable + 4)
        if any(offset and not 4 <= offset < size for offset in offsets):
            raise _broken(f"a table at {at} holds its own fields, got offsets {offsets[:16]}")
        fields = tuple(at + offset if offset else 0 for offset in offsets)
        # Later releases of the schema add fields; fewer than we ask for are absent ones.
        fields += (0,) * (_FIELDS - len(fields))
        self._tables[at] = fields
        self._structure |= {(at, at + size), (vtable, vtable + length)}
        return fields

    def _count(self, size: int) -> None:
        self._read_bytes += size
        if self._read_bytes > MAX_READ_BYTES:
            raise _broken(f"the structure of a file has at most {MAX_READ_BYTES} bytes, each reference counted")

    def _follow(self, at: int) -> int:
        if at % 4 or at + 4 > self._size:
            raise _broken(f"an offset lies in the file, got {at}")
        offset = int(_U32.unpack_from(self._data, at)[0])
        if offset == 0 or at + offset >= self._size:
            raise _broken(f"an offset at {at} leads into the file, got {offset}")
        return at + offset

    def _number(self, table: tuple[int, ...], field: int, width: int, *, signed: bool = False) -> int:
        at = table[field]
        if not at:
            return 0
        if at % width or at + width > self._size:
            raise _broken(f"a number of {width} bytes lies aligned in the file, got {at}")
        return int.from_bytes(self._data[at : at + width], "little", signed=signed)

    def _vector(self, table: tuple[int, ...], field: int, width: int, *, values: bool = False) -> tuple[int, int]:
        """Return where a vector's elements begin, and how many there are; `values`: they are not looked at here."""
        if not table[field]:
            return 0, 0
        at = self._follow(table[field])
        if at % 4 or at + 4 > self._size:
            raise _broken(f"a vector lies in the file, got {at}")
        count = int(_U32.unpack_from(self._data, at)[0])
        if count * width > self._size - at - 4 or (count and (at + 4) % width):
            raise _broken(f"a vector at {at} lies aligned in the file, got {count} elements of {width} bytes")
        size = 4 + (0 if values else count * width)
        self._count(size)
        self._structure.add((at, at + size))
        return at + 4, count

    def _numbers(self, table: tuple[int, ...], field: int) -> list[int]:
        start, count = self._vector(table, field, 4)
        return list(Struct(f"<{count}i").unpack_from(self._data, start))

    def _children(self, table: tuple[int, ...], field: int) -> Iterator[tuple[int, ...]]:
        start, count = self._vector(table, field, 4)
        for at in range(start, start + 4 * count, 4):
            yield self._table(self._follow(at))

    def _string(self, table: tuple[int, ...], field: int) -> str:
        start, count = self._vector(table, field, 1)
        if not start:
            return ""
        if start + count >= self._size or self._data[start + count]:
            raise _broken(f"a string at {start} ends with a zero")
        try:
            return self._data[start : start + count].decode()
        except UnicodeDecodeError as e:
            raise _broken(f"a string at {start} is UTF-8: {e}") from e

    @staticmethod
    def _index(index: int, count: int, what: str) -> None:
        if not 0 <= index < count:
            raise _broken(f"a {what} is one of {count}, got {index}")


_FIELDS: Final = 14
# What looking at a table costs, told in bytes: its fields are asked for one by one.
_TABLE_COST: Final = 32


def _merged(ranges: set[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield ranges in order, those that meet as one."""
    begun: tuple[int, int] | None = None
    for start, stop in sorted(ranges):
        if begun is None or start > begun[1]:
            if begun is not None:
                yield begun
            begun = start, stop
        else:
            begun = begun[0], max(begun[1], stop)
    if begun is not None:
        yield begun


def _broken(message: str) -> FileRefused:
    return FileRefused("bad_flatbuffer", message)


def _unsupported(message: str) -> FileRefused:
    return FileRefused("unsupported_graph", message)
