"""The update codec: a model delta of n values in a few kB, in one of two modes behind one header.

Order (design 7): add the residual, select, quantize, scale the decoded vector into the clip norm, encode; what was left
out is the new residual, its norm capped at the clip norm.
- `topk` (`encode`): the k largest by magnitude over the whole vector, at places of the device's own, each as a sign and
  one of L log-spaced levels by nearest. The places name the words that were typed: for the aggregator's eyes only.
- `shared` (`encode_shared`): the values at the places of a public index set (`index_set`), in the fixed ring of `ring`.
  No place and no length depends on the text, and updates can be summed before they are read.

Wire form, little-endian:
    magic "EFU1" | mode u8 | entropy u8 | a u8 | b u8 | n u32 | k u32 | scale f32 | body length u32 | body
topk: mode 1, a = octave step, b = code bits: 0 stands for 4, else 1, 2 or 8. The body, behind the entropy stage (0
none, 1 zstd, 2 raw deflate), is k index gaps in LEB128 (the first index, then index - previous - 1, see `leb128`), then
the codes, low bits first: the highest bit of a code is the sign, the others the level i < L = 2^(bits - 1). A value is
+-scale * 2^(-step * i / 16); the table of 16th roots is below as exact binary64 constants, so that x86, ARM and a
browser compute the same. The lowest level lies at most 126 octaves below the scale.
shared: mode 2, entropy 0, a = headroom bits, b = value bits, scale = the unit. The body is the first 8 bytes of the
index set's SHA-256, then k numbers of a + b bits (see `ring`).

Decoding treats the bytes as hostile: every length, range and the scale's finiteness is checked before an array of k
entries is made, decompression is bounded by the declared size, and the same vector has one gap stream only.
"""

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wire_contract import ring as rings
from wire_contract.entropy import ENTROPY_CODES as ENTROPY_CODES
from wire_contract.entropy import ENTROPY_NAMES as ENTROPY_NAMES
from wire_contract.entropy import compress, decompress
from wire_contract.errors import Malformed, Unsupported
from wire_contract.index_set import ID_BYTES, IndexSet
from wire_contract.leb128 import MAX_BYTES, read_indices, write_indices
from wire_contract.leb128 import read_leb128 as read_leb128
from wire_contract.leb128 import write_leb128 as write_leb128
from wire_contract.messages import CodecPlan
from wire_contract.norm import l2_norm
from wire_contract.ring import Ring

MAGIC: Final = b"EFU1"
MODE_TOPK: Final = 1
MODE_SHARED: Final = 2
MODES: Final = {"topk4": MODE_TOPK, "topk": MODE_TOPK, "shared": MODE_SHARED}
CODE_BITS: Final = (1, 2, 4, 8)
DEFAULT_BITS: Final = 4
MAX_VALUES: Final = 1 << 27
MAX_KEPT: Final = 1 << 22
# Below this the float32 scale of many values could become 0, which no decoder takes.
SMALLEST_CLIP_NORM: Final = 1e-6
# float32's smallest normal is 2^-126: below it processors differ in what they do with a product.
_MAX_STEPS: Final = 126 * 16

_HEADER = struct.Struct("<4sBBBBIIfI")

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
        """L2 norm, the same on every machine."""
        return l2_norm(self.values)

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


def check_plan(plan: CodecPlan) -> None:
    """Raise `Unsupported` or `Malformed` unless mode, bits, basis, unit and headroom go together; for both ends."""
    if plan.mode not in MODES:
        raise Unsupported(f"a codec mode is one of {sorted(MODES)}, got {plan.mode[:40]!r}")
    if plan.mode == "shared":
        if plan.threshold or plan.basis:
            raise Malformed(f"a shared plan has no threshold and no basis, got {plan.threshold}, {plan.basis[:16]!r}")
        rings.check_ring(ring_of(plan))
        return
    if plan.entropy not in ENTROPY_CODES:
        raise Unsupported(f"entropy stage is one of {sorted(ENTROPY_CODES)}, got {plan.entropy[:40]!r}")
    if plan.basis and plan.mode != "topk":
        raise Malformed(f"a basis goes with mode topk alone, got {plan.mode}")
    allowed = (DEFAULT_BITS,) if plan.mode == "topk4" else CODE_BITS
    if plan.bits not in allowed:
        raise Malformed(f"a code of mode {plan.mode} has {' or '.join(map(str, allowed))} bits, got {plan.bits}")


def ring_of(plan: CodecPlan) -> Ring:
    """Return the ring that a `shared` plan names."""
    return Ring(plan.unit, plan.bits, plan.headroom_bits)


def kept_count(plan: CodecPlan, size: int) -> int:
    """Return k of a plan for a model of `size` values."""
    return max(1, round(plan.kept * size))


def level_magnitudes(scale: float, step: int, levels: int = 8) -> NDArray[np.float64]:
    """Return the magnitudes scale * 2^(-step * i / 16), exact table times a power of two, then one product."""
    factors = [np.ldexp(SIXTEENTHS[(step * i) % 16], -((step * i) // 16)) for i in range(levels)]
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


def select(vector: NDArray[np.float32], k: int, threshold: float) -> NDArray[np.int64]:
    """Return the ascending indices of the magnitudes that reach `threshold` > 0, of the k largest of them if more do.

    A threshold that all devices share spends bytes where the sum gains most: an update with much to say is long, one
    with little short (Sahu et al. 2021, arXiv 2108.00951: the least total error for the bytes of all). With 0 it is
    `select_largest`.
    """
    if threshold <= 0.0:
        return select_largest(vector, k)
    reached = np.flatnonzero(np.abs(vector) >= np.float32(threshold)).astype(np.int64)
    return reached if len(reached) <= k else select_largest(vector, k)


def _threshold_below(magnitude: NDArray[np.float32], k: int) -> np.float32:
    """Return a value that at least k magnitudes reach: guessed from a sample, so that a full sort is seldom needed."""
    sample = magnitude[:: max(1, len(magnitude) // 65_536)]
    wanted = min(len(sample) - 1, int(1.3 * k * len(sample) / len(magnitude)) + 8)
    guess: np.float32 = np.partition(sample, len(sample) - 1 - wanted)[len(sample) - 1 - wanted]
    return guess if np.count_nonzero(magnitude >= guess) >= k else np.float32(0)


def _quantize(magnitudes: NDArray[np.float64], bits: int) -> tuple[float, int, NDArray[np.int64]]:
    """Choose scale and step by least squared error; return them and the level of each value."""
    if bits == 1:
        return float(np.float32(magnitudes.mean())), 1, np.zeros(len(magnitudes), dtype=np.int64)
    if bits == 2:
        return _quantize_in_two(magnitudes)
    last = (1 << (bits - 1)) - 1
    largest, smallest = float(magnitudes.max()), float(magnitudes.min())
    spread = np.log2(largest / smallest) * 16 / last if smallest < largest else 1.0
    best: tuple[float, float, int, NDArray[np.int64]] | None = None
    for share in (1.0, 0.8, 0.6, 0.45, 0.3):
        step = int(min(255, _MAX_STEPS // last, max(1, round(spread * share))))
        for lift in (0, 4, 8, 16):
            scale = float(np.float32(largest * SIXTEENTHS[lift % 16] * 0.5 ** (lift // 16)))
            table = level_magnitudes(scale, step, last + 1)
            levels = _nearest(magnitudes, table)
            error = float(np.sum((magnitudes - table[levels]) ** 2))
            if best is None or error < best[0]:
                best = (error, scale, step, levels)
    assert best is not None
    return best[1], best[2], best[3]


def _quantize_in_two(magnitudes: NDArray[np.float64]) -> tuple[float, int, NDArray[np.int64]]:
    """Two levels: the means of both sides of the best split of the sorted values, their ratio rounded to a step."""
    ordered = np.sort(magnitudes)
    sums = np.cumsum(ordered)
    below = np.arange(1, len(ordered))
    # Squared error = sum of squares - (sum below)^2 / number below - (sum above)^2 / number above.
    gain = sums[:-1] ** 2 / below + (sums[-1] - sums[:-1]) ** 2 / (len(ordered) - below)
    if not len(gain):
        return float(np.float32(magnitudes.max())), 1, np.zeros(len(magnitudes), dtype=np.int64)
    split = int(np.argmax(gain)) + 1
    low, high = float(ordered[:split].mean()), float(ordered[split:].mean())
    scale, step = float(np.float32(high)), int(min(255, max(1, round(16 * np.log2(high / low)))))
    return scale, step, _nearest(magnitudes, level_magnitudes(scale, step, 2))


def _nearest(magnitudes: NDArray[np.float64], table: NDArray[np.float64]) -> NDArray[np.int64]:
    borders = ((table[1:] + table[:-1]) / 2)[::-1]
    return (len(table) - 1 - np.searchsorted(borders, magnitudes)).astype(np.int64)


def encode(
    delta: NDArray[np.float32],
    residual: NDArray[np.float32] | None,
    *,
    kept: int,
    clip_norm: float,
    entropy: str,
    bits: int = DEFAULT_BITS,
    threshold: float = 0.0,
) -> EncodedUpdate:
    """Compress one model delta in `topk` mode.

    Use it once for each finished local training. `delta` and `residual` are float32 vectors of n values in layout
    order (`residual` None on a new layout); `kept` is k, 1 <= k <= n; `clip_norm` is C >= 1e-6, the L2 bound of what is
    sent and of what is kept back; `bits` is the code width. What lies below `threshold` in magnitude is not sent even
    where fewer than k are. Raises `Malformed` if a value is not finite or an argument is out of range.
    """
    if not 1 <= kept <= min(len(delta), MAX_KEPT):
        raise Malformed(f"1 <= k <= n <= {MAX_VALUES}, got k={kept}, n={len(delta)}")
    if entropy not in ENTROPY_CODES:
        raise Unsupported(f"entropy stage is one of {sorted(ENTROPY_CODES)}, got {entropy!r}")
    if bits not in CODE_BITS:
        raise Malformed(f"a code has {' or '.join(map(str, CODE_BITS))} bits, got {bits}")
    if not threshold >= 0.0:
        raise Malformed(f"a threshold is 0 or more, got {threshold}")
    whole = _add(delta, residual, clip_norm)
    indices = select(whole, kept, threshold)
    if len(indices):
        chosen = whole[indices]
        magnitudes = np.abs(chosen).astype(np.float64)
        scale, step, levels = _quantize(magnitudes, bits)
        scale = _scale_into(scale, step, levels, clip_norm)
        negative = chosen < 0
    else:
        scale, step, levels, negative = 1.0, 1, np.zeros(0, np.int64), np.zeros(0, bool)
    count = 1 << (bits - 1)
    values = np.where(negative, -1.0, 1.0) * level_magnitudes(scale, step, count)[levels]
    sent = SparseVector(len(whole), indices, values)
    codes = (levels + count * negative.astype(np.int64)).astype(np.uint8)
    body = write_indices(indices) + _pack_codes(codes, bits)
    width = 0 if bits == DEFAULT_BITS else bits
    header = _HEADER.pack(
        MAGIC, MODE_TOPK, ENTROPY_CODES[entropy], step, width, sent.size, len(indices), scale, len(body)
    )
    return EncodedUpdate(header + compress(body, entropy), sent, _left(whole, sent, clip_norm))


def encode_shared(
    delta: NDArray[np.float32],
    residual: NDArray[np.float32] | None,
    *,
    index_set: IndexSet,
    ring: Ring,
    clip_norm: float,
) -> EncodedUpdate:
    """Compress one model delta in `shared` mode: every value of the set, whether it is 0 or not.

    Arguments as for `encode`. What is not in the set, beyond the clip norm or beyond the ring's range is left in the
    residual. Raises `Malformed` if a value is not finite, the ring breaks a bound, or the set is another model's.
    """
    rings.check_ring(ring)
    if index_set.size != len(delta):
        raise Malformed(f"the index set is of a model of {index_set.size} values, the delta has {len(delta)}")
    whole = _add(delta, residual, clip_norm)
    numbers = rings.quantize(whole[index_set.indices].astype(np.float64), ring, clip_norm)
    sent = SparseVector(len(whole), index_set.indices, numbers * np.float64(ring.unit))
    body = index_set.id + rings.pack(numbers, ring)
    header = _HEADER.pack(
        MAGIC, MODE_SHARED, ENTROPY_CODES["none"], ring.headroom_bits, ring.bits, sent.size, len(numbers), ring.unit,
        len(body),
    )  # fmt: skip
    return EncodedUpdate(header + body, sent, _left(whole, sent, clip_norm))


def _add(delta: NDArray[np.float32], residual: NDArray[np.float32] | None, clip_norm: float) -> NDArray[np.float32]:
    if not (np.isfinite(clip_norm) and clip_norm >= SMALLEST_CLIP_NORM):
        raise Malformed(f"a clip norm is finite and at least {SMALLEST_CLIP_NORM}, got {clip_norm}")
    if len(delta) > MAX_VALUES:
        raise Malformed(f"a model has at most {MAX_VALUES} values, got {len(delta)}")
    whole = delta.astype(np.float32) if residual is None else (delta + residual).astype(np.float32)
    if not np.isfinite(whole).all():
        raise Malformed("a delta is finite, got NaN or Inf")
    return whole


def _left(whole: NDArray[np.float32], sent: SparseVector, clip_norm: float) -> NDArray[np.float32]:
    left = whole.copy()
    left[sent.indices] -= sent.values.astype(np.float32)
    return cap_norm(left, clip_norm)


def _scale_into(scale: float, step: int, levels: NDArray[np.int64], clip_norm: float) -> float:
    """Shrink the scale until the decoded vector's float64 norm is at most the clip norm (rounding can lengthen it)."""
    count = int(levels.max()) + 1
    while True:
        values = level_magnitudes(scale, step, count)[levels]
        norm = l2_norm(values)
        if norm <= clip_norm:
            return scale
        scale = float(np.nextafter(np.float32(scale * min(1.0, clip_norm / norm)), np.float32(0)))


def cap_norm(vector: NDArray[np.float32], limit: float) -> NDArray[np.float32]:
    """Return `vector` scaled down so that its L2 norm is at most `limit` (to one float32 rounding); never longer."""
    norm = l2_norm(vector)
    return vector if norm <= limit else (vector * np.float32(limit / norm)).astype(np.float32)


def set_id_of(data: bytes) -> bytes | None:
    """Return the 8 bytes by which a `shared` update names its index set; None for any other bytes.

    Use it to find the set that `decode` needs; nothing else of the bytes is checked here.
    """
    if len(data) < _HEADER.size + ID_BYTES or data[:4] != MAGIC or data[4] != MODE_SHARED:
        return None
    return data[_HEADER.size : _HEADER.size + ID_BYTES]


def decode(data: bytes, *, size: int, plan: CodecPlan | None = None, index_set: IndexSet | None = None) -> SparseVector:
    """Read an update for a model of `size` values; inverse of `encode` and `encode_shared` up to quantization.

    With `plan`, the update must have that plan's mode, bits, unit and headroom, and keep no more values than it says. A
    `shared` update needs `index_set`: the one that it names (`set_id_of`). Raises `Malformed` or `Unsupported`,
    whatever the bytes; allocates O(len(data) + k) only after every check.
    """
    if len(data) < _HEADER.size:
        raise Malformed(f"an update has at least {_HEADER.size} bytes, got {len(data)}")
    magic, mode, entropy, first, second, n, k, scale, body_bytes = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise Malformed(f"an update begins with {MAGIC!r}, got {magic!r}")
    if mode not in (MODE_TOPK, MODE_SHARED):
        raise Unsupported(f"this side decodes codec modes {MODE_TOPK} and {MODE_SHARED}, got {mode}")
    if plan is not None and MODES.get(plan.mode) != mode:
        raise Malformed(f"the plan's codec is {plan.mode[:40]}, the update is of mode {mode}")
    if n != size:
        raise Malformed(f"the model has {size} values, the update says {n}")
    if not 0 <= k <= min(n, MAX_KEPT):
        raise Malformed(f"an update keeps at most {min(n, MAX_KEPT)} values, got {k}")
    if not (np.isfinite(scale) and scale > 0):
        raise Malformed(f"a scale is finite and positive, got {scale}")
    if mode == MODE_SHARED:
        ring = Ring(scale, second, first)
        return _read_shared(data, entropy, ring, size, k, body_bytes, plan, index_set)
    return _read_topk(data, entropy, first, second, size, k, scale, body_bytes, plan)


def _read_topk(
    data: bytes, entropy: int, step: int, width: int, size: int, k: int, scale: float, body_bytes: int,
    plan: CodecPlan | None,
) -> SparseVector:  # fmt: skip
    if entropy not in ENTROPY_NAMES:
        raise Unsupported(f"entropy stage is one of {sorted(ENTROPY_NAMES)}, got {entropy}")
    if width == DEFAULT_BITS or (width or DEFAULT_BITS) not in CODE_BITS:
        raise Malformed(f"the code width is 0 (for 4), 1, 2 or 8, got {width}")
    bits = width or DEFAULT_BITS
    if plan is not None and bits != plan.bits:
        raise Malformed(f"the plan's codes have {plan.bits} bits, the update's {bits}")
    if plan is not None and k > kept_count(plan, size):
        raise Malformed(f"the plan keeps at most {kept_count(plan, size)} of {size} values, the update has {k}")
    levels = 1 << (bits - 1)
    if step < 1 or step * (levels - 1) > _MAX_STEPS:
        raise Malformed(f"the step is at least 1 and {levels} levels span at most 126 octaves, got a step of {step}")
    code_bytes = (k * bits + 7) // 8
    if not k + code_bytes <= body_bytes <= MAX_BYTES * k + code_bytes:
        raise Malformed(f"{k} values take {k + code_bytes} bytes or more, got a body of {body_bytes}")
    body = decompress(data[_HEADER.size :], body_bytes, ENTROPY_NAMES[entropy])
    indices = read_indices(body[: body_bytes - code_bytes], k, size)
    codes = _unpack_codes(body[body_bytes - code_bytes :], k, bits)
    values = level_magnitudes(scale, step, levels)[codes & (levels - 1)] * np.where(codes & levels, -1.0, 1.0)
    return SparseVector(size, indices, values)


def _read_shared(
    data: bytes, entropy: int, ring: Ring, size: int, k: int, body_bytes: int, plan: CodecPlan | None,
    index_set: IndexSet | None,
) -> SparseVector:  # fmt: skip
    if entropy != 0:
        raise Malformed(f"a shared update has no entropy stage, got {entropy}")
    rings.check_ring(ring)
    if plan is not None and ring != ring_of(plan):
        raise Malformed(f"the plan's ring is {ring_of(plan)}, the update's {ring}")
    if index_set is None:
        raise Unsupported("a shared update needs its index set, and it is not here")
    if (index_set.size, len(index_set.indices)) != (size, k):
        raise Malformed(f"the set has {len(index_set.indices)} of {index_set.size} values, the update {k} of {size}")
    body = data[_HEADER.size :]
    if not len(body) == body_bytes == ID_BYTES + ring.size_bytes(k):
        raise Malformed(f"{k} values take {ID_BYTES + ring.size_bytes(k)} bytes, got a body of {len(body)}")
    if body[:ID_BYTES] != index_set.id:
        raise Malformed(f"the index set is {index_set.id.hex()}, the update's is {body[:ID_BYTES].hex()}")
    numbers = rings.read_values(body[ID_BYTES:], k, ring)
    return SparseVector(size, index_set.indices, numbers * np.float64(ring.unit))


def _pack_codes(codes: NDArray[np.uint8], bits: int) -> bytes:
    if bits == 8:
        return codes.tobytes()
    each = 8 // bits
    padded = np.zeros(-(-len(codes) // each) * each, dtype=np.uint8)
    padded[: len(codes)] = codes
    out = np.zeros(len(padded) // each, dtype=np.uint8)
    for place in range(each):
        out |= padded[place::each] << (bits * place)
    return out.tobytes()


def _unpack_codes(data: bytes, count: int, bits: int) -> NDArray[np.int64]:
    raw = np.frombuffer(data, dtype=np.uint8)
    each = 8 // bits
    codes = np.empty(each * len(raw), dtype=np.int64)
    for place in range(each):
        codes[place::each] = (raw >> (bits * place)) & ((1 << bits) - 1)
    if codes[count:].any():
        spare = "spare nibble is" if bits == DEFAULT_BITS else "spare codes are"
        raise Malformed(f"the {spare} 0, got {codes[count:].max()}")
    return codes[:count]
