"""Accepted updates that no step has used yet, as one exact sum.

The rules (design 8, ADR 2):
- an entry is value x weight in binary64, rounded once, half to even, to a multiple of 2^-32 and added as int64;
- |value| <= 2^6, 0 < weight <= 1, at most 2^20 updates: 6 + 32 + 20 = 58 bits and a sign, no sum can overflow;
- integer addition has no order: any order of arrival and any tree of shards give bitwise the same sum;
- the divisor at the end is the goal count, never what clients report.

`Buffer` is the value: `fold` and `merge` give a new one. `Accumulator` is the same sum in one array that is added to in
place, for whoever folds many: memory stays that of the model, and what went in can be taken out again, exactly.
"""

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from wire_contract.codec import SparseVector

UNIT_BITS: Final = 32
MAX_MAGNITUDE: Final = 64.0
MAX_UPDATES: Final = 1 << 20

Sums = NDArray[np.int64]


class Summed(Protocol):
    """What `close` and `merge` need to know of a buffer or an accumulator."""

    @property
    def sums(self) -> Sums:
        """int64 sums in units of 2^-32, one a model value."""

    @property
    def count(self) -> int:
        """How many updates are in them."""


@dataclass(frozen=True, slots=True, eq=False)
class Buffer:
    """int64 sums in units of 2^-32, one a model value, and how many updates are in them."""

    sums: Sums
    count: int = 0

    @classmethod
    def empty(cls, size: int) -> "Buffer":
        """Return the buffer of a model of `size` values that holds nothing."""
        return cls(np.zeros(size, dtype=np.int64))


@dataclass(slots=True, eq=False)
class Accumulator:
    """A buffer that is added to in place. Its array has one owner: hand out `value()`, never `sums`, to be kept.

    An update that breaks a bound raises `ValueError` before anything is written. When the transaction around a fold
    fails, `unfold` with the same arguments brings back the very sums that were there (integers: nothing is lost).
    """

    sums: Sums
    count: int = 0

    @classmethod
    def empty(cls, size: int) -> "Accumulator":
        """Return the accumulator of a model of `size` values that holds nothing."""
        return cls(np.zeros(size, dtype=np.int64))

    @classmethod
    def of(cls, buffer: Summed) -> "Accumulator":
        """Return an accumulator that goes on from a copy of `buffer`."""
        return cls(buffer.sums.copy(), buffer.count)

    def fold(self, vector: SparseVector, weight: float) -> None:
        """Add one admitted update. Raises `ValueError` where a bound of this module does not hold."""
        check_room(self.count)
        # The codec's indices are strictly ascending, so no position is added to twice.
        self.sums[vector.indices] += entries(len(self.sums), vector, weight)
        self.count += 1

    def unfold(self, vector: SparseVector, weight: float) -> None:
        """Take out an update that was folded with this weight; inverse of `fold`."""
        if self.count < 1:
            raise ValueError("an empty buffer holds no update that could be taken out")
        self.sums[vector.indices] -= entries(len(self.sums), vector, weight)
        self.count -= 1

    def merge(self, other: Summed) -> None:
        """Add another shard's sums."""
        _check_merge(self, other)
        self.sums += other.sums
        self.count += other.count

    def value(self) -> Buffer:
        """Return the sums as they are now, as a value of its own."""
        return Buffer(self.sums.copy(), self.count)


def entries(size: int, vector: SparseVector, weight: float) -> Sums:
    """Return an update's int64 entries, one for each of its indices. Raises `ValueError` if a bound does not hold."""
    if vector.size != size:
        raise ValueError(f"the buffer holds {size} values, the update {vector.size}")
    check_weight(weight)
    # Written so that a NaN fails it too.
    if len(vector.values) and not float(np.max(np.abs(vector.values))) <= MAX_MAGNITUDE:
        raise ValueError(f"a value lies within {MAX_MAGNITUDE}, got {np.max(np.abs(vector.values))}")
    return in_units(vector.values, weight)


def in_units(values: NDArray[np.float64], weight: float) -> Sums:
    """Return round-half-even(value x weight x 2^32), the one rounding that an entry gets."""
    return np.rint(values * weight * float(1 << UNIT_BITS)).astype(np.int64)


def check_weight(weight: float) -> None:
    """Raise `ValueError` unless 0 < weight <= 1; a NaN fails it too."""
    if not 0.0 < weight <= 1.0:
        raise ValueError(f"a weight is above 0 and at most 1, got {weight}")


def check_room(count: int) -> None:
    """Raise `ValueError` if a buffer of `count` updates takes no other one."""
    if count >= MAX_UPDATES:
        raise ValueError(f"a buffer holds at most {MAX_UPDATES} updates")


def fold(buffer: Buffer, vector: SparseVector, weight: float) -> Buffer:
    """Return the buffer with one admitted update added. Raises `ValueError` where a bound above does not hold.

    Copies the sums, so that the old buffer stays: an `Accumulator` is for many updates.
    """
    whole = Accumulator.of(buffer)
    whole.fold(vector, weight)
    return Buffer(whole.sums, whole.count)


def merge(a: Summed, b: Summed) -> Buffer:
    """Return the buffer of both shards' updates."""
    _check_merge(a, b)
    return Buffer(a.sums + b.sums, a.count + b.count)


def _check_merge(a: Summed, b: Summed) -> None:
    if len(a.sums) != len(b.sums):
        raise ValueError(f"buffers of one model have one size, got {len(a.sums)} and {len(b.sums)}")
    if a.count + b.count > MAX_UPDATES:
        raise ValueError(f"a buffer holds at most {MAX_UPDATES} updates, got {a.count + b.count}")


def close(buffer: Summed, goal_count: int) -> NDArray[np.float32]:
    """Return the mean delta, float32: sum / 2^32 / goal count, in float64 with one cast at the end."""
    if goal_count < 1:
        raise ValueError(f"a goal count is at least 1, got {goal_count}")
    return (buffer.sums.astype(np.float64) / float(1 << UNIT_BITS) / float(goal_count)).astype(np.float32)
