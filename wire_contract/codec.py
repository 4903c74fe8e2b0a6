"""The update codec `topk4`: a model delta of n values in a few kB.

Order (design 7): add the residual, select the k largest by magnitude over the whole vector, quantize each to a sign and
one of 8 log-spaced levels by nearest, scale the decoded vector into the clip norm, encode; what was left out is the
new residual, its norm capped at the clip norm.

Wire form, little-endian:
    magic "EFU1" | mode u8 = 1 | entropy u8 | octave step u8 | 0 u8 | n u32 | k u32 | scale f32 | body length u32 | body
The body, behind the entropy stage (0 none, 1 zstd, 2 raw deflate), is k index gaps in LEB128 (the first index, then
index - previous - 1, canonical, at most 4 bytes each), then ceil(k / 2) bytes of 4-bit codes, low nibble first: bit 3
is the sign, bits 0-2 the level i. A value is +-scale * 2^(-step * i / 16); the table of 16th roots is below as exact
binary64 constants, so that x86, ARM and a browser compute the same.

Decoding treats the bytes as hostile: every length, range and the scale's finiteness is checked before an array of k
entries is made, decompression is bounded by the declared size, and the same vector has one gap stream only.
"""

import struct
import zlib
from dataclasses import dataclass
from typing import Final

import numpy as np
import zstandard
from numpy.typing import NDArray

from wire_contract.errors import Malformed, Unsupported

MAGIC: Final = b"EFU1"
MODE_TOPK4: Final = 1
ENTROPY_CODES: Final = {"none": 0, "zstd": 1, "deflate": 2}
ENTROPY_NAMES: Final = {code: name for name, code in ENTROPY_CODES.items()}
MAX_VALUES: Final = 1 << 27
MAX_KEPT: Final = 1 << 22
LEVELS: Final = 8
# Below this the float32 scale of many values could become 0, which no decoder takes.
SMALLEST_CLIP_NORM: Final = 1e-6

_HEADER = struct.Struct("<4sBBBBIIfI")
_MAX_GAP_BYTES = 4
_ZSTD_WINDOW_LOG = 23

# 2^(-j/16) for j = 0..15, correctly rounded to binary64.
SIXTEENTHS: Final = tuple(
    float.fromhex(text)
    for text in (
        "0x1.0000000000000p+0",
        "0x1.ea4afa2a490dap-1",
        "0x1.d5818dcfba487p-1",
        "0x1.c199bdd85529cp-1",
        "0x1.ae89f995ad3adp-1",
        "0x1.9c49182a3f090p-1",
        "0x1.8ace5422aa0dbp-1",
        "0x1.7a11473eb0187p-1",
        "0x1.6a09e667f3bcdp-1",
        "0x1.5ab07dd485429p-1",
        "0x1.4bfdad5362a27p-1",
        "0x1.3dea64c123422p-1",
        "0x1.306fe0a31b715p-1",
        "0x1.2387a6e756238p-1",
        "0x1.172b83c7d517bp-1",
        "0x1.0b5586cf9890fp-1",
    )
)


@dataclass(frozen=True, slots=True)
class SparseVector:
    """`values[j]` (float64, exact products of the wire's constants) stands at `indices[j]` of `size` values."""

    size: int
    indices: NDArray[np.int64]
    values: NDArray[np.float64]

    def norm(self) -> float:
        """L2 norm, summed in float64."""
        return float(np.sqrt(np.dot(self.values, self.values)))

    def dense(self) -> NDArray[np.float32]:
        """Return the float32 vector of `size` values."""
        out = np.zeros(self.size, dtype=np.float32)
        out[self.indices] = self.values
        return out


@dataclass(frozen=True, slots=True)
class EncodedUpdate:
    """What `encode` returns: the wire bytes, what a decoder will see in them, and what is left for another night."""

    data: bytes
    sent: SparseVector
    residual: NDArray[np.float32]


def level_magnitudes(scale: float, step: int) -> NDArray[np.float64]:
    """Return the 8 magnitudes scale * 2^(-step * i / 16), exact table times a power of two, then one product."""
    factors = [np.ldexp(SIXTEENTHS[(step * i) % 16], -((step * i) // 16)) for i in range(LEVELS)]
    return np.float64(scale) * np.array(factors, dtype=np.float64)


def select_largest(vector: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Return the ascending indices of the k largest magnitudes; ties go to the lower index, zeros are left out."""
    magnitude = np.abs(vector)
    if k >= len(vector):
        return np.flatnonzero(magnitude > 0).astype(np.int64)
    candidates = np.flatnonzero(magnitude >= _threshold_below(magnitude, k))
    values = magnitude[candidates]
    threshold = np.partition(values, len(values) - k)[len(values) - k]
    chosen = values > threshold
    chosen[np.flatnonzero(values == threshold)[: k - int(np.count_nonzero(chosen))]] = True
    kept: NDArray[np.int64] = candidates[chosen & (values > 0)]
    return kept


def _threshold_below(magnitude: NDArray[np.float32], k: int) -> np.float32:
    """Return a value that at least k magnitudes reach: guessed from a sample, so that a full sort is seldom needed."""
    sample = magnitude[:: max(1, len(magnitude) // 65_536)]
    wanted = min(len(sample) - 1, int(1.3 * k * len(sample) / len(magnitude)) + 8)
    guess: np.float32 = np.partition(sample, len(sample) - 1 - wanted)[len(sample) - 1 - wanted]
    return guess if np.count_nonzero(magnitude >= guess) >= k else np.float32(0)


def _quantize(magnitudes: NDArray[np.float64]) -> tuple[float, int, NDArray[np.int64]]:
    """Choose scale and step by least squared error over a few candidates; return them and the level of each value."""
    largest, smallest = float(magnitudes.max()), float(magnitudes.min())
    spread = np.log2(largest / smallest) * 16 / (LEVELS - 1) if smallest < largest else 1.0
    best: tuple[float, float, int, NDArray[np.int64]] | None = None
    for share in (1.0, 0.8, 0.6, 0.45, 0.3):
        step = int(min(255, max(1, round(spread * share))))
        for lift in (0, 4, 8, 16):
            scale = float(np.float32(largest * SIXTEENTHS[lift % 16] * 0.5 ** (lift // 16)))
            table = level_magnitudes(scale, step)
            borders = ((table[1:] + table[:-1]) / 2)[::-1]
            levels = (LEVELS - 1 - np.searchsorted(borders, magnitudes)).astype(np.int64)
            error = float(np.sum((magnitudes - table[levels]) ** 2))
            if best is None or error < best[0]:
                best = (error, scale, step, levels)
    assert best is not None
    return best[1], best[2], best[3]


def encode(
    delta: NDArray[np.float32], residual: NDArray[np.float32] | None, *, kept: int, clip_norm: float, entropy: str
) -> EncodedUpdate:
    """Compress one model delta for the wire.

    Use it once for each finished local training. `delta` and `residual` are float32 vectors of n values in layout
    order (`residual` None on a new layout); `kept` is k, 1 <= k <= n; `clip_norm` is C >= 1e-6, the L2 bound of what is
    sent and of what is kept back. Raises `Malformed` if a value is not finite or an argument is out of range.
    """
    if not (np.isfinite(clip_norm) and clip_norm >= SMALLEST_CLIP_NORM):
        raise Malformed(f"a clip norm is finite and at least {SMALLEST_CLIP_NORM}, got {clip_norm}")
    if not 1 <= kept <= min(len(delta), MAX_KEPT) or len(delta) > MAX_VALUES:
        raise Malformed(f"1 <= k <= n <= {MAX_VALUES}, got k={kept}, n={len(delta)}")
    if entropy not in ENTROPY_CODES:
        raise Unsupported(f"entropy stage is one of {sorted(ENTROPY_CODES)}, got {entropy!r}")
    whole = delta.astype(np.float32) if residual is None else (delta + residual).astype(np.float32)
    if not np.isfinite(whole).all():
        raise Malformed("a delta is finite, got NaN or Inf")
    indices = select_largest(whole, kept)
    if len(indices):
        chosen = whole[indices]
        magnitudes = np.abs(chosen).astype(np.float64)
        scale, step, levels = _quantize(magnitudes)
        scale = _scale_into(scale, step, levels, clip_norm)
        negative = chosen < 0
    else:
        scale, step, levels, negative = 1.0, 1, np.zeros(0, np.int64), np.zeros(0, bool)
    values = np.where(negative, -1.0, 1.0) * level_magnitudes(scale, step)[levels]
    sent = SparseVector(len(whole), indices, values)
    left = whole.copy()
    left[indices] -= values.astype(np.float32)
    codes = (levels + 8 * negative.astype(np.int64)).astype(np.uint8)
    data = _write(sent, codes, scale, step, entropy)
    return EncodedUpdate(data, sent, cap_norm(left, clip_norm))


def _scale_into(scale: float, step: int, levels: NDArray[np.int64], clip_norm: float) -> float:
    """Shrink the scale until the decoded vector's float64 norm is at most the clip norm (rounding can lengthen it)."""
    while True:
        values = level_magnitudes(scale, step)[levels]
        norm = float(np.sqrt(np.dot(values, values)))
        if norm <= clip_norm:
            return scale
        scale = float(np.nextafter(np.float32(scale * min(1.0, clip_norm / norm)), np.float32(0)))


def cap_norm(vector: NDArray[np.float32], limit: float) -> NDArray[np.float32]:
    """Return `vector` scaled down so that its L2 norm is at most `limit` (to one float32 rounding); never longer."""
    exact = vector.astype(np.float64)
    norm = float(np.sqrt(np.dot(exact, exact)))
    return vector if norm <= limit else (vector * np.float32(limit / norm)).astype(np.float32)


def _write(sent: SparseVector, codes: NDArray[np.uint8], scale: float, step: int, entropy: str) -> bytes:
    gaps = np.diff(sent.indices, prepend=-1) - 1
    body = write_leb128(gaps) + _pack_nibbles(codes)
    packed = _compress(body, entropy)
    header = _HEADER.pack(MAGIC, MODE_TOPK4, ENTROPY_CODES[entropy], step, 0, sent.size, len(codes), scale, len(body))
    return header + packed


def decode(data: bytes, *, size: int) -> SparseVector:
    """Read an update for a model of `size` values; inverse of `encode` up to quantization.

    Raises `Malformed` or `Unsupported`, whatever the bytes; allocates O(len(data) + k) only after every check.
    """
    if len(data) < _HEADER.size:
        raise Malformed(f"an update has at least {_HEADER.size} bytes, got {len(data)}")
    magic, mode, entropy, step, reserved, n, k, scale, body_bytes = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise Malformed(f"an update begins with {MAGIC!r}, got {magic!r}")
    if mode != MODE_TOPK4:
        raise Unsupported(f"this side decodes codec mode {MODE_TOPK4}, got {mode}")
    if entropy not in ENTROPY_NAMES:
        raise Unsupported(f"entropy stage is one of {sorted(ENTROPY_NAMES)}, got {entropy}")
    if reserved != 0 or step < 1:
        raise Malformed(f"reserved is 0 and the step at least 1, got {reserved} and {step}")
    if n != size:
        raise Malformed(f"the model has {size} values, the update says {n}")
    if not 0 <= k <= min(n, MAX_KEPT):
        raise Malformed(f"an update keeps at most {min(n, MAX_KEPT)} values, got {k}")
    if not (np.isfinite(scale) and scale > 0):
        raise Malformed(f"a scale is finite and positive, got {scale}")
    nibble_bytes = (k + 1) // 2
    if not k + nibble_bytes <= body_bytes <= _MAX_GAP_BYTES * k + nibble_bytes:
        raise Malformed(f"{k} values take {k + nibble_bytes} bytes or more, got a body of {body_bytes}")
    body = _decompress(data[_HEADER.size :], body_bytes, ENTROPY_NAMES[entropy])
    gaps = read_leb128(body[: body_bytes - nibble_bytes], k)
    indices = np.cumsum(gaps + 1) - 1
    if k and indices[-1] >= n:
        raise Malformed(f"indices lie below {n}, got {indices[-1]}")
    codes = _unpack_nibbles(body[body_bytes - nibble_bytes :], k)
    values = level_magnitudes(float(scale), step)[codes & 7] * np.where(codes & 8, -1.0, 1.0)
    return SparseVector(n, indices, values)


def write_leb128(numbers: NDArray[np.int64]) -> bytes:
    """Return unsigned LEB128 of numbers in 0..2^28-1, one after another; inverse of `read_leb128`."""
    count = 1 + (numbers >= 1 << 7) + (numbers >= 1 << 14) + (numbers >= 1 << 21)
    ends = np.cumsum(count)
    out = np.zeros(int(ends[-1]) if len(ends) else 0, dtype=np.uint8)
    starts = ends - count
    for place in range(_MAX_GAP_BYTES):
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
    if lengths.max() > _MAX_GAP_BYTES:
        raise Malformed(f"a gap has at most {_MAX_GAP_BYTES} bytes, got {lengths.max()}")
    if np.any((raw[ends] == 0) & (lengths > 1)):
        raise Malformed("a gap is written in its shortest form, got a padded one")
    numbers = np.zeros(count, dtype=np.int64)
    for place in range(int(lengths.max())):
        has = lengths > place
        numbers[has] |= (raw[starts[has] + place].astype(np.int64) & 127) << (7 * place)
    return numbers


def _pack_nibbles(codes: NDArray[np.uint8]) -> bytes:
    even = codes[0::2]
    odd = np.zeros_like(even)
    odd[: len(codes) // 2] = codes[1::2]
    return (even | (odd << 4)).astype(np.uint8).tobytes()


def _unpack_nibbles(data: bytes, count: int) -> NDArray[np.int64]:
    raw = np.frombuffer(data, dtype=np.uint8)
    codes = np.empty(2 * len(raw), dtype=np.int64)
    codes[0::2] = raw & 15
    codes[1::2] = raw >> 4
    if count % 2 and codes[count] != 0:
        raise Malformed(f"the spare nibble is 0, got {codes[count]}")
    return codes[:count]


def _compress(body: bytes, entropy: str) -> bytes:
    if entropy == "zstd":
        return zstandard.ZstdCompressor(level=19, write_content_size=False, write_checksum=False).compress(body)
    if entropy == "deflate":
        deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
        return deflate.compress(body) + deflate.flush()
    return body


def _decompress(packed: bytes, size: int, entropy: str) -> bytes:
    """Return exactly `size` bytes or raise `Malformed`; never holds more than `size` + 1 bytes of output."""
    if entropy == "none":
        body, rest = packed, b""
    elif entropy == "zstd":
        stream = zstandard.ZstdDecompressor(max_window_size=1 << _ZSTD_WINDOW_LOG).decompressobj()
        try:
            body, rest = _bounded_zstd(stream, packed, size)
        except zstandard.ZstdError as e:
            raise Malformed(f"the body is one zstd frame: {e}") from e
    else:
        inflate = zlib.decompressobj(-15)
        try:
            body = inflate.decompress(packed, size + 1)
        except zlib.error as e:
            raise Malformed(f"the body is one raw deflate stream: {e}") from e
        rest = inflate.unconsumed_tail + inflate.unused_data
        if not inflate.eof and len(body) <= size:
            raise Malformed("the body is one whole raw deflate stream, got a cut one")
    if len(body) != size or rest:
        raise Malformed(f"the body has {size} bytes and nothing behind it, got {len(body)} and {len(rest)} more")
    return body


def _bounded_zstd(stream: "zstandard.ZstdDecompressionObj", packed: bytes, size: int) -> tuple[bytes, bytes]:
    # One byte of a zstd block can ask for 128 kB of output, so the input is fed in small bites and the output counted.
    out = bytearray()
    for start in range(0, len(packed), 64):
        if stream.eof:
            return bytes(out), stream.unused_data + packed[start:]
        out += stream.decompress(packed[start : start + 64])
        if len(out) > size:
            raise Malformed(f"the body has {size} bytes, got more")
    if not stream.eof:
        raise Malformed("the body is one whole zstd frame, got a cut one")
    return bytes(out), stream.unused_data
