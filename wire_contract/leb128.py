"""Unsigned LEB128 of index gaps, whole arrays at a time.

The rules:
- a number lies in 0..2^28 - 1 and takes at most 4 bytes, 7 bits each, low bits first;
- it is written in its shortest form, so that one array has one stream of bytes;
- reading checks number of values, form and length before the array of values is made.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from wire_contract.errors import Malformed

MAX_BYTES: Final = 4


def write_leb128(numbers: NDArray[np.int64]) -> bytes:
    """Return unsigned LEB128 of numbers in 0..2^28-1, one after another; inverse of `read_leb128`."""
    count = 1 + (numbers >= 1 << 7) + (numbers >= 1 << 14) + (numbers >= 1 << 21)
    ends = np.cumsum(count)
    out = np.zeros(int(ends[-1]) if len(ends) else 0, dtype=np.uint8)
    starts = ends - count
    for place in range(MAX_BYTES):
        has = count > place
        more = (count > place + 1)[has]
        out[starts[has] + place] = ((numbers[has] >> (7 * place)) & 127) | (more * 128)
    return out.tobytes()


def read_leb128(data: bytes, count: int) -> NDArray[np.int64]:
    """Read exactly `count` canonical LEB128 numbers of at most 4 bytes that fill `data`. Raises `Malformed`."""
    raw = np.frombuffer(data, dtype=np.uint8)
    ends = np.flatnonzero(raw < 128)
    if len(ends) != count or (len(raw) and (count == 0 or ends[-1] != len(raw) - 1)):
        raise Malformed(f"{count} gaps were declared, the bytes hold {len(ends)}")
    if count == 0:
        return np.zeros(0, dtype=np.int64)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > MAX_BYTES:
        raise Malformed(f"a gap has at most {MAX_BYTES} bytes, got {lengths.max()}")
    if np.any((raw[ends] == 0) & (lengths > 1)):
        raise Malformed("a gap is written in its shortest form, got a padded one")
    numbers = np.zeros(count, dtype=np.int64)
    for place in range(int(lengths.max())):
        has = lengths > place
        numbers[has] |= (raw[starts[has] + place].astype(np.int64) & 127) << (7 * place)
    return numbers


def write_indices(indices: NDArray[np.int64]) -> bytes:
    """Return strictly ascending indices as gaps: the first index, then index - previous - 1."""
    return write_leb128(np.diff(indices, prepend=-1) - 1)


def read_indices(data: bytes, count: int, size: int) -> NDArray[np.int64]:
    """Read `count` strictly ascending indices below `size`; inverse of `write_indices`. Raises `Malformed`."""
    indices = np.cumsum(read_leb128(data, count) + 1) - 1
    if count and indices[-1] >= size:
        raise Malformed(f"indices lie below {size}, got {indices[-1]}")
    return indices
