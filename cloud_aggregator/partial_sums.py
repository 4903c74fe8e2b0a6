"""The packed forms of a partial sum: which updates are in it, and the exact int64 sums.

The rules:
- members are row ids, ascending, each once: differences as little-endian int64, byte planes apart, zstd;
- sums are little-endian int64, byte planes apart, zstd: the low planes of an untouched value and the high planes of
  nearly all values are long runs of one byte;
- `members_sha256` is SHA-256 over (id as int64, the sealed bytes' SHA-256, weight as binary64), members ascending: it
  binds a version to what it was made of;
- unpacking checks every length before an array is made, so a damaged row is refused and never believed in part.
"""

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import zstandard
from numpy.typing import NDArray

from cloud_aggregator.buffer import MAX_UPDATES
from cloud_aggregator.errors import StorageFailed
from cloud_aggregator.records import PartialSums

_LEVEL = 1


@dataclass(frozen=True, slots=True)
class Member:
    """An accepted update in a sum: its row id, the SHA-256 (hex) of its sealed bytes, and its weight."""

    id: int
    sha256: str
    weight: float


def members_hash(members: Iterable[Member]) -> str:
    """Return the hash that binds a version to these updates, in whatever order they are given."""
    digest = hashlib.sha256(b"edge-federation members v1\n")
    for member in sorted(members, key=lambda each: each.id):
        digest.update(struct.pack("<q32sd", member.id, bytes.fromhex(member.sha256), member.weight))
    return digest.hexdigest()


def sums_hash(sums: NDArray[np.int64]) -> str:
    """Return the SHA-256 of the sums as little-endian int64."""
    return hashlib.sha256(sums.astype("<i8", copy=False).tobytes()).hexdigest()


def pack(population: str, version: int, members: Sequence[Member], sums: NDArray[np.int64]) -> PartialSums:
    """Return what is stored of `sums`, which `members` went into; `version` 0 while the round is open."""
    ids = np.array(sorted(member.id for member in members), dtype="<i8")
    return PartialSums(
        population=population,
        version=version,
        count=len(members),
        high_water=int(ids[-1]) if len(ids) else 0,
        members=_pack(np.diff(ids, prepend=0)),
        members_sha256=members_hash(members),
        sums=_pack(sums),
        sums_sha256=sums_hash(sums),
    )


def unpack_members(stored: PartialSums) -> list[int]:
    """Return the row ids, ascending. Raises `StorageFailed` where the row is damaged."""
    if not 0 <= stored.count <= MAX_UPDATES:
        raise StorageFailed(f"a sum is of 0 to {MAX_UPDATES} updates, the stored one says {stored.count}")
    steps = _unpack(stored.members, stored.count)
    if len(steps) and int(steps.min()) < 1:
        raise StorageFailed("the members of a stored sum rise, and do not here")
    numbers = np.cumsum(steps)
    # Steps whose sum leaves int64 come round to negative numbers.
    if len(numbers) and int(numbers.min()) < 1:
        raise StorageFailed("the members of a stored sum are row ids, and are not here")
    return [int(number) for number in numbers]


def unpack_sums(stored: PartialSums, size: int) -> NDArray[np.int64]:
    """Return the sums of a model of `size` values. Raises `StorageFailed` where the row is damaged."""
    sums = _unpack(stored.sums, size)
    if sums_hash(sums) != stored.sums_sha256:
        raise StorageFailed(f"the stored sums of {stored.population} {stored.version} do not hash to what is recorded")
    return sums


def _pack(values: NDArray[np.int64]) -> bytes:
    planes = np.ascontiguousarray(values.astype("<i8", copy=False)).view(np.uint8).reshape(-1, 8).T
    return zstandard.ZstdCompressor(level=_LEVEL).compress(planes.tobytes())


def _unpack(packed: bytes, count: int) -> NDArray[np.int64]:
    wanted = 8 * count
    try:
        if zstandard.frame_content_size(packed) != wanted:
            raise StorageFailed(f"{count} values take {wanted} bytes, the stored row says another number")
        raw = zstandard.ZstdDecompressor().decompress(packed, max_output_size=wanted) if wanted else b""
    except zstandard.ZstdError as e:
        raise StorageFailed(f"a stored row does not unpack: {e}") from e
    if len(raw) != wanted:
        raise StorageFailed(f"{count} values take {wanted} bytes, the stored row has {len(raw)}")
    planes = np.frombuffer(raw, np.uint8).reshape(8, -1)
    return np.ascontiguousarray(planes.T).view("<i8").reshape(-1).astype(np.int64, copy=False)
