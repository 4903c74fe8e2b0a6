"""The fixed ring in which `shared` updates are written, so that they can be summed before anybody reads one.

The rules:
- a value is q x unit, q an integer within +-(2^(b-1) - 1); rounding is to the nearest, half to even; what lies beyond
  saturates;
- q is written modulo 2^w, w = b + h <= 32, h the headroom: the sum of up to 2^h updates, modulo 2^w and in any order,
  is the sum of their q, exactly (2^h x (2^(b-1) - 1) < 2^(w-1)). That is what secure aggregation adds up under masks;
- numbers are packed low bits first, without gaps: ceil(k x w / 8) bytes, the spare bits of the last byte are 0. The
  length depends on k and w alone, never on the values.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wire_contract.errors import Malformed
from wire_contract.norm import l2_norm

MIN_VALUE_BITS: Final = 2
MAX_VALUE_BITS: Final = 16
MAX_HEADROOM_BITS: Final = 20
MAX_WIDTH: Final = 32


@dataclass(frozen=True, slots=True)
class Ring:
    """`unit` is the public quantization step: a float32, so that q x unit is exact in binary64."""

    unit: float
    bits: int
    headroom_bits: int = 0

    @property
    def width(self) -> int:
        """Bits that one value takes on the wire."""
        return self.bits + self.headroom_bits

    @property
    def largest(self) -> int:
        """The largest q of one update."""
        return (1 << (self.bits - 1)) - 1

    @property
    def summands(self) -> int:
        """How many updates can be added without a sum leaving the ring."""
        return 1 << self.headroom_bits

    def size_bytes(self, count: int) -> int:
        """Bytes that `count` values take."""
        return (count * self.width + 7) // 8


def check_ring(ring: Ring) -> None:
    """Raise `Malformed` unless every bound above holds."""
    if not MIN_VALUE_BITS <= ring.bits <= MAX_VALUE_BITS:
        raise Malformed(f"a ring value has {MIN_VALUE_BITS} to {MAX_VALUE_BITS} bits, got {ring.bits}")
    if not 0 <= ring.headroom_bits <= MAX_HEADROOM_BITS:
        raise Malformed(f"a ring has 0 to {MAX_HEADROOM_BITS} bits of headroom, got {ring.headroom_bits}")
    if ring.width > MAX_WIDTH:
        raise Malformed(f"bits and headroom are at most {MAX_WIDTH} together, got {ring.width}")
    # 2^-149 is float32's smallest: a double below it would be written as 0.
    if not (np.isfinite(ring.unit) and 0 < ring.unit <= 1e6 and float(np.float32(ring.unit)) == ring.unit):
        raise Malformed(f"a unit is a positive float32 of at most 1e6, got {ring.unit}")


def quantize(values: NDArray[np.float64], ring: Ring, limit: float) -> NDArray[np.int64]:
    """Return q of each value, such that the L2 norm of q x unit is at most `limit`.

    The real values are scaled into the limit first, so that small ones still round as part of a shorter vector; where
    rounding lengthens the result they are scaled down further until it holds.
    """
    norm = l2_norm(values)
    share = 1.0 if norm <= limit else limit / norm
    while True:
        q = np.clip(np.rint(values * share / ring.unit), -ring.largest, ring.largest).astype(np.int64)
        length = ring.unit * l2_norm(q)
        if length <= limit:
            return q
        # At least a thousandth: near a rounding border the ratio alone might move nothing.
        share *= min(limit / length, 1.0 - 2.0**-10)


def pack(numbers: NDArray[np.int64], ring: Ring) -> bytes:
    """Return numbers modulo 2^w, packed low bits first; inverse of `unpack`. Any integers may be given."""
    lifted = (numbers & ((1 << ring.width) - 1)).astype("<u4")
    bits = np.unpackbits(lifted.view(np.uint8).reshape(-1, 4), axis=1, count=ring.width, bitorder="little")
    return np.packbits(bits, bitorder="little").tobytes()


def unpack(data: bytes, count: int, ring: Ring) -> NDArray[np.int64]:
    """Return `count` centered numbers in -2^(w-1)..2^(w-1)-1. Raises `Malformed` on a wrong length or a spare bit."""
    if len(data) != ring.size_bytes(count):
        raise Malformed(f"{count} values of {ring.width} bits take {ring.size_bytes(count)} bytes, got {len(data)}")
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8), bitorder="little")
    if bits[count * ring.width :].any():
        raise Malformed(f"the {len(bits) - count * ring.width} spare bits are 0, got others")
    lifted = np.packbits(bits[: count * ring.width].reshape(count, ring.width), axis=1, bitorder="little")
    padded = np.zeros((count, 4), dtype=np.uint8)
    padded[:, : lifted.shape[1]] = lifted
    numbers = padded.reshape(-1).view("<u4").astype(np.int64)
    return np.where(numbers >= 1 << (ring.width - 1), numbers - (1 << ring.width), numbers)


def read_values(data: bytes, count: int, ring: Ring) -> NDArray[np.int64]:
    """Return the q of one update: as `unpack`, and every one within the value range. Raises `Malformed`."""
    numbers = unpack(data, count, ring)
    beyond = np.abs(numbers) > ring.largest
    if beyond.any():
        raise Malformed(f"a value lies within {ring.largest} units, got {numbers[np.argmax(beyond)]}")
    return numbers
