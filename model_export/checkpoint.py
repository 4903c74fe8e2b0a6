"""A starter checkpoint on disk: the fleet tensors in an .npz, checked before an array is made.

What the repository ships is float16, which halves the file; its rounding (2^-11 relative) is far below the int8 step
that the export makes of it. What is imported stays float32, so that its logits are the source's.
"""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from model_export.broken_archive import BROKEN_ARCHIVE
from model_export.network import EMBEDDING, PRESETS, PROJECTION, NetworkSize
from wire_contract.layout import Tensors
from wire_contract.manifest import MAX_PARAMETERS

MAX_CHECKPOINT_BYTES = 4 * MAX_PARAMETERS
DTYPES: dict[str, np.dtype[np.floating]] = {"float16": np.dtype("<f2"), "float32": np.dtype("<f4")}
_HEADER_ALLOWANCE_BYTES = 4096


class BadCheckpoint(Exception):  # noqa: N818 - named for what the file is
    """A checkpoint breaks its form; the message states the rule and the value."""


def save_checkpoint(path: Path, tensors: Tensors, dtype: Literal["float16", "float32"] = "float16") -> None:
    """Write the tensors; inverse of `load_checkpoint` up to float16's rounding. The bytes depend on values only."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, value in tensors.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(value, dtype=DTYPES[dtype]), allow_pickle=False)
            # A fixed date: numpy's own savez stamps the time, so that equal weights would make unequal files.
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, member.getvalue())


def load_checkpoint(path: Path, size: NetworkSize) -> Tensors:
    """Return the float32 tensors of `size`. Raises `BadCheckpoint`, or `OSError` where the file cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(archive, size, path)
            tensors = {name: _read(archive, name, shape) for name, shape in size.tensor_shapes.items()}
    except BROKEN_ARCHIVE as e:
        raise BadCheckpoint(f"{path}: a checkpoint is an .npz of float16 arrays, or of float32 ones: {e}") from e
    return tensors


def checkpoint_size(path: Path) -> NetworkSize:
    """Return the size that a checkpoint's shapes state; only headers are read. Raises `BadCheckpoint`, `OSError`."""
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in (EMBEDDING, PROJECTION):
                with archive.open(f"{name}.npy") as member:
                    start = io.BytesIO(member.read(_HEADER_ALLOWANCE_BYTES))
                shapes[name] = _header(start, name)[0]
        if any(len(shape) != 2 for shape in shapes.values()):
            raise BadCheckpoint(f"{path}: {EMBEDDING} and {PROJECTION} are matrices, got {shapes}")
        return NetworkSize(words=shapes[EMBEDDING][0], width=shapes[EMBEDDING][1], cells=shapes[PROJECTION][1])
    except (*BROKEN_ARCHIVE, KeyError) as e:
        raise BadCheckpoint(f"{path}: a checkpoint is an .npz of float16 arrays, or of float32 ones: {e}") from e


def _check_members(archive: zipfile.ZipFile, size: NetworkSize, path: Path) -> None:
    members = {info.filename: info.file_size for info in archive.infolist()}
    if set(members) != {f"{name}.npy" for name in size.tensor_shapes}:
        raise BadCheckpoint(f"{path}: a checkpoint holds {', '.join(size.tensor_shapes)}, got {sorted(members)[:8]}")
    for name, shape in size.tensor_shapes.items():
        limit = 4 * int(np.prod(shape)) + _HEADER_ALLOWANCE_BYTES
        if members[f"{name}.npy"] > limit:
            got = members[f"{name}.npy"]
            raise BadCheckpoint(f"{path}: {name} of this size takes at most {limit} bytes, got {got}{_hint(members)}")


def _hint(members: Mapping[str, int]) -> str:
    for name, size in PRESETS.items():
        for dtype in DTYPES.values():
            wanted = {f"{n}.npy": dtype.itemsize * int(np.prod(shape)) for n, shape in size.tensor_shapes.items()}
            if all(0 <= members[n] - size_bytes <= _HEADER_ALLOWANCE_BYTES for n, size_bytes in wanted.items()):
                return f" (which is the preset {name})"
    return ""


def _read(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    member = io.BytesIO(archive.read(f"{name}.npy"))
    # The header is believed only after it is compared: numpy would allocate whatever shape it names.
    stated, by_columns, dtype = _header(member, name)
    if stated != shape or dtype not in DTYPES.values() or (by_columns and len(shape) > 1):
        raise BadCheckpoint(f"{name} is float16 of shape {shape}, or float32, got {dtype} of {stated}")
    raw = member.read()
    if len(raw) != dtype.itemsize * int(np.prod(shape)):
        raise BadCheckpoint(f"{name} has {dtype.itemsize * int(np.prod(shape))} bytes of values, got {len(raw)}")
    value = np.frombuffer(raw, dtype).reshape(shape).astype(np.float32)
    if not np.isfinite(value).all():
        raise BadCheckpoint(f"weights are finite, got NaN or Inf in {name}")
    return value


def _header(member: io.BytesIO, name: str) -> tuple[tuple[int, ...], bool, "np.dtype[np.generic]"]:
    version = np.lib.format.read_magic(member)
    if version != (1, 0):
        raise BadCheckpoint(f"{name} is a version 1.0 .npy, got {version}")
    shape, by_columns, dtype = np.lib.format.read_array_header_1_0(member)
    return shape, by_columns, dtype
