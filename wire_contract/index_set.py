"""An index set: which values of the model a `shared` update speaks of. Public, and the same for every device.

A plan names it by hash. It is made from published versions and a seed alone (see `cloud_aggregator.index_sets`), so an
update says nothing by the places that it writes to.

File, little-endian:
    magic "EFI1" | n u32 | k u32 | body length u32 | zstd(body)
n is the model's number of values; the body is the k strictly ascending indices as canonical LEB128 gaps (see `leb128`).
The file's SHA-256 is its name. Decoding treats the bytes as hostile: every length and range is checked, decompression
is bounded by the declared size, which is bounded by k.
"""

import hashlib
import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wire_contract.entropy import compress, decompress
from wire_contract.errors import Malformed
from wire_contract.leb128 import MAX_BYTES, read_indices, write_indices
from wire_contract.messages import MAX_INDEX_SET_BYTES

MAGIC: Final = b"EFI1"
MAX_SIZE: Final = 1 << 27
MAX_INDICES: Final = 1 << 22
ID_BYTES: Final = 8

_HEADER = struct.Struct("<4sIII")


@dataclass(frozen=True, slots=True, eq=False)
class IndexSet:
    """k strictly ascending `indices` (int64, read-only) below `size`; `sha256` is the file's."""

    size: int
    indices: NDArray[np.int64]
    sha256: str

    @property
    def id(self) -> bytes:
        """The 8 bytes by which an update names its set."""
        return set_id(self.sha256)


def set_id(sha256: str) -> bytes:
    """Return the first 8 bytes of a set's hash."""
    return bytes.fromhex(sha256)[:ID_BYTES]


def encode_index_set(size: int, indices: NDArray[np.int64]) -> bytes:
    """Return the file of a set of `indices` of a model of `size` values; inverse of `decode_index_set`.

    Raises `Malformed` if they are not strictly ascending within the model, or too many.
    """
    if not 1 <= len(indices) <= min(size, MAX_INDICES) or size > MAX_SIZE:
        raise Malformed(f"1 <= k <= min(n, {MAX_INDICES}) and n <= {MAX_SIZE}, got k={len(indices)}, n={size}")
    if indices[0] < 0 or indices[-1] >= size or np.any(np.diff(indices) < 1):
        raise Malformed(f"indices ascend strictly within 0..{size - 1}, and do not here")
    body = write_indices(indices.astype(np.int64))
    data = _HEADER.pack(MAGIC, size, len(indices), len(body)) + compress(body, "zstd")
    if len(data) > MAX_INDEX_SET_BYTES:
        raise Malformed(f"an index set has at most {MAX_INDEX_SET_BYTES} bytes, got {len(data)}")
    return data


def decode_index_set(data: bytes) -> IndexSet:
    """Read a set's file. Raises `Malformed`, whatever the bytes; that its hash is the wanted one is the caller's."""
    if not _HEADER.size < len(data) <= MAX_INDEX_SET_BYTES:
        raise Malformed(f"an index set has {_HEADER.size + 1} to {MAX_INDEX_SET_BYTES} bytes, got {len(data)}")
    magic, size, count, body_bytes = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise Malformed(f"an index set begins with {MAGIC!r}, got {magic!r}")
    if size > MAX_SIZE or not 1 <= count <= min(size, MAX_INDICES):
        raise Malformed(f"1 <= k <= min(n, {MAX_INDICES}) and n <= {MAX_SIZE}, got k={count}, n={size}")
    if not count <= body_bytes <= MAX_BYTES * count:
        raise Malformed(f"{count} gaps take {count} to {MAX_BYTES * count} bytes, got {body_bytes}")
    indices = read_indices(decompress(data[_HEADER.size :], body_bytes, "zstd"), count, size)
    indices.flags.writeable = False
    return IndexSet(size, indices, hashlib.sha256(data).hexdigest())
