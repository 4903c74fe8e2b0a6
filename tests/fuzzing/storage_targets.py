"""Fuzz targets of what is read back from a disk or a database: residuals, kept vectors, partial sums.

A damaged row must be refused, or mean what its bytes say; it must never be believed in part.
"""

import math
import struct
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import msgspec
import numpy as np

from cloud_aggregator import partial_sums
from cloud_aggregator.errors import StorageFailed as RowBroken
from edge_runtime import residual
from edge_runtime.adapters import vectors
from edge_runtime.ports import StorageFailed
from tests.fuzzing.target import Broken, Target
from wire_contract.codec import SparseVector

SIZE = 40
_VALUES = np.linspace(-1, 1, 23, dtype=np.float32) ** 3
RESIDUAL = residual.pack(residual.Residual(7, _VALUES))
KEPT = vectors.pack_kept(SparseVector(SIZE, np.array([1, 5, 39]), np.array([0.5, -2.0, 3.0])))
MEMBERS = [partial_sums.Member(number, f"{number:064x}", 0.5) for number in (3, 4, 9, 200)]
SUMS = np.arange(SIZE, dtype=np.int64) * -(1 << 33)
STORED = partial_sums.pack("toy", 0, MEMBERS, SUMS)


def _overwrite(data: bytes, at: int, form: str, draw: Callable[[Random], Any]) -> Callable[[Random], bytes]:
    def make(rng: Random) -> bytes:
        out = bytearray(data)
        struct.pack_into(form, out, at, draw(rng))
        return bytes(out)

    return make


RESIDUAL_BROKEN = (
    Broken("magic", "is another", _overwrite(RESIDUAL, 0, "4s", lambda rng: rng.choice((b"EFR2", b"EFU1", bytes(4))))),
    Broken(
        "exponent", "is out of range", _overwrite(RESIDUAL, 8, "<h", lambda rng: rng.choice((201, -201, 2**15 - 1)))
    ),
    Broken("spare", "is not 0", _overwrite(RESIDUAL, 10, "<H", lambda rng: rng.randrange(1, 65_536))),
    Broken("count", "lies", _overwrite(RESIDUAL, 12, "<I", lambda rng: rng.choice((0, 22, 24, 2**31, 2**32 - 1)))),
    Broken(
        "values",
        "one is not finite",
        _overwrite(RESIDUAL, 24 + 2 * 3, "<H", lambda rng: rng.choice((0x7C00, 0xFC00, 0x7E01))),
    ),
    Broken("residual", "is cut", lambda rng: RESIDUAL[: rng.randrange(len(RESIDUAL))]),
    Broken("residual", "is longer", lambda rng: RESIDUAL + bytes(1 + rng.randrange(4))),
)


def judge_residual(data: bytes, value: Any) -> str:
    base_version, exponent, _, count = struct.unpack_from("<IhHI", data, 4)
    halves = struct.unpack_from(f"<{count}e", data, 24)
    if len(data) != 24 + 2 * count or not all(map(math.isfinite, halves)):
        return "length or values break a rule"
    wanted = [float(np.float32(math.ldexp(half, exponent))) for half in halves]
    return "" if (value.base_version, value.vector.tolist()) == (base_version, wanted) else f"it says {wanted[:3]}"


KEPT_BROKEN = (
    Broken("kept vector", "is cut", lambda rng: KEPT[: rng.choice((1, 11, 13, 35))]),
    Broken("index", "lies beyond", _overwrite(KEPT, 12, "<I", lambda rng: rng.choice((SIZE, SIZE + 1, 2**32 - 1)))),
)


def judge_kept(data: bytes, value: Any) -> str:
    rows = list(struct.iter_unpack("<Id", data))
    same = struct.pack(f"<{len(rows)}d", *(row[1] for row in rows)) == value.values.astype("<f8").tobytes()
    good = same and [row[0] for row in rows] == value.indices.tolist() and all(row[0] < SIZE for row in rows)
    return "" if good else "it says something else"


def _row(**changes: Any) -> bytes:
    fields = {"count": STORED.count, "members": STORED.members, "sums": STORED.sums, **changes}
    return msgspec.msgpack.encode([fields["count"], fields["members"], fields["sums"]])


def decode_row(data: bytes) -> Any:
    """The damaged columns of a row: count, members, sums; the hashes stand in the row undamaged."""
    try:
        count, members, sums = msgspec.msgpack.decode(data, type=tuple[int, bytes, bytes])
    except (msgspec.DecodeError, ValueError) as e:
        raise RowBroken("no row") from e
    stored = replace(STORED, count=count, members=members, sums=sums)
    return partial_sums.unpack_members(stored), partial_sums.unpack_sums(stored, SIZE)


def judge_row(data: bytes, value: Any) -> str:
    members, sums = value
    rising = all(a < b for a, b in zip([0, *members], members, strict=False))
    return "" if rising and sums.tolist() == SUMS.tolist() else "the sums are others"


def _frame(count: int) -> bytes:
    return partial_sums.pack("toy", 0, [], np.ones(count, np.int64)).sums


ROW_BROKEN = (
    Broken("count", "is negative or huge", lambda rng: _row(count=rng.choice((-1, 2**20 + 1, 2**40)))),
    Broken("count", "is another", lambda rng: _row(count=rng.choice((1, 3, 5, 1_000)))),
    Broken("members", "are no frame", lambda rng: _row(members=rng.randbytes(rng.randrange(40)))),
    Broken("members", "are cut", lambda rng: _row(members=STORED.members[: rng.randrange(len(STORED.members))])),
    Broken("sums", "are no frame", lambda rng: _row(sums=rng.randbytes(rng.randrange(40)))),
    Broken("sums", "are cut", lambda rng: _row(sums=STORED.sums[: rng.randrange(len(STORED.sums))])),
    Broken("sums", "are of another size", lambda rng: _row(sums=_frame(rng.choice((1, SIZE - 1, SIZE + 1, 4_000))))),
    Broken("sums", "are others", lambda rng: _row(sums=_frame(SIZE))),
)


def targets() -> list[Target]:
    """Every reader of stored bytes."""
    return [
        Target("residual", (RESIDUAL,), residual.unpack, judge_residual, RESIDUAL_BROKEN, refusals=(StorageFailed,)),
        Target("kept vector", (KEPT,), lambda data: vectors.unpack_kept(data, SIZE), judge_kept, KEPT_BROKEN,
               refusals=(StorageFailed,)),
        Target("partial sums", (_row(),), decode_row, judge_row, ROW_BROKEN, refusals=(RowBroken,)),
    ]  # fmt: skip
