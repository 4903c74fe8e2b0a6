"""A training that was stopped between two steps: HOME/checkpoint-a.bin and checkpoint-b.bin, for one lease.

The rules:
- weights are kept as their difference from the base, bit for bit: of the rows that a step has touched, the distance of
  the two floats' bit patterns, byte by byte, behind zstd; nothing is rounded, so a resumed training ends in the same
  bytes as one that was never stopped;
- a file is its lease's, its base's and its count of forgettings', and ends with the SHA-256 of all before; one that is
  another's, or whose bytes are not those that were written, counts as none: the same seed trains the same again;
- two generations: a new one takes the place of the older, so that the newest that verifies is always left;
- it holds the person's rows and what was learnt of them: the files are private, and `drop` deletes all of them durably;
- `save` returns how many bytes it wrote, which the night's budget counts.
numpy is loaded when a checkpoint is written or read, so that an idle agent stays small.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edge_runtime.adapters.files import remove_durably, write_atomically

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edge_runtime.local_training import Checkpoint
    from wire_contract.layout import Tensors

CHECKPOINT_FILES = ("checkpoint-a.bin", "checkpoint-b.bin")
CHECKPOINT_FILE = CHECKPOINT_FILES[0]
EARLIER_FILE = "checkpoint.npz"
DIGEST_BYTES = 32
FORMAT = 1
# A stop must not take long: level 1 packs the reference model's difference in a tenth of a second.
_ZSTD_LEVEL = 1
_BLOCK_ROWS = 1024


class _Delta(msgspec.Struct, frozen=True, array_like=True):
    """A tensor as its distance from another: a bit for each row (of its first axis) that differs, and those rows'
    packed bytes."""

    shape: tuple[int, ...]
    touched: bytes
    packed: bytes


class _Stored(msgspec.Struct, frozen=True, array_like=True):
    format: int
    lease: str
    base_sha256: str
    times_forgotten: int
    generation: int
    steps: int
    loss_before: float
    loss_after: float
    rows: bytes
    rows_shape: tuple[int, int]
    packed: dict[str, _Delta]
    velocity: dict[str, _Delta] | None


class Checkpoints:
    """The two files of one training in `home`."""

    def __init__(self, home: Path, *, lease: str, base_sha256: str, times_forgotten: int) -> None:
        self._home = home
        self._lease = lease
        self._base_sha256 = base_sha256
        self._times_forgotten = times_forgotten
        # (file, generation) of the newest that verified; what an earlier training left is written over.
        self._newest: tuple[str, int] | None = None
        self._looked = False

    def save(self, checkpoint: "Checkpoint") -> int:
        """Keep a checkpoint; return the bytes written. Raises `StorageFull`, `StorageFailed`: the one before stays."""
        newest = self._find()
        kept, generation = newest if newest is not None else (CHECKPOINT_FILES[1], 0)
        name = next(each for each in CHECKPOINT_FILES if each != kept)
        rows = checkpoint.rows
        stored = _Stored(
            format=FORMAT, lease=self._lease, base_sha256=self._base_sha256, times_forgotten=self._times_forgotten,
            generation=generation + 1, steps=checkpoint.steps, loss_before=checkpoint.loss_before,
            loss_after=checkpoint.loss_after, rows=_compress(rows.astype("<i4").tobytes()),
            rows_shape=(rows.shape[0], rows.shape[1]),
            packed={tensor: _distance(value, checkpoint.base[tensor]) for tensor, value in checkpoint.packed.items()},
            velocity=_velocity(checkpoint.velocity),
        )  # fmt: skip
        body = msgspec.msgpack.encode(stored)
        write_atomically(self._home / name, body + hashlib.sha256(body).digest(), mode=0o600)
        self._newest = (name, generation + 1)
        return len(body) + DIGEST_BYTES

    def load(self, base: "Mapping[str, NDArray[np.float32]]") -> "Checkpoint | None":
        """Return the newest checkpoint, or None; `base` are the packed received weights, those it was made from."""
        import numpy as np

        from edge_runtime.local_training import Checkpoint

        found = self._read_newest()
        if found is None:
            return None
        try:
            velocity = None
            if found.velocity is not None:
                velocity = {name: _apart(found.velocity[name], np.zeros_like(value)) for name, value in base.items()}
            rows = np.frombuffer(_decompress(found.rows, 4 * found.rows_shape[0] * found.rows_shape[1]), "<i4")
            return Checkpoint(
                packed={name: _apart(found.packed[name], value) for name, value in base.items()},
                rows=rows.reshape(found.rows_shape).astype(np.int32),
                steps=found.steps,
                loss_before=found.loss_before,
                loss_after=found.loss_after,
                base=base,
                velocity=velocity,
            )
        except (KeyError, ValueError):
            # It verifies, and is not of this base: another program's.
            return None

    def _find(self) -> tuple[str, int] | None:
        if not self._looked:
            self._read_newest()
        return self._newest

    def _read_newest(self) -> _Stored | None:
        newest: _Stored | None = None
        self._looked, self._newest = True, None
        for name in CHECKPOINT_FILES:
            stored = _read(self._home / name)
            ours = stored is not None and (stored.lease, stored.base_sha256, stored.times_forgotten) == (
                self._lease, self._base_sha256, self._times_forgotten,
            )  # fmt: skip
            if stored is not None and ours and (newest is None or stored.generation > newest.generation):
                newest, self._newest = stored, (name, stored.generation)
        return newest


def drop(home: Path) -> None:
    """Delete every checkpoint in `home`, also of an earlier release. Raises `StorageFailed`."""
    remove_durably(*(home / name for name in (*CHECKPOINT_FILES, EARLIER_FILE)))


def _read(path: Path) -> _Stored | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    body, digest = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        return None
    try:
        stored = msgspec.msgpack.decode(body, type=_Stored)
    except msgspec.DecodeError:
        return None
    return stored if stored.format == FORMAT else None


def _velocity(velocity: "Tensors | None") -> dict[str, _Delta] | None:
    if velocity is None:
        return None
    import numpy as np

    return {name: _distance(value, np.zeros_like(value)) for name, value in velocity.items()}


def _distance(value: "NDArray[np.float32]", base: "NDArray[np.float32]") -> _Delta:
    """Return how far the bit patterns lie apart; inverse of `_apart`.

    Floats that are near have bit patterns that are near as integers (of one sign they are ordered alike), so after
    zigzag the upper bytes are mostly zero, and each kind of byte packs best with its own.
    """
    import numpy as np

    now, then = _by_rows(_bits(value)), _by_rows(_bits(base))
    touched = (now != then).any(axis=1)
    rows = np.flatnonzero(touched)
    packer: Any = _zstandard().ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=False).compressobj()
    pieces = []
    # By blocks: the interpreter still holds its memory when a checkpoint is written.
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = rows[start : start + _BLOCK_ROWS]
        apart = now[block] - then[block]
        zigzag = ((apart << 1) ^ (apart >> 31)).astype("<i4")
        planes = np.ascontiguousarray(zigzag.reshape(-1).view(np.uint8).reshape(-1, 4).T)
        pieces.append(packer.compress(planes.tobytes()))
    pieces.append(packer.flush())
    return _Delta(tuple(value.shape), np.packbits(touched).tobytes(), b"".join(pieces))


def _apart(delta: _Delta, base: "NDArray[np.float32]") -> "NDArray[np.float32]":
    """Return the tensor that lies `delta` from `base`. Raises `ValueError` if it is of another shape."""
    import numpy as np

    if delta.shape != base.shape:
        raise ValueError(f"a distance lies between tensors of one shape, {delta.shape}, got {base.shape}")
    touched = np.unpackbits(np.frombuffer(delta.touched, np.uint8), count=base.shape[0]).astype(np.bool_)
    bits = _by_rows(_bits(base)).copy()
    rows, columns = np.flatnonzero(touched), bits.shape[1]
    data = memoryview(_decompress(delta.packed, 4 * len(rows) * columns))
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = rows[start : start + _BLOCK_ROWS]
        size = 4 * len(block) * columns
        planes = np.frombuffer(data[:size], np.uint8).reshape(4, -1)
        zigzag = np.ascontiguousarray(planes.T).view("<i4").reshape(-1, columns).astype(np.int32)
        bits[block] += (zigzag >> 1 & 0x7FFFFFFF) ^ -(zigzag & 1)
        data = data[size:]
    return bits.view(np.float32).reshape(base.shape)


def _by_rows(bits: "NDArray[np.int32]") -> "NDArray[np.int32]":
    return bits.reshape(bits.shape[0], -1)


def _bits(value: "NDArray[np.float32]") -> "NDArray[np.int32]":
    import numpy as np

    return np.ascontiguousarray(value, dtype=np.float32).view(np.int32)


def _compress(data: bytes) -> bytes:
    compressor: Any = _zstandard().ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=False)
    return bytes(compressor.compress(data))


def _decompress(data: bytes, size: int) -> bytes:
    """Return exactly `size` bytes. Raises `ValueError`."""
    zstandard = _zstandard()
    try:
        # One byte more than there should be: a stream does not say how long it is.
        whole = bytes(zstandard.ZstdDecompressor().stream_reader(data).read(size + 1))
    except zstandard.ZstdError as e:
        raise ValueError(f"a checkpoint's array is one zstd frame: {e}") from e
    if len(whole) != size:
        raise ValueError(f"a checkpoint's array has {size} bytes, got {len(whole)}")
    return whole


def _zstandard() -> Any:
    import zstandard

    return zstandard
