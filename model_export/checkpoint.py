"""A starter checkpoint on disk: the fleet tensors as float16 in an .npz, checked before an array is made.

float16 halves the file; its rounding (2^-11 relative) is far below the int8 step that the export makes of it.
"""

import io
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_export.network import PRESETS, NetworkSize
from wire_contract.layout import Tensors
from wire_contract.manifest import MAX_PARAMETERS

MAX_CHECKPOINT_BYTES = 4 * MAX_PARAMETERS
_HEADER_ALLOWANCE_BYTES = 4096


class BadCheckpoint(Exception):  # noqa: N818 - named for what the file is
    """A checkpoint breaks its form; the message states the rule and the value."""


def save_checkpoint(path: Path, tensors: Tensors) -> None:
    """Write the tensors as float16; inverse of `load_checkpoint` up to rounding. The bytes depend on values only."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, value in tensors.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(value, dtype="<f2"), allow_pickle=False)
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
    except (zipfile.BadZipFile, EOFError, ValueError) as e:
        raise BadCheckpoint(f"{path}: a checkpoint is an .npz of float16 arrays: {e}") from e
    return tensors


def _check_members(archive: zipfile.ZipFile, size: NetworkSize, path: Path) -> None:
    members = {info.filename: info.file_size for info in archive.infolist()}
    if set(members) != {f"{name}.npy" for name in size.tensor_shapes}:
        raise BadCheckpoint(f"{path}: a checkpoint holds {', '.join(size.tensor_shapes)}, got {sorted(members)[:8]}")
    for name, shape in size.tensor_shapes.items():
        limit = 2 * int(np.prod(shape)) + _HEADER_ALLOWANCE_BYTES
        if members[f"{name}.npy"] > limit:
            got = members[f"{name}.npy"]
            raise BadCheckpoint(f"{path}: {name} of this preset takes at most {limit} bytes, got {got}{_hint(got)}")


def _hint(size_bytes: int) -> str:
    fits = [n for n, s in PRESETS.items() if abs(2 * s.words * s.width - size_bytes) <= _HEADER_ALLOWANCE_BYTES]
    return f" (which is the preset {fits[0]})" if fits else ""


def _read(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    member = io.BytesIO(archive.read(f"{name}.npy"))
    version = np.lib.format.read_magic(member)
    if version != (1, 0):
        raise BadCheckpoint(f"{name} is a version 1.0 .npy, got {version}")
    # The header is believed only after it is compared: numpy would allocate whatever shape it names.
    stated, by_columns, dtype = np.lib.format.read_array_header_1_0(member)
    if stated != shape or dtype != np.dtype("<f2") or (by_columns and len(shape) > 1):
        raise BadCheckpoint(f"{name} is float16 of shape {shape}, got {dtype} of {stated}")
    raw = member.read()
    if len(raw) != 2 * int(np.prod(shape)):
        raise BadCheckpoint(f"{name} has {2 * int(np.prod(shape))} bytes of values, got {len(raw)}")
    value = np.frombuffer(raw, "<f2").reshape(shape).astype(np.float32)
    if not np.isfinite(value).all():
        raise BadCheckpoint(f"weights are finite, got NaN or Inf in {name}")
    return value
