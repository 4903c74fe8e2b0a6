"""The compressed difference of two versions of one template: the downlink of a device that holds the older one.

Most codes of a late version are what they were, so their differences (modulo 256) are nearly all zero. A delta is
named by the two files' SHA-256, carries no signature, and is believed only once its result hashes to what the signed
manifest says; until then its bytes are hostile.

Wire form, little-endian:
    magic "EFD1" | format u8 = 1 | hops u8 | reserved u16 = 0 | template SHA-256
    and for each hop: length u32 of what follows | base SHA-256 | target SHA-256 | one section for each tensor in the
    manifest's order.
A delta with several hops is a chain of deltas, applied one after another; the first base is what the device holds.
A section begins with its mode, u8; the counts and lengths in it are u32. Where an int8 tensor's scale changes, the
differences are those to the old codes under the new scale (`patch.rescale`):
    0 same     nothing changed
    1 dense    int8: scale f32 | block: the differences, modulo 256, in the file's order
    2 sparse   int8: scale f32 | count | block: LEB128 gaps between changed positions in the file's order | block: signs
               of the changes, one bit each, low bit first, 1 is negative | block: magnitudes - 1, u8
    3 sparse   the same over the transposed matrix, for changes that lie in columns
    4 steps    float32: count | block: gaps | block: LEB128 of the zigzag number of steps of 2^-10 that each changed
               value lies from the old one, which is rounded to the grid first
    5 values   float32: count | block: gaps | block: the new values, the four bytes of all in four planes
    6 halves   float16: count | block: gaps | block: the new values, the two bytes of all in two planes
A block is its length | packed length | bytes: one zstd frame, or the bytes themselves where both lengths are equal.

The rules for a reader: every length and count is checked against the manifest before an array is made, positions lie
inside their tensor, no bytes are left over, and what comes out hashes to the manifest's `sha256` or nothing comes out.
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wire_contract.entropy import compress, decompress
from wire_contract.errors import Malformed, Unsupported, Untrusted
from wire_contract.leb128 import MAX_BYTES, read_indices, read_leb128, write_indices, write_leb128
from wire_contract.manifest import Manifest, TensorEntry, template_hash
from wire_contract.patch import GRID_STEPS, rescale

MAGIC: Final = b"EFD1"
FORMAT: Final = 1
MAX_HOPS: Final = 16
SAME, DENSE, SPARSE, SPARSE_TRANSPOSED, STEPS, VALUES, HALVES = range(7)

_HEAD = struct.Struct("<4sBBH32s")
_HOP = struct.Struct("<I32s32s")
_U32 = struct.Struct("<I")
_BLOCK = struct.Struct("<II")
_LARGEST_STEP = 1 << 26
# Above this share of changed codes the dense form is worth trying.
_DENSE_FROM = 1 / 16

Bytes = NDArray[np.uint8]
Positions = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Hop:
    """One step of a delta: from the file `base` to the file `target` (SHA-256, hex)."""

    base: str
    target: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Delta:
    """A delta taken apart, its sections not yet read: the template's hash and the hops, which follow one another."""

    template_sha256: str
    hops: tuple[Hop, ...]

    @property
    def base(self) -> str:
        """SHA-256 of the file that it starts from."""
        return self.hops[0].base

    @property
    def target(self) -> str:
        """SHA-256 of the file that it ends in."""
        return self.hops[-1].target


def encode(base: bytes, target: bytes, manifest: Manifest) -> bytes:
    """Return the delta from one version's file to another's; inverse of `apply`.

    Use it once a pair and keep the result: it costs about a second of CPU for 1.4 MB. `manifest` is that of any
    version of the template. Raises `Malformed` unless both files are versions of the template.
    """
    for data in (base, target):
        if len(data) != manifest.size_bytes or template_hash(data, manifest) != manifest.template_sha256:
            raise Malformed(f"both files are versions of template {manifest.template_sha256[:16]}..., got another")
    sections = b"".join(_write_section(base, target, tensor) for tensor in manifest.tensors)
    hop = Hop(hashlib.sha256(base).hexdigest(), hashlib.sha256(target).hexdigest(), sections)
    return write(Delta(manifest.template_sha256, (hop,)))


def chain(deltas: Sequence[bytes]) -> bytes:
    """Return one delta that does what these do one after another. Raises `Malformed` unless they follow one another."""
    parts = [read(data) for data in deltas]
    if not parts or any(part.template_sha256 != parts[0].template_sha256 for part in parts):
        raise Malformed(f"a chain is made of deltas of one template, got {len(parts)}")
    return write(Delta(parts[0].template_sha256, tuple(hop for part in parts for hop in part.hops)))


def write(delta: Delta) -> bytes:
    """Return a delta's bytes; inverse of `read`."""
    _check_hops(delta.hops)
    out = [_HEAD.pack(MAGIC, FORMAT, len(delta.hops), 0, bytes.fromhex(delta.template_sha256))]
    for hop in delta.hops:
        out.append(_HOP.pack(len(hop.body) + 64, bytes.fromhex(hop.base), bytes.fromhex(hop.target)))
        out.append(hop.body)
    return b"".join(out)


def read(data: bytes) -> Delta:
    """Take a delta apart. Raises `Malformed` or `Unsupported`, whatever the bytes."""
    if len(data) < _HEAD.size:
        raise Malformed(f"a delta has at least {_HEAD.size} bytes, got {len(data)}")
    magic, version, count, reserved, template = _HEAD.unpack_from(data)
    if magic != MAGIC:
        raise Malformed(f"a delta begins with {MAGIC!r}, got {magic!r}")
    if version != FORMAT:
        raise Unsupported(f"this side reads delta format {FORMAT}, got {version}")
    if reserved != 0:
        raise Malformed(f"reserved is 0, got {reserved}")
    hops, position = [], _HEAD.size
    for _ in range(min(count, MAX_HOPS + 1)):
        if len(data) - position < _HOP.size:
            raise Malformed(f"a hop has at least {_HOP.size} bytes, {len(data) - position} are left")
        length, base, target = _HOP.unpack_from(data, position)
        body = position + _HOP.size
        position += _U32.size + length
        if position < body or position > len(data):
            raise Malformed(f"a hop's length lies inside the delta, got {length}")
        hops.append(Hop(base.hex(), target.hex(), data[body:position]))
    if position != len(data):
        raise Malformed(f"nothing follows the last hop, got {len(data) - position} bytes")
    _check_hops(hops)
    return Delta(template.hex(), tuple(hops))


def _check_hops(hops: Sequence[Hop]) -> None:
    if not 1 <= len(hops) <= MAX_HOPS:
        raise Malformed(f"a delta has 1 to {MAX_HOPS} hops, got {len(hops)}")
    for before, after in pairwise(hops):
        if before.target != after.base:
            raise Malformed(f"a hop begins where the last ended, got {after.base[:16]} after {before.target[:16]}")


def apply(base: bytes, delta: bytes, manifest: Manifest) -> bytes:
    """Return the version's file that `manifest` describes, made of an older one.

    `base` is a whole file of the same template that the caller has hashed. Raises `Malformed` or `Unsupported` for
    bytes that break a rule or are made for other files, `Untrusted` if the result does not hash to `manifest.sha256`.
    Allocates no more than a small multiple of `manifest.size_bytes`.
    """
    parsed = read(delta)
    if parsed.template_sha256 != manifest.template_sha256:
        raise Malformed(f"the delta is for template {manifest.template_sha256[:16]}, got {parsed.template_sha256[:16]}")
    if parsed.target != manifest.sha256:
        raise Malformed(f"the delta leads to {manifest.sha256[:16]}, got {parsed.target[:16]}")
    if len(base) != manifest.size_bytes or hashlib.sha256(base).hexdigest() != parsed.base:
        raise Malformed(f"the delta's base is {parsed.base[:16]}, and is not what is held")
    out = bytearray(base)
    for hop in parsed.hops:
        reader = _Reader(hop.body)
        for tensor in manifest.tensors:
            _read_section(reader, out, tensor)
        reader.end()
    digest = hashlib.sha256(out).hexdigest()
    if digest != manifest.sha256:
        raise Untrusted(f"the delta's result hashes to {manifest.sha256[:16]}, got {digest[:16]}")
    return bytes(out)


def _write_section(base: bytes, target: bytes, tensor: TensorEntry) -> bytes:
    spans = [slice(at, at + tensor.size_bytes) for at in tensor.offsets]
    spans += [slice(at, at + 4) for at in tensor.scale_offsets]
    if all(base[span] == target[span] for span in spans):
        return bytes([SAME])
    start = tensor.offsets[0]
    if tensor.kind == "int8":
        scale = target[tensor.scale_offsets[0] : tensor.scale_offsets[0] + 4]
        new = np.frombuffer(target, np.uint8, tensor.size, start)
        return _write_codes(_under(scale, base, tensor), new, scale, tensor)
    if tensor.kind == "float16":
        held, wanted = (np.frombuffer(data, "<u2", tensor.size, start) for data in (base, target))
        return _write_halves(held, wanted)
    before, after = (np.frombuffer(data, "<f4", tensor.size, start) for data in (base, target))
    return _write_floats(before, after)


def _under(scale: bytes, data: bytes | bytearray, tensor: TensorEntry) -> Bytes:
    """Return a file's codes of a tensor, in the file's order, as they are under the scale of another version."""
    fresh = _scale_of(scale, tensor)
    at = tensor.scale_offsets[0]
    codes = np.frombuffer(bytes(data[tensor.offsets[0] : tensor.offsets[0] + tensor.size]), np.int8)
    return rescale(codes, _scale_of(bytes(data[at : at + 4]), tensor), fresh).view(np.uint8)


def _scale_of(raw: bytes, tensor: TensorEntry) -> np.float32:
    scale = np.float32(np.frombuffer(raw, "<f4")[0])
    if not (np.isfinite(scale) and scale > 0):
        raise Malformed(f"a scale is finite and positive, got {scale} for {tensor.name}")
    return scale


def _write_codes(old: Bytes, new: Bytes, scale: bytes, tensor: TensorEntry) -> bytes:
    difference = new - old
    changed = np.count_nonzero(difference)
    forms = [bytes([SPARSE]) + scale + _write_sparse(difference)]
    if len(tensor.shape) == 2:
        across = np.ascontiguousarray(difference.reshape(_stored_shape(tensor)).T).reshape(-1)
        forms.append(bytes([SPARSE_TRANSPOSED]) + scale + _write_sparse(across))
    if changed > _DENSE_FROM * tensor.size:
        forms.append(bytes([DENSE]) + scale + _write_block(difference.tobytes()))
    return min(forms, key=len)


def _write_sparse(difference: Bytes) -> bytes:
    positions = np.flatnonzero(difference)
    values = difference[positions].view(np.int8).astype(np.int16)
    signs = np.packbits(values < 0, bitorder="little")
    magnitudes = (np.abs(values) - 1).astype(np.uint8)
    return (
        _U32.pack(len(positions))
        + _write_block(write_indices(positions))
        + _write_block(signs.tobytes())
        + _write_block(magnitudes.tobytes())
    )


def _write_floats(before: NDArray[np.float32], after: NDArray[np.float32]) -> bytes:
    positions = np.flatnonzero(before.view("<u4") != after.view("<u4"))
    old, new = before[positions], after[positions]
    head = _U32.pack(len(positions)) + _write_block(write_indices(positions))
    with np.errstate(all="ignore"):
        steps = np.rint(new.astype(np.float64) * GRID_STEPS) - np.rint(old.astype(np.float64) * GRID_STEPS)
        small = bool(np.all(np.abs(steps) < _LARGEST_STEP))
        on_grid = small and _moved(old, steps.astype(np.int64)).tobytes() == new.tobytes()
    if on_grid:
        whole = steps.astype(np.int64)
        zigzag = np.where(whole < 0, -2 * whole - 1, 2 * whole)
        return bytes([STEPS]) + head + _write_block(write_leb128(zigzag))
    planes = np.ascontiguousarray(new).view(np.uint8).reshape(-1, 4).T
    return bytes([VALUES]) + head + _write_block(np.ascontiguousarray(planes).tobytes())


def _write_halves(before: NDArray[np.uint16], after: NDArray[np.uint16]) -> bytes:
    positions = np.flatnonzero(before != after)
    planes = after[positions].view(np.uint8).reshape(-1, 2).T
    head = _U32.pack(len(positions)) + _write_block(write_indices(positions))
    return bytes([HALVES]) + head + _write_block(np.ascontiguousarray(planes).tobytes())


def _moved(old: NDArray[np.float32], steps: Positions) -> NDArray[np.float32]:
    """Return `old` rounded to the grid and moved by `steps`; exact in float64, rounded once."""
    grid = np.rint(old.astype(np.float64) * GRID_STEPS) + steps
    return (grid / GRID_STEPS + 0.0).astype("<f4")


def _write_block(data: bytes) -> bytes:
    packed = compress(data, "zstd")
    if len(packed) >= len(data):
        packed = data
    return _BLOCK.pack(len(data), len(packed)) + packed


def _stored_shape(tensor: TensorEntry) -> tuple[int, ...]:
    return tensor.shape[::-1] if tensor.transposed else tensor.shape


class _Reader:
    """Takes bytes off the front of a hop's body; every length is checked before anything is made."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def take(self, count: int) -> bytes:
        end = self._position + count
        if end > len(self._data):
            raise Malformed(f"a section is whole, {count} bytes are wanted and {len(self._data) - self._position} left")
        piece = self._data[self._position : end]
        self._position = end
        return piece

    def number(self) -> int:
        (value,) = _U32.unpack(self.take(_U32.size))
        return int(value)

    def block(self, smallest: int, largest: int) -> bytes:
        """Return a block's bytes, `smallest` to `largest` of them."""
        length, packed_length = _BLOCK.unpack(self.take(_BLOCK.size))
        if not smallest <= length <= largest or packed_length > length:
            raise Malformed(f"a block has {smallest} to {largest} bytes, got {length} packed in {packed_length}")
        packed = self.take(packed_length)
        return packed if packed_length == length else decompress(packed, length, "zstd")

    def positions(self, count: int, size: int) -> Positions:
        return read_indices(self.block(count, MAX_BYTES * count), count, size)

    def end(self) -> None:
        if self._position != len(self._data):
            raise Malformed(f"nothing follows the last section, got {len(self._data) - self._position} bytes")


def _read_section(reader: _Reader, out: bytearray, tensor: TensorEntry) -> None:
    mode = reader.take(1)[0]
    if mode == SAME:
        return
    if tensor.kind == "int8" and mode in (DENSE, SPARSE, SPARSE_TRANSPOSED):
        scale = reader.take(4)
        raw = _read_codes(reader, _under(scale, out, tensor), mode, tensor)
        for offset in tensor.scale_offsets:
            out[offset : offset + 4] = scale
    elif tensor.kind == "float32" and mode in (STEPS, VALUES):
        raw = _read_floats(reader, bytes(out[tensor.offsets[0] : tensor.offsets[0] + 4 * tensor.size]), mode)
    elif tensor.kind == "float16" and mode == HALVES:
        raw = _read_halves(reader, bytes(out[tensor.offsets[0] : tensor.offsets[0] + 2 * tensor.size]))
    else:
        raise Unsupported(f"a section of {tensor.kind} has a mode that this side knows, got {mode} for {tensor.name}")
    for offset in tensor.offsets:
        out[offset : offset + len(raw)] = raw


def _read_codes(reader: _Reader, old: Bytes, mode: int, tensor: TensorEntry) -> bytes:
    if mode == DENSE:
        return (old + np.frombuffer(reader.block(tensor.size, tensor.size), np.uint8)).tobytes()
    if mode == SPARSE_TRANSPOSED and len(tensor.shape) != 2:
        raise Malformed(f"only a matrix is read across, got {tensor.name}: {tensor.shape}")
    count = _count(reader, tensor.size)
    positions = reader.positions(count, tensor.size)
    sign_bytes = -(-count // 8)
    signs = np.unpackbits(np.frombuffer(reader.block(sign_bytes, sign_bytes), np.uint8), bitorder="little")
    if signs[count:].any():
        raise Malformed("the spare bits of the signs are 0")
    magnitudes = np.frombuffer(reader.block(count, count), np.uint8).astype(np.int16) + 1
    changes = np.where(signs[:count], -magnitudes, magnitudes).astype(np.uint8)
    if mode == SPARSE:
        new = old.copy()
        new[positions] += changes
        return new.tobytes()
    rows, columns = _stored_shape(tensor)
    # A copy even where the matrix is one row, whose transpose would be a view.
    across = np.array(old.reshape(rows, columns).T, order="C").reshape(-1)
    across[positions] += changes
    return np.ascontiguousarray(across.reshape(columns, rows).T).tobytes()


def _read_floats(reader: _Reader, before: bytes, mode: int) -> bytes:
    new = np.frombuffer(before, "<f4").copy()
    count = _count(reader, len(new))
    positions = reader.positions(count, len(new))
    if mode == STEPS:
        zigzag = read_leb128(reader.block(count, MAX_BYTES * count), count)
        with np.errstate(all="ignore"):
            new[positions] = _moved(new[positions], np.where(zigzag & 1, -(zigzag + 1) // 2, zigzag // 2))
    else:
        planes = np.frombuffer(reader.block(4 * count, 4 * count), np.uint8).reshape(4, count)
        new[positions] = np.ascontiguousarray(planes.T).view("<f4").reshape(-1)
    return new.tobytes()


def _read_halves(reader: _Reader, before: bytes) -> bytes:
    new = np.frombuffer(before, "<u2").copy()
    count = _count(reader, len(new))
    positions = reader.positions(count, len(new))
    planes = np.frombuffer(reader.block(2 * count, 2 * count), np.uint8).reshape(2, count)
    new[positions] = np.ascontiguousarray(planes.T).view("<u2").reshape(-1)
    return new.tobytes()


def _count(reader: _Reader, size: int) -> int:
    count = reader.number()
    if count > size:
        raise Malformed(f"a section changes at most {size} values, got {count}")
    return count
