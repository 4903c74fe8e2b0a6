"""Examples that are arrays: read from a stranger's `.npz`, written as one record each, and taken out by their numbers.

The rules:
- a file holds one `NAME.npy` for each array of the manifest, and nothing else; its first axis counts the examples;
- an array is stored or deflated, as numpy does it: other compressions unpack without a bound on memory;
- name, dtype and shape are read from the header and judged before an array is made; pickles are never opened, and a
  file that says one size and unpacks to another is refused;
- every float is finite; a class is 0 or more, a yes or no is 0 or 1;
- a record is the id of what the arrays are (names, dtypes, shapes) and their bytes in the manifest's order; one of
  another model counts as none;
- numbers are the store's, rise, and are never given again.
Pure: bytes and arrays in, arrays and bytes out.
"""

import hashlib
import io
import lzma
import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wire_contract.manifest import ArraySpec, Manifest

Arrays = dict[str, NDArray[np.generic]]
"""By the manifest's names, each [n, *shape]."""

MAX_FILE_BYTES = 64 * 1024 * 1024
MAX_EXAMPLES = 20_000
ID_BYTES = 8
_MAX_HEADER_BYTES = 10_000
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OSError,
)


class ExamplesRefused(Exception):  # noqa: N818 - an answer, not a fault
    """A file of examples breaks a rule of this module; the message states it."""


@dataclass(frozen=True, slots=True)
class ArrayExamples:
    """Examples as one array for each name, [n, *shape]; `numbers` int32 [n], ascending, are the store's."""

    numbers: NDArray[np.int32]
    arrays: Arrays

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.numbers)

    def holds(self, numbers: NDArray[np.int32]) -> bool:
        """Whether every one of `numbers` is here."""
        return bool(np.isin(numbers, self.numbers).all())

    def take(self, numbers: NDArray[np.int32]) -> Arrays:
        """Return the examples of these numbers, in their order. Raises `KeyError` for one that is not here."""
        if not self.holds(numbers):
            raise KeyError(f"no examples {sorted(set(numbers.tolist()) - set(self.numbers.tolist()))[:5]}")
        places = np.searchsorted(self.numbers, numbers)
        return {name: array[places] for name, array in self.arrays.items()}


def specs_id(specs: Sequence[ArraySpec]) -> bytes:
    """Return the first bytes of a SHA-256 over names, dtypes, shapes and roles, in their order."""
    text = "\n".join(f"{s.name}:{s.dtype}:{'x'.join(map(str, s.shape))}:{s.role}" for s in specs)
    return hashlib.sha256(b"edge-federation example arrays v1\n" + text.encode()).digest()[:ID_BYTES]


def encode_records(arrays: Arrays, specs: Sequence[ArraySpec]) -> Iterator[bytes]:
    """Yield one record for each example; inverse of `of_records`."""
    whole = {s.name: np.ascontiguousarray(arrays[s.name], dtype=_little(s)) for s in specs}
    count = len(next(iter(whole.values())))
    name = specs_id(specs)
    for place in range(count):
        yield name + b"".join(whole[s.name][place].tobytes() for s in specs)


def of_records(records: Iterable[tuple[int, bytes]], specs: Sequence[ArraySpec]) -> ArrayExamples:
    """Return the examples in (number, record), numbers ascending; records of another model's arrays are left out."""
    name, size = specs_id(specs), sum(_size_bytes(s) for s in specs)
    numbers: list[int] = []
    # Gathered as bytes: a device has no room for every record beside the arrays that are made of them.
    gathered = {s.name: bytearray() for s in specs}
    for number, data in records:
        if data[:ID_BYTES] != name or len(data) != ID_BYTES + size:
            continue
        numbers.append(number)
        start = ID_BYTES
        for s in specs:
            gathered[s.name] += data[start : start + _size_bytes(s)]
            start += _size_bytes(s)
    arrays: Arrays = {
        s.name: np.frombuffer(gathered[s.name], _little(s)).astype(s.dtype, copy=False).reshape(len(numbers), *s.shape)
        for s in specs
    }
    return ArrayExamples(np.array(numbers, np.int32), arrays)


def read_npz(data: bytes, manifest: Manifest) -> Arrays:
    """Return the arrays of a file that a person or a program hands over. Raises `ExamplesRefused`."""
    if len(data) > MAX_FILE_BYTES:
        raise ExamplesRefused(f"a file of examples has at most {MAX_FILE_BYTES} bytes, got {len(data)}")
    specs = {s.name: s for s in manifest.examples}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = _entries(archive, specs)
            raw = {name: _unpack(archive, entry, name) for name, entry in entries.items()}
    except _BROKEN as e:
        raise ExamplesRefused(f"a file of examples is a .npz as numpy.savez writes it: {e}") from e
    shapes = {name: _header(body, specs[name]) for name, body in raw.items()}
    counts = {name: shape[0] for name, (shape, _, _) in shapes.items()}
    if len(set(counts.values())) != 1:
        raise ExamplesRefused(f"the first axis of every array counts the same examples, got {counts}")
    count = next(iter(counts.values()))
    if not 1 <= count <= MAX_EXAMPLES:
        raise ExamplesRefused(f"a file holds 1 to {MAX_EXAMPLES} examples, got {count}")
    arrays = {name: _array(raw[name], specs[name], *shapes[name]) for name in specs}
    for name, array in arrays.items():
        _check_values(array, specs[name], manifest.loss)
    return arrays


def _entries(archive: zipfile.ZipFile, specs: Mapping[str, ArraySpec]) -> dict[str, zipfile.ZipInfo]:
    entries: dict[str, zipfile.ZipInfo] = {}
    infos = archive.infolist()
    if len(infos) > 2 * len(specs) + 64:
        raise ExamplesRefused(f"a file holds one array for each of {sorted(specs)}, got {len(infos)} entries")
    for info in infos:
        name = info.filename.removesuffix(".npy")
        if name == info.filename or name not in specs:
            raise ExamplesRefused(f"this model's examples are made of {sorted(specs)}, got {info.filename[:80]!r}")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ExamplesRefused(f"an array is stored or deflated, got compression {info.compress_type} of {name!r}")
        if name in entries:
            raise ExamplesRefused(f"a file holds an array once, got {name!r} twice")
        entries[name] = info
    missing = sorted(set(specs) - set(entries))
    if missing:
        raise ExamplesRefused(f"this model's examples are made of {sorted(specs)}, got none called {missing}")
    stated = sum(info.file_size for info in entries.values())
    if stated > MAX_FILE_BYTES:
        raise ExamplesRefused(f"a file of examples has at most {MAX_FILE_BYTES} bytes unpacked, got {stated}")
    return entries


def _unpack(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str) -> bytes:
    with archive.open(entry) as file:
        body = file.read(entry.file_size + 1)
    if len(body) != entry.file_size:
        raise ExamplesRefused(f"{name} says {entry.file_size} bytes, and unpacks to {len(body)}")
    return body


def _header(body: bytes, spec: ArraySpec) -> tuple[tuple[int, ...], bool, int]:
    """Return an array's shape, whether it is stored by columns, and where its values begin."""
    stream = io.BytesIO(body)
    try:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
        if read is None:
            raise ExamplesRefused(f"{spec.name} is in numpy's format 1.0 or 2.0, got {version}")
        shape, by_columns, dtype = read(stream, max_header_size=_MAX_HEADER_BYTES)
    except (ValueError, SyntaxError, TypeError, EOFError, MemoryError, RecursionError, tokenize.TokenError) as e:
        raise ExamplesRefused(f"{spec.name} begins with numpy's header: {' '.join(str(e).split())[:200]}") from e
    if dtype != np.dtype(_little(spec)):
        raise ExamplesRefused(f"{spec.name} is {spec.dtype}, got {str(dtype)[:40]}: save it as {spec.dtype}")
    if len(shape) != len(spec.shape) + 1 or tuple(shape[1:]) != spec.shape or any(type(n) is not int for n in shape):
        wanted = ", ".join(["N", *map(str, spec.shape)])
        raise ExamplesRefused(f"{spec.name} has shape [{wanted}], got {str(list(shape))[:80]}")
    start = stream.tell()
    if len(body) - start != math.prod(shape) * dtype.itemsize:
        raise ExamplesRefused(f"{spec.name} of shape {list(shape)} does not have {len(body) - start} bytes of values")
    return tuple(shape), bool(by_columns), start


def _array(body: bytes, spec: ArraySpec, shape: tuple[int, ...], by_columns: bool, start: int) -> NDArray[np.generic]:
    values = np.frombuffer(body, _little(spec), offset=start).reshape(shape, order="F" if by_columns else "C")
    return np.ascontiguousarray(values, dtype=spec.dtype)


def _check_values(array: NDArray[np.generic], spec: ArraySpec, loss: str) -> None:
    if spec.dtype == "float32" and not np.isfinite(array).all():
        raise ExamplesRefused(f"{spec.name} is finite, got NaN or Inf in {_count(~np.isfinite(array))} examples")
    if spec.role != "target":
        return
    values = np.asarray(array, np.float64)
    if loss == "sparse_categorical_crossentropy" and (values < 0).any():
        raise ExamplesRefused(f"{spec.name} is a class, 0 or more, got {values.min():g}")
    if loss == "binary_crossentropy" and ((values < 0) | (values > 1)).any():
        raise ExamplesRefused(f"{spec.name} is 0 or 1, got {values.min():g} to {values.max():g}")


def _count(broken: NDArray[np.bool_]) -> int:
    return int(np.count_nonzero(broken.reshape(len(broken), -1).any(axis=1)))


def _little(spec: ArraySpec) -> str:
    return "<f4" if spec.dtype == "float32" else "<i4"


def _size_bytes(spec: ArraySpec) -> int:
    return 4 * math.prod(spec.shape)
