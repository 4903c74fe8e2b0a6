"""The residual: what updates have left behind on this device, and what becomes of it. Pure.

Error feedback (Seide et al. 2014; Karimireddy et al. 2019), with a rule for devices that come seldom:
- added: a residual goes out with the next training's delta, multiplied by the plan's `residual_keep` and cut to the
  plan's clip norm. It is dropped instead if it is too old: its age is the new base's version minus the version of the
  base that it was last made with, and the plan's `residual_versions` is the highest that counts (0: any);
- left: what an update did not send is the whole new residual, its norm at most the clip norm (`codec`);
- refused as stale, or never sent: all that the update said returns, `take_back`; nothing of that night is lost;
- refused otherwise: what the update said is discarded. It would be refused again, and again after that;
- accepted, or a duplicate: what it said is in the buffer, and is discarded here;
- a new base changes nothing: a residual is a wish for a direction, and carries over. Another layout drops it, and so
  does a plan with another basis than the one whose axes it is in.

On the disk (little-endian): magic "EFR1" | base version u32 | exponent i16 | 0 u16 | n u32 | the first 8 bytes of the
basis's hash, zeros for none | n float16. A value is the float16 times 2^exponent, chosen so that the largest lies just
below 2^15: half the room of float32, each value within 2^-11 of itself down to 2^-29 of the largest. Rounding may
lengthen the vector by as much, hence the cut when it is added.
"""

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np

from edge_runtime.ports import StorageFailed
from wire_contract.basis import NO_BASIS, basis_id
from wire_contract.codec import SparseVector, cap_norm
from wire_contract.layout import Vector
from wire_contract.messages import Plan

MAGIC: Final = b"EFR1"
_HEADER = struct.Struct("<4sIhHI8s")
_TOP_EXPONENT = 15


@dataclass(frozen=True, slots=True, eq=False)
class Residual:
    """A float32 vector in layout order, the version of the base that it was last made with, and the id of the basis
    whose axes it is in."""

    base_version: int
    vector: Vector
    basis: bytes = NO_BASIS


def age(residual: Residual, base_version: int) -> int:
    """Return how many versions the new base is ahead of the residual's; never negative."""
    return max(0, base_version - residual.base_version)


def carry(residual: Residual | None, base_version: int, plan: Plan) -> Vector | None:
    """Return what is added to the delta of a training that began at `base_version`; None: nothing."""
    if residual is None or plan.residual_keep == 0.0 or residual.basis != basis_id(plan.codec.basis):
        return None
    if plan.residual_versions and age(residual, base_version) > plan.residual_versions:
        return None
    kept = residual.vector
    if plan.residual_keep != 1.0:
        kept = (kept * np.float32(plan.residual_keep)).astype(np.float32)
    return cap_norm(kept, plan.clip_norm)


def take_back(
    residual: Residual | None, sent: SparseVector, base_version: int, clip_norm: float, basis: bytes = NO_BASIS
) -> Residual:
    """Return the residual after an update that came to nothing: `sent` is all that it said, `base_version` its base.

    `basis` is the update's; a residual in other axes could not be added to it, and is dropped.
    """
    said = sent.dense()
    if residual is None or residual.basis != basis:
        return Residual(base_version, cap_norm(said, clip_norm), basis)
    return Residual(max(residual.base_version, base_version), cap_norm(residual.vector + said, clip_norm), basis)


def pack(residual: Residual) -> bytes:
    """Return the bytes for the disk; inverse of `unpack` up to rounding to float16."""
    vector = residual.vector
    largest = float(np.max(np.abs(vector))) if len(vector) else 0.0
    exponent = int(np.frexp(largest)[1]) - _TOP_EXPONENT if largest else 0
    halves = np.ldexp(vector, -exponent).astype("<f2")
    return _HEADER.pack(MAGIC, residual.base_version, exponent, 0, len(vector), residual.basis) + halves.tobytes()


def unpack(data: bytes) -> Residual:
    """Return the residual in these bytes. Raises `StorageFailed` if they hold none."""
    if len(data) < _HEADER.size:
        raise StorageFailed(f"a residual has at least {_HEADER.size} bytes, got {len(data)}")
    magic, base_version, exponent, spare, count, basis = _HEADER.unpack_from(data)
    if magic != MAGIC or spare != 0 or not -200 <= exponent <= 200:
        raise StorageFailed(f"a residual begins with {MAGIC!r} and an exponent within 200, got {magic!r}, {exponent}")
    if len(data) != _HEADER.size + 2 * count:
        raise StorageFailed(f"{count} values take {2 * count} bytes, got {len(data) - _HEADER.size}")
    halves = np.frombuffer(data, "<f2", count=count, offset=_HEADER.size)
    # What is not finite is found below, and needs no warning on stderr.
    with np.errstate(over="ignore", invalid="ignore"):
        vector = np.ldexp(halves.astype(np.float32), exponent)
    if not np.isfinite(vector).all():
        raise StorageFailed("a residual is finite, got NaN or Inf")
    return Residual(base_version, vector, basis)
