"""Arrays by name out of weight files: `.npz`, `.safetensors`, Keras's `.weights.h5` and `.keras`, PyTorch's `.pt`.

Nothing of a file is run: a `.keras` archive is opened for its weights alone, its configuration is not read. The rules:
- sizes and types are compared with the file before an array is made;
- float16, bfloat16, float32 and float64 come as float32; other types are named but hold no weights;
- an HDF5 file stands alone: links and values that lead outside it are refused by name.
"""

import io
import json
import math
import tokenize
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model_export.broken_archive import BROKEN_ARCHIVE
from model_export.importing.refusal import MAX_ARRAYS, MAX_SOURCE_BYTES, BadImport
from model_export.importing.torch_file import read_torch
from wire_contract.manifest import MAX_PARAMETERS

Arrays = dict[str, NDArray[np.generic]]
KERAS_WEIGHTS: Final = "model.weights.h5"
_MAX_HEADER_BYTES: Final = 16 * 1024 * 1024
# What an archive or a header of any bytes makes the standard library and numpy raise, OSError apart.
_BROKEN: Final = (
    *BROKEN_ARCHIVE, MemoryError, SyntaxError, TypeError, tokenize.TokenError,
)  # fmt: skip
_FLOATS: Final = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}


def read_arrays(path: Path) -> Arrays:
    """Return every array of a weight file by its name; the form follows from the ending.

    Raises `BadImport`, or `OSError` where the file cannot be read.
    """
    reader = _reader(path)
    if path.stat().st_size > MAX_SOURCE_BYTES:
        raise BadImport(f"{path.name}: a weight file has at most {MAX_SOURCE_BYTES} bytes, got {path.stat().st_size}")
    arrays = reader(path)
    if not arrays:
        raise BadImport(f"{path.name}: holds no arrays")
    return arrays


def _reader(path: Path) -> Callable[[Path], Arrays]:
    for ending, reader in _READERS.items():
        if path.name.lower().endswith(ending):
            return reader
    raise BadImport(f"a weight file ends in {', '.join(_READERS)} (or is a SavedModel's folder), got {path.name!r}")


def read_npz(path: Path) -> Arrays:
    """Return a numpy archive's arrays. Raises `BadImport`; objects are never unpickled."""
    arrays: Arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            _check_members(path, infos)
            for info in infos:
                arrays[info.filename.removesuffix(".npy")] = _npy(archive.read(info), f"{path.name}: {info.filename}")
    except _BROKEN as e:
        raise BadImport(f"{path.name}: an .npz is an archive of arrays: {e}") from e
    return arrays


def _npy(data: bytes, name: str) -> NDArray[np.generic]:
    member = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(member)
        if version not in ((1, 0), (2, 0)):
            raise BadImport(f"{name} is a version 1.0 or 2.0 .npy, got {version}")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = read(member)
    except _BROKEN as e:
        raise BadImport(f"{name} is an .npy: {' '.join(str(e).split())[:200]}") from e
    if any(type(n) is not int or n < 0 for n in shape):
        raise BadImport(f"{name} has a shape of numbers from 0, got {str(shape)[:80]}")
    raw = data[member.tell() :]
    if dtype.hasobject or dtype.itemsize == 0 or math.prod(shape) * dtype.itemsize != len(raw):
        raise BadImport(f"{name} holds {dtype} of shape {shape}, got {len(raw)} bytes")
    return np.frombuffer(raw, dtype).reshape(shape, order="F" if by_columns else "C")


def read_safetensors(path: Path) -> Arrays:
    """Return a safetensors file's arrays: 8 bytes of header length, a JSON header, then the values, little-endian.

    Raises `BadImport`. bfloat16 comes as float32, which numpy has no name for otherwise.
    """
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(_MAX_HEADER_BYTES, len(data) - 8):
        raise BadImport(f"{path.name}: a header of at most {_MAX_HEADER_BYTES} bytes lies in the file, got {length}")
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError) as e:
        raise BadImport(f"{path.name}: the header is JSON: {e}") from e
    if not isinstance(header, dict) or len(header) > MAX_ARRAYS:
        raise BadImport(f"{path.name}: the header is an object of at most {MAX_ARRAYS} tensors")
    body = memoryview(data)[8 + length :]
    return {
        name: _safetensor(body, spec, f"{path.name}: {name[:80]}")
        for name, spec in header.items()
        if name != "__metadata__"
    }


def _safetensor(body: memoryview, spec: Any, name: str) -> NDArray[np.generic]:
    try:
        kind, shape, (start, stop) = str(spec["dtype"]), tuple(spec["shape"]), spec["data_offsets"]
    except (KeyError, TypeError, ValueError) as e:
        raise BadImport(f"{name} states dtype, shape and data_offsets, got {str(spec)[:80]}") from e
    numbers = (*shape, start, stop)
    if any(type(n) is not int or n < 0 for n in numbers) or not start <= stop <= len(body) or len(shape) > 8:
        raise BadImport(f"{name} lies inside the file, got shape {shape[:9]} at {start}..{stop}")
    dtype = np.dtype("<u2" if kind == "BF16" else _FLOATS.get(kind, "|u1"))
    known = kind == "BF16" or kind in _FLOATS
    if known and math.prod(shape) * dtype.itemsize != stop - start:
        raise BadImport(f"{name} has {math.prod(shape)} values of {kind}, got {stop - start} bytes")
    values = np.frombuffer(body[start:stop], dtype)
    if not known:
        # Named, so that a map that asks for it is refused by its type.
        return values
    if kind == "BF16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    try:
        return values.reshape(shape)
    except ValueError as e:
        # An array without values may say anything of its other dimensions.
        raise BadImport(f"{name} has a shape that an array can have, got {str(shape)[:80]}: {e}") from e


def read_keras(path: Path) -> Arrays:
    """Return the weights of a Keras 3 archive; its configuration, which could name code, is left alone."""
    try:
        with zipfile.ZipFile(path) as archive:
            if KERAS_WEIGHTS not in archive.namelist():
                raise BadImport(f"{path.name}: a .keras file holds {KERAS_WEIGHTS}, got {archive.namelist()[:6]}")
            info = archive.getinfo(KERAS_WEIGHTS)
            _check_members(path, archive.infolist())
            return _hdf5(io.BytesIO(archive.read(info)), path.name)
    except _BROKEN as e:
        raise BadImport(f"{path.name}: a .keras file is a zip archive: {e}") from e


def read_hdf5(path: Path) -> Arrays:
    """Return the weights of a Keras `.weights.h5`."""
    return _hdf5(path, path.name)


def _hdf5(source: Any, name: str) -> Arrays:
    """Every dataset by its path, and Keras's `vars` also by the layer's own name: `dense/0` for its first variable."""
    try:
        import h5py  # type: ignore[import-untyped] # ships no types
    except ImportError as e:
        raise BadImport(f"{name}: HDF5 is read with h5py, which comes with TensorFlow: {e}") from e
    arrays: Arrays = {}
    aliases: dict[str, list[str]] = {}
    try:
        with h5py.File(source, "r") as file:
            _walk(h5py, file, "", arrays, aliases, name, set())
    except (OSError, KeyError, ValueError, RuntimeError, TypeError) as e:
        raise BadImport(f"{name}: is no HDF5 file of weights: {e}") from e
    for alias, paths in aliases.items():
        if len(paths) == 1 and alias not in arrays:
            arrays[alias] = arrays[paths[0]]
    return arrays


def _walk(
    h5py: Any, group: Any, prefix: str, arrays: Arrays, aliases: dict[str, list[str]], name: str, seen: set[int]
) -> None:
    # Hard links can make a group its own child.
    address = int(h5py.h5o.get_info(group.id).addr)
    if address in seen or prefix.count("/") > 32 or len(seen) > MAX_ARRAYS:
        raise BadImport(f"{name}: groups are a tree of at most {MAX_ARRAYS}, 32 deep, got {prefix[-60:]}")
    seen.add(address)
    for key in group:
        if not isinstance(group.get(key, getlink=True), h5py.HardLink):
            raise BadImport(f"{name}: an HDF5 file stands alone, got a link at {prefix + key}")
        item = group[key]
        if isinstance(item, h5py.Group):
            _walk(h5py, item, f"{prefix}{key}/", arrays, aliases, name, seen)
            continue
        if item.external or item.is_virtual:
            raise BadImport(f"{name}: an HDF5 file stands alone, got outside values at {prefix + key}")
        if item.dtype.kind not in "fiub" or item.size > MAX_PARAMETERS or len(arrays) >= MAX_ARRAYS:
            raise BadImport(f"{name}: at most {MAX_PARAMETERS} numbers, got {item.dtype} {item.shape} at {prefix}{key}")
        arrays[prefix + key] = np.asarray(item[()])
        layer = group.attrs.get("name") if prefix.endswith("vars/") else None
        if isinstance(layer, str):
            aliases.setdefault(f"{layer}/{key}", []).append(prefix + key)


def _check_members(path: Path, infos: list[zipfile.ZipInfo]) -> None:
    other = [info for info in infos if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)]
    if other:
        raise BadImport(f"{path.name}: members are stored or deflated, got {other[0].compress_type}")
    members, size_bytes = len(infos), sum(info.file_size for info in infos)
    if members > MAX_ARRAYS or size_bytes > MAX_SOURCE_BYTES:
        raise BadImport(
            f"{path.name}: an archive holds at most {MAX_ARRAYS} members of {MAX_SOURCE_BYTES} bytes in sum, "
            f"got {members} of {size_bytes}"
        )


_READERS: Final[dict[str, Callable[[Path], Arrays]]] = {
    ".npz": read_npz,
    ".safetensors": read_safetensors,
    ".weights.h5": read_hdf5,
    ".keras": read_keras,
    ".pt": read_torch,
    ".pth": read_torch,
}
