"""The aggregation kernel compiled by numba: gaps, codes, ring values and the weighted scatter without Python between.

The rules (see `aggregation_kernel`):
- `scan` and `unring` read and check every byte of the body, and write to arrays of their own; only if they say yes are
  the sums touched;
- a `topk` update has at most 2^bits different values, so value x weight is rounded once for each code and not for each
  entry: the table is made by the reference's own expression, hence the same bits, and the loop adds integers only;
- whatever is not understood at once (an unknown mode, a value above the bound, bytes that break a rule) goes to the
  reference kernel.

The loops are plain functions: without numba they run too, slowly, and say the same.
"""

import functools
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cloud_aggregator.aggregation_kernel import Kernel, KernelUnavailable, NumpyKernel
from cloud_aggregator.buffer import MAX_MAGNITUDE, Accumulator, check_room, check_weight, in_units
from wire_contract import codec
from wire_contract.codec import SparseVector
from wire_contract.entropy import ENTROPY_NAMES, decompress
from wire_contract.errors import ContractError
from wire_contract.index_set import ID_BYTES, IndexSet
from wire_contract.leb128 import MAX_BYTES
from wire_contract.messages import CodecPlan
from wire_contract.ring import Ring, check_ring

Bytes = NDArray[np.uint8]
Indices = NDArray[np.uint32]
Units = NDArray[np.int64]
Floats = NDArray[np.float64]

# The wire's header, its code widths and its bound on a level: the codec's docstring. A copy that went stale would only
# send more updates to the reference.
_HEADER: Final = struct.Struct("<4sBBBBIIfI")
_WIDTHS: Final = {0: 4, 1: 1, 2: 2, 8: 8}
_MAX_STEPS: Final = 126 * 16


def scan(body: Bytes, gap_bytes: int, count: int, size: int, bits: int, indices: Indices) -> bool:
    """Read `count` gaps from the first `gap_bytes` bytes into `indices`; say whether every rule of the body holds.

    Rules: canonical LEB128 of at most 4 bytes, all of `gap_bytes` used, indices below `size`, spare bits 0. The body is
    as long as gaps and codes together; the caller has checked that.
    """
    position = 0
    index = -1
    for j in range(count):
        if position >= gap_bytes:
            return False
        byte = int(body[position])
        position += 1
        gap = byte & 127
        shift = 7
        while byte >= 128:
            if position >= gap_bytes or shift > 21:
                return False
            byte = int(body[position])
            position += 1
            gap |= (byte & 127) << shift
            shift += 7
            if byte == 0:
                return False
        index += gap + 1
        if index >= size:
            return False
        indices[j] = index
    if position != gap_bytes:
        return False
    used = (count * bits) % 8
    return used == 0 or int(body[len(body) - 1]) >> used == 0


def add(sums: Units, indices: Indices, codes: Bytes, bits: int, table: Units) -> None:
    """Add `table[code]` at each index; the codes are packed low bits first, 8 // bits a byte."""
    count = len(indices)
    if bits == 4:
        for i in range(count >> 1):
            byte = codes[i]
            sums[indices[2 * i]] += table[byte & 15]
            sums[indices[2 * i + 1]] += table[byte >> 4]
        if count & 1:
            sums[indices[count - 1]] += table[codes[count >> 1] & 15]
        return
    each = 8 // bits
    mask = (1 << bits) - 1
    for j in range(count):
        sums[indices[j]] += table[(int(codes[j // each]) >> (bits * (j % each))) & mask]


def dequantize(indices: Indices, codes: Bytes, bits: int, levels: Floats, places: Units, values: Floats) -> None:
    """Write the indices as int64 and each code's value."""
    each = 8 // bits
    mask = (1 << bits) - 1
    for j in range(len(indices)):
        places[j] = indices[j]
        values[j] = levels[(int(codes[j // each]) >> (bits * (j % each))) & mask]


def unring(body: Bytes, width: int, largest: int, numbers: Units) -> bool:
    """Read one centered `width`-bit number for each place of `numbers`; say whether every rule of the ring holds.

    Rules: a number lies within `largest`, spare bits are 0. The body is as long as the numbers; the caller checked it.
    """
    mask = (1 << width) - 1
    half = 1 << (width - 1)
    held = 0
    held_bits = 0
    position = 0
    for j in range(len(numbers)):
        while held_bits < width:
            held |= int(body[position]) << held_bits
            position += 1
            held_bits += 8
        number = held & mask
        held >>= width
        held_bits -= width
        if number >= half:
            number -= mask + 1
        if number > largest or -number > largest:
            return False
        numbers[j] = number
    return held == 0


def scatter(sums: Units, indices: Units, units: Units) -> bool:
    """Add `units` at `indices`; say no, and add nothing, if an index lies outside the sums."""
    size = len(sums)
    for j in range(len(indices)):
        if not 0 <= indices[j] < size:
            return False
    for j in range(len(indices)):
        sums[indices[j]] += units[j]
    return True


@dataclass(frozen=True, slots=True)
class Opened:
    """A `topk` update whose every byte was checked: where its entries stand, their packed codes, each code's value."""

    indices: Indices
    codes: Bytes
    bits: int
    levels: Floats


@functools.lru_cache(maxsize=1024)
def _factors(step: int, bits: int) -> Floats:
    """Return value / scale of each code, from the codec's own table: exact, so scale x factor is the code's value."""
    positive = codec.level_magnitudes(1.0, step, 1 << (bits - 1))
    return np.concatenate([positive, -positive])


@dataclass(frozen=True, slots=True)
class Loops:
    """The loops of this module, compiled or not."""

    scan: Callable[[Bytes, int, int, int, int, Indices], bool]
    add: Callable[[Units, Indices, Bytes, int, Units], None]
    dequantize: Callable[[Indices, Bytes, int, Floats, Units, Floats], None]
    unring: Callable[[Bytes, int, int, Units], bool]
    scatter: Callable[[Units, Units, Units], bool]


PLAIN: Final = Loops(scan, add, dequantize, unring, scatter)


@dataclass(frozen=True, slots=True)
class CompiledKernel:
    """See the module. Make one with `load`; it holds no state of a round and may be shared by threads."""

    loops: Loops
    reference: Kernel = field(default_factory=NumpyKernel)

    @property
    def name(self) -> str:
        """See `Kernel`."""
        return "numba"

    @property
    def unavailable(self) -> str:
        """See `Kernel`."""
        return ""

    @classmethod
    def load(cls) -> "CompiledKernel":
        """Compile the loops, or read them from the cache. Raises `KernelUnavailable`."""
        try:
            import numba
        except Exception as e:
            # A numba that does not fit its numpy or its LLVM dies in ways of its own; all of them mean: use numpy.
            raise KernelUnavailable(f"numba cannot be imported: {type(e).__name__}: {e}") from e
        try:
            return cls(_compile(numba))
        except Exception as e:
            raise KernelUnavailable(f"numba {numba.__version__} does not compile the kernel: {e}") from e

    def decode(
        self, data: bytes, *, size: int, plan: CodecPlan | None = None, index_set: IndexSet | None = None
    ) -> SparseVector:
        """See `Kernel`."""
        opened = self._open(data, size, plan)
        if opened is not None:
            count = len(opened.indices)
            places, values = np.empty(count, np.int64), np.empty(count, np.float64)
            self.loops.dequantize(opened.indices, opened.codes, opened.bits, opened.levels, places, values)
            return SparseVector(size, places, values)
        shared = None if index_set is None else self._open_shared(data, size, plan, index_set)
        if shared is not None and index_set is not None:
            return SparseVector(size, index_set.indices, shared)
        return self.reference.decode(data, size=size, plan=plan, index_set=index_set)

    def fold(self, into: Accumulator, data: bytes, weight: float, *, index_set: IndexSet | None = None) -> None:
        """See `Kernel`."""
        check_room(into.count)
        check_weight(weight)
        if self._add(into.sums, data, weight, index_set):
            into.count += 1
        else:
            self.reference.fold(into, data, weight, index_set=index_set)

    def _add(self, sums: Units, data: bytes, weight: float, index_set: IndexSet | None) -> bool:
        """Add the update; or say no, with the sums as they were."""
        opened = self._open(data, len(sums), None)
        if opened is not None:
            # The first level is the scale, the largest; whether an entry has it is the reference's matter.
            if not opened.levels[0] <= MAX_MAGNITUDE:
                return False
            self.loops.add(sums, opened.indices, opened.codes, opened.bits, in_units(opened.levels, weight))
            return True
        values = None if index_set is None else self._open_shared(data, len(sums), None, index_set)
        if values is None or index_set is None or not np.abs(values).max() <= MAX_MAGNITUDE:
            return False
        return self.loops.scatter(sums, index_set.indices, in_units(values, weight))

    def _open(self, data: bytes, size: int, plan: CodecPlan | None) -> Opened | None:
        """Return a `topk` update, checked whole; None for all else: then the reference decides and says why."""
        if len(data) < _HEADER.size:
            return None
        magic, mode, entropy, step, width, n, k, scale, body_bytes = _HEADER.unpack_from(data)
        bits = _WIDTHS.get(width)
        if magic != codec.MAGIC or mode != codec.MODE_TOPK or bits is None or n != size or not 0 < scale < np.inf:
            return None
        if plan is not None and (codec.MODES.get(plan.mode) != mode or plan.bits != bits):
            return None
        if step < 1 or step * ((1 << (bits - 1)) - 1) > _MAX_STEPS or not 0 < k <= min(n, codec.MAX_KEPT):
            return None
        if plan is not None and k > codec.kept_count(plan, size):
            return None
        code_bytes = (k * bits + 7) // 8
        gap_bytes = body_bytes - code_bytes
        if not k <= gap_bytes <= MAX_BYTES * k:
            return None
        body = _decompress(data[_HEADER.size :], body_bytes, entropy)
        if body is None:
            return None
        raw = np.frombuffer(body, np.uint8)
        indices = np.empty(k, np.uint32)
        if not self.loops.scan(raw, gap_bytes, k, size, bits, indices):
            return None
        return Opened(indices, raw[gap_bytes:], bits, _factors(step, bits) * scale)

    def _open_shared(self, data: bytes, size: int, plan: CodecPlan | None, index_set: IndexSet) -> Floats | None:
        """Return the values of a `shared` update, checked whole; None for all else."""
        if len(data) < _HEADER.size:
            return None
        magic, mode, entropy, headroom, bits, n, k, unit, body_bytes = _HEADER.unpack_from(data)
        ring = Ring(unit, bits, headroom)
        if magic != codec.MAGIC or mode != codec.MODE_SHARED or entropy != 0 or n != size:
            return None
        try:
            check_ring(ring)
        except ContractError:
            return None
        if plan is not None and (codec.MODES.get(plan.mode) != mode or codec.ring_of(plan) != ring):
            return None
        start = _HEADER.size + ID_BYTES
        if (index_set.size, len(index_set.indices)) != (size, k) or data[_HEADER.size : start] != index_set.id:
            return None
        if not len(data) - _HEADER.size == body_bytes == ID_BYTES + ring.size_bytes(k):
            return None
        numbers = np.empty(k, np.int64)
        if not self.loops.unring(np.frombuffer(data, np.uint8, offset=start), ring.width, ring.largest, numbers):
            return None
        return numbers * np.float64(unit)


def _decompress(packed: bytes, size: int, entropy: int) -> bytes | None:
    """Return the body of exactly `size` bytes, or None."""
    name = ENTROPY_NAMES.get(entropy)
    try:
        return None if name is None else decompress(packed, size, name)
    except ContractError:
        return None


def _cache_folder() -> Path:
    """Return the user's own folder for compiled code: never site-packages, and nobody else's to write."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "edge-federation" / "kernels"


def _compile(numba: Any) -> Loops:
    """Return the loops compiled for their types; cached on disk where the user's cache folder can be written."""
    raw = numba.types.Array(numba.uint8, 1, "C", readonly=True)
    places = numba.types.Array(numba.int64, 1, "C", readonly=True)
    indices = numba.types.Array(numba.uint32, 1, "C")
    units = numba.types.Array(numba.int64, 1, "C")
    floats = numba.types.Array(numba.float64, 1, "C")
    integer, truth, nothing = numba.int64, numba.boolean, numba.void
    types = (
        truth(raw, integer, integer, integer, integer, indices),
        nothing(units, indices, raw, integer, units),
        nothing(indices, raw, integer, floats, units, floats),
        truth(raw, integer, integer, units),
        truth(units, places, units),
    )
    folder, before = _cache_folder(), numba.config.CACHE_DIR
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        numba.config.CACHE_DIR = str(folder)
        return _compile_all(numba, types, cache=True)
    except (OSError, RuntimeError):
        # No folder to write to (a read-only service account): compile anew at each start.
        return _compile_all(numba, types, cache=False)
    finally:
        numba.config.CACHE_DIR = before


def _compile_all(numba: Any, types: tuple[Any, ...], *, cache: bool) -> Loops:
    loops = (PLAIN.scan, PLAIN.add, PLAIN.dequantize, PLAIN.unring, PLAIN.scatter)
    return Loops(*(numba.njit(its, nogil=True, cache=cache)(loop) for its, loop in zip(types, loops, strict=True)))
