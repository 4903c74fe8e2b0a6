"""Accepted updates that no step has used yet, as one exact sum.

The rules (design 8, ADR 2):
- an entry is value x weight in binary64, rounded once, half to even, to a multiple of 2^-32 and added as int64;
- |value| <= 2^6, 0 < weight <= 1, at most 2^20 updates: 6 + 32 + 20 = 58 bits and a sign, no sum can overflow;
- integer addition has no order: any order of arrival and any tree of shards give bitwise the same sum;
- the divisor at the end is the goal count, never what clients report.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wire_contract.codec import SparseVector

UNIT_BITS: Final = 32
MAX_MAGNITUDE: Final = 64.0
MAX_UPDATES: Final = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Buffer:
    """int64 sums in units of 2^-32, one a model value, and how many updates are in them."""

    sums: NDArray[np.int64]
    count: int = 0

    @classmethod
    def empty(cls, size: int) -> "Buffer":
        """Return the buffer of a model of `size` values that holds nothing."""
        return cls(np.zeros(size, dtype=np.int64))


def fold(buffer: Buffer, vector: SparseVector, weight: float) -> Buffer:
    """Return the buffer with one admitted update added. Raises `ValueError` where a bound above does not hold."""
    if vector.size != len(buffer.sums):
        raise ValueError(f"the buffer holds {len(buffer.sums)} values, the update {vector.size}")
    if not 0.0 < weight <= 1.0:
        raise ValueError(f"a weight is above 0 and at most 1, got {weight}")
    if buffer.count >= MAX_UPDATES:
        raise ValueError(f"a buffer holds at most {MAX_UPDATES} updates")
    # Written so that a NaN fails it too.
    if len(vector.values) and not float(np.max(np.abs(vector.values))) <= MAX_MAGNITUDE:
        raise ValueError(f"a value lies within {MAX_MAGNITUDE}, got {np.max(np.abs(vector.values))}")
    sums = buffer.sums.copy()
    # The codec's indices are strictly ascending, so no position is added to twice.
    sums[vector.indices] += np.rint(vector.values * weight * float(1 << UNIT_BITS)).astype(np.int64)
    return Buffer(sums, buffer.count + 1)


def merge(a: Buffer, b: Buffer) -> Buffer:
    """Return the buffer of both shards' updates."""
    if len(a.sums) != len(b.sums):
        raise ValueError(f"buffers of one model have one size, got {len(a.sums)} and {len(b.sums)}")
    if a.count + b.count > MAX_UPDATES:
        raise ValueError(f"a buffer holds at most {MAX_UPDATES} updates, got {a.count + b.count}")
    return Buffer(a.sums + b.sums, a.count + b.count)


def close(buffer: Buffer, goal_count: int) -> NDArray[np.float32]:
    """Return the mean delta, float32: sum / 2^32 / goal count, in float64 with one cast at the end."""
    if goal_count < 1:
        raise ValueError(f"a goal count is at least 1, got {goal_count}")
    return (buffer.sums.astype(np.float64) / float(1 << UNIT_BITS) / float(goal_count)).astype(np.float32)
