"""Fuzz targets of what an update is made of: the codec's two modes, index sets, LEB128, rings."""

import math
import struct
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import zstandard

from tests.fuzzing import slow_codec
from tests.fuzzing.target import Broken, Target
from wire_contract import codec, index_set, leb128, ring
from wire_contract.messages import CodecPlan

SIZE = 400
WIDTHS = {0: 4, 1: 1, 2: 2, 8: 8}
_NOT_A_NUMBER = (float("nan"), float("inf"), float("-inf"))
_COMPRESSOR = zstandard.ZstdCompressor(level=1, write_content_size=False)
SET = index_set.decode_index_set(index_set.encode_index_set(SIZE, np.arange(3, SIZE, 37)))
PLACES = SET.indices.tolist()
RING = ring.Ring(2.0**-10, 7, 4)
FEW = CodecPlan(mode="topk", bits=4, kept=8 / SIZE)
PLAN = CodecPlan(mode="shared", bits=7, headroom_bits=4, unit=2.0**-10, index_set=SET.sha256)


def delta(seed: int) -> np.ndarray:
    """Values with heavy tails in clusters."""
    rng = np.random.default_rng(seed)
    return (rng.standard_t(3, SIZE) * np.repeat(rng.lognormal(0, 2, SIZE // 20), 20) * 1e-2).astype(np.float32)


def stored(body: bytes, entropy: int) -> bytes:
    """Put a body behind its stage."""
    if entropy == 1:
        packed: bytes = _COMPRESSOR.compress(body)
        return packed
    if entropy == 2:
        deflate = zlib.compressobj(1, zlib.DEFLATED, -15)
        return deflate.compress(body) + deflate.flush()
    return body


def gap(number: int) -> bytes:
    """Canonical LEB128 of one number."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes((*out, number))


def packed_bits(numbers: list[int], width: int) -> bytes:
    whole = sum(number << width * place for place, number in enumerate(numbers))
    return whole.to_bytes(-(-len(numbers) * width // 8), "little")


def topk_bytes(rng: Random, **changes: Any) -> bytes:
    """Draw a good `topk` update of 2 to 11 values; `changes` replace header fields, `gaps`, `codes` or `behind`."""
    width = changes.get("width", rng.choice((0, 1, 2, 8)))
    bits = changes.pop("bits", WIDTHS.get(width, 4))
    count = changes.pop("count", 2 + int(rng.random() * 10))
    entropy = changes.get("entropy", int(rng.random() * 3))
    gaps = changes.pop("gaps", None) or b"".join(gap(int(rng.random() * SIZE / 12)) for _ in range(count))
    codes = changes.pop("codes", None) or packed_bits([int(rng.random() * 2**bits) for _ in range(count)], bits)
    body = gaps + codes
    behind = changes.pop("behind", b"")
    packed = changes.pop("packed", None) or stored(body, changes.pop("stage", entropy)) + behind
    fields = {
        "magic": b"EFU1", "mode": 1, "entropy": entropy, "step": 1 + int(rng.random() * 15), "width": width, "n": SIZE,
        "k": count, "scale": math.exp(rng.uniform(-8, 3)), "length": len(body), **changes,
    }  # fmt: skip
    return struct.pack("<4sBBBBIIfI", *fields.values()) + packed


def _with(field: str, draw: Callable[[Random], Any]) -> Callable[[Random], bytes]:
    return lambda rng: topk_bytes(rng, **{field: draw(rng)})


def _lying_length(by: int) -> Callable[[Random], bytes]:
    def make(rng: Random) -> bytes:
        data = bytearray(topk_bytes(rng))
        (length,) = struct.unpack_from("<I", data, 20)
        struct.pack_into("<I", data, 20, max(0, length + by) if abs(by) < 1 << 20 else 0xFFFFFFFF)
        return bytes(data)

    return make


def _lying_count(by: int) -> Callable[[Random], bytes]:
    def make(rng: Random) -> bytes:
        count = 2 + int(rng.random() * 10)
        return topk_bytes(rng, count=count, k=count + by)

    return make


def _spare(rng: Random) -> bytes:
    width, count = rng.choice(((0, 3), (0, 5), (1, 3), (1, 5), (2, 2), (2, 3)))
    bits = WIDTHS[width]
    codes = bytearray(packed_bits([0] * count, bits))
    codes[-1] |= 1 << rng.randrange(count * bits % 8, 8)
    return topk_bytes(rng, width=width, count=count, codes=bytes(codes))


def _magic(rng: Random) -> bytes:
    return rng.choice((b"EFU0", b"EFU2", b"EFI1", b"\0\0\0\0", b"efu1", b"1UFE"))


TOPK_BROKEN = (
    Broken("magic", "is another", _with("magic", _magic)),
    Broken("mode", "is unknown", _with("mode", lambda rng: rng.choice((0, *range(3, 256))))),
    Broken("mode", "is the other one's", _with("mode", lambda rng: 2)),
    Broken("entropy", "is unknown", lambda rng: topk_bytes(rng, entropy=rng.randrange(3, 256), stage=0)),
    Broken("entropy", "is zstd and the body is not", lambda rng: topk_bytes(rng, entropy=1, stage=0)),
    Broken(
        "entropy",
        "is deflate and the body is not",
        lambda rng: topk_bytes(rng, entropy=2, stage=0, gaps=b"\x07\1", count=2),
    ),
    Broken("step", "is 0", _with("step", lambda rng: 0)),
    Broken("step", "spans too many octaves", lambda rng: topk_bytes(rng, width=8, step=rng.randrange(16, 256))),
    Broken("width", "is unknown", _with("width", lambda rng: rng.choice((3, 4, 5, 6, 7, *range(9, 256))))),
    Broken("n", "is another model's", _with("n", lambda rng: rng.choice((0, 1, SIZE - 1, SIZE + 1, 2**31, 2**32 - 1)))),
    Broken("k", "is above n", _with("k", lambda rng: rng.choice((SIZE + 1, 2**22 + 1, 2**31, 2**32 - 1)))),
    Broken("k", "is one more than there are", _lying_count(1)),
    Broken("k", "is one fewer than there are", _lying_count(-1)),
    Broken("k", "is 0 before a body", _with("k", lambda rng: 0)),
    Broken("scale", "is 0", _with("scale", lambda rng: rng.choice((0.0, -0.0)))),
    Broken("scale", "is negative", _with("scale", lambda rng: -rng.random() - 1e-9)),
    Broken("scale", "is not finite", _with("scale", lambda rng: rng.choice(_NOT_A_NUMBER))),
    Broken("length", "is one more than there is", _lying_length(1)),
    Broken("length", "is one less than there is", _lying_length(-1)),
    Broken("length", "is huge", _lying_length(1 << 31)),
    Broken("length", "is 0", _with("length", lambda rng: 0)),
    Broken("body", "has bytes behind", lambda rng: topk_bytes(rng, behind=rng.randbytes(1 + rng.randrange(9)))),
    Broken("body", "is cut", lambda rng: topk_bytes(rng)[: -1 - rng.randrange(3)]),
    Broken("body", "is missing", lambda rng: topk_bytes(rng)[:24]),
    Broken("header", "is cut", lambda rng: topk_bytes(rng)[: rng.randrange(24)]),
    Broken("gaps", "one is padded", lambda rng: topk_bytes(rng, count=2, gaps=bytes((rng.randrange(128) | 128, 0, 5)))),
    Broken("gaps", "one has five bytes", lambda rng: topk_bytes(rng, count=2, gaps=b"\x81\x80\x80\x80\x01\x05")),
    Broken(
        "gaps", "the last does not end", lambda rng: topk_bytes(rng, count=2, gaps=bytes((5, rng.randrange(128, 256))))
    ),
    Broken(
        "gaps",
        "an index lies beyond",
        lambda rng: topk_bytes(rng, count=3, gaps=b"\1" + gap(rng.randrange(SIZE, 2**28)) + b"\2"),
    ),
    Broken("gaps", "all together lie beyond", lambda rng: topk_bytes(rng, count=8, gaps=b"\xff\xff\xff\x7f" * 8)),
    Broken("gaps", "one is missing", lambda rng: topk_bytes(rng, count=3, gaps=b"\1\2")),
    Broken("gaps", "one is too many", lambda rng: topk_bytes(rng, count=3, gaps=b"\1\2\3\4")),
    Broken("codes", "a spare bit is set", _spare),
    Broken("codes", "one byte is missing", lambda rng: topk_bytes(rng, width=8, count=3, codes=b"\1\2")),
)


def judge_topk(data: bytes, value: Any) -> str:
    return judge_entries(lambda: slow_codec.read_topk(data, SIZE), value)


def judge_entries(read: Callable[[], slow_codec.Entries], value: Any) -> str:
    """Compare a decoded vector with the slow reader's entries, bit for bit."""
    try:
        wanted = read()
    except ValueError as e:
        return f"this rule does not hold: {e}"
    seen = list(zip(value.indices.tolist(), value.values.tolist(), strict=True))
    return "" if seen == wanted and value.size == SIZE else f"it says {wanted[:4]} and not {seen[:4]}"


def topk_seeds() -> tuple[bytes, ...]:
    return tuple(
        codec.encode(delta(seed), None, kept=kept, clip_norm=1.0, entropy=entropy, bits=bits).data
        for seed, (kept, bits) in enumerate(((1, 4), (12, 4), (13, 4), (11, 8), (12, 2), (13, 1)))
        for entropy in ("none", "zstd", "deflate")
    )


def shared_bytes(rng: Random, **changes: Any) -> bytes:
    """Draw a good `shared` update; `changes` replace header fields, `set_id`, `numbers` or `behind`."""
    width, largest = RING.width, RING.largest
    numbers = changes.pop("numbers", None) or [rng.randint(-largest, largest) for _ in PLACES]
    body = changes.pop("set_id", SET.id) + packed_bits([number % (1 << width) for number in numbers], width)
    body += changes.pop("behind", b"")
    fields = {
        "magic": b"EFU1", "mode": 2, "entropy": 0, "headroom": RING.headroom_bits, "bits": RING.bits, "n": SIZE,
        "k": len(PLACES), "unit": RING.unit, "length": len(body), **changes,
    }  # fmt: skip
    return struct.pack("<4sBBBBIIfI", *fields.values()) + body


def _shared(field: str, draw: Callable[[Random], Any]) -> Callable[[Random], bytes]:
    return lambda rng: shared_bytes(rng, **{field: draw(rng)})


def _beyond(rng: Random) -> bytes:
    numbers = [0] * len(PLACES)
    # 11 bits hold -1024..1023, a value of 7 bits lies within 63.
    numbers[rng.randrange(len(numbers))] = rng.choice((rng.randint(64, 1023), rng.randint(-1024, -64)))
    return shared_bytes(rng, numbers=numbers)


def _spare_ring(rng: Random) -> bytes:
    data = bytearray(shared_bytes(rng))
    data[-1] |= 1 << rng.randrange(len(PLACES) * RING.width % 8, 8)
    return bytes(data)


SHARED_BROKEN = (
    Broken("magic", "is another", _shared("magic", _magic)),
    Broken("mode", "is unknown", _shared("mode", lambda rng: rng.choice((0, *range(3, 256))))),
    Broken("mode", "is the other one's", _shared("mode", lambda rng: 1)),
    Broken("entropy", "is any", _shared("entropy", lambda rng: rng.randrange(1, 256))),
    Broken(
        "headroom", "is another than the plan's", _shared("headroom", lambda rng: rng.choice((0, 1, 2, 3, 5, 6, 20)))
    ),
    Broken("headroom", "is beyond the ring", _shared("headroom", lambda rng: rng.randrange(21, 256))),
    Broken("bits", "is another than the plan's", _shared("bits", lambda rng: rng.choice((2, 3, 4, 5, 6, 8, 16)))),
    Broken("bits", "is beyond the ring", _shared("bits", lambda rng: rng.choice((0, 1, *range(17, 256))))),
    Broken("n", "is another model's", _shared("n", lambda rng: rng.choice((0, SIZE - 1, SIZE + 1, 2**32 - 1)))),
    Broken(
        "k", "is not the set's", _shared("k", lambda rng: rng.choice((0, len(PLACES) - 1, len(PLACES) + 1, 2**32 - 1)))
    ),
    Broken("unit", "is 0 or less", _shared("unit", lambda rng: rng.choice((0.0, -0.0, -1.0)))),
    Broken("unit", "is not finite", _shared("unit", lambda rng: rng.choice(_NOT_A_NUMBER))),
    Broken("unit", "is another than the plan's", _shared("unit", lambda rng: 2.0 ** rng.choice((-9, -11, 0, 40)))),
    Broken("length", "lies", _shared("length", lambda rng: rng.choice((0, 1, 21, 2**32 - 1)))),
    Broken("set id", "is another set's", _shared("set_id", lambda rng: rng.randbytes(8))),
    Broken("body", "has bytes behind", _shared("behind", lambda rng: rng.randbytes(1 + rng.randrange(4)))),
    Broken("body", "is cut", lambda rng: shared_bytes(rng)[: -1 - rng.randrange(10)]),
    Broken("header", "is cut", lambda rng: shared_bytes(rng)[: rng.randrange(24)]),
    Broken("values", "one is beyond its range", _beyond),
    Broken("values", "a spare bit is set", _spare_ring),
)


def judge_shared(data: bytes, value: Any) -> str:
    return judge_entries(lambda: slow_codec.read_shared(data, SIZE, PLACES, SET.id), value)


def shared_seeds() -> tuple[bytes, ...]:
    return tuple(
        codec.encode_shared(delta(seed), None, index_set=SET, ring=RING, clip_norm=0.2).data for seed in range(3)
    )


def set_bytes(rng: Random, **changes: Any) -> bytes:
    """Draw a good index set's file; `changes` replace header fields, `gaps`, `packed` or `behind`."""
    count = changes.pop("count", 2 + int(rng.random() * 10))
    body = changes.pop("gaps", None) or b"".join(gap(int(rng.random() * SIZE / 12)) for _ in range(count))
    packed = changes.pop("packed", None) or _COMPRESSOR.compress(body)
    behind = changes.pop("behind", b"")
    fields = {"magic": b"EFI1", "n": SIZE, "k": count, "length": len(body), **changes}
    return struct.pack("<4sIII", *fields.values()) + packed + behind


SET_BROKEN = (
    Broken("magic", "is another", lambda rng: set_bytes(rng, magic=rng.choice((b"EFU1", b"EFI2", b"efi1")))),
    Broken("n", "is below k", lambda rng: set_bytes(rng, n=rng.randrange(2))),
    Broken("n", "is too large", lambda rng: set_bytes(rng, n=rng.choice((2**27 + 1, 2**32 - 1)))),
    Broken("k", "is 0", lambda rng: set_bytes(rng, k=0)),
    Broken("k", "is above n", lambda rng: set_bytes(rng, k=rng.choice((SIZE + 1, 2**22 + 1, 2**32 - 1)))),
    Broken("k", "is one more than there are", lambda rng: set_bytes(rng, count=5, k=6)),
    Broken("k", "is one fewer than there are", lambda rng: set_bytes(rng, count=5, k=4)),
    Broken("length", "lies", lambda rng: set_bytes(rng, length=rng.choice((0, 1, 200, 2**32 - 1)))),
    Broken("body", "is no zstd frame", lambda rng: set_bytes(rng, packed=b"\1\2\3\4\5")),
    Broken("body", "has bytes behind", lambda rng: set_bytes(rng, behind=rng.randbytes(1 + rng.randrange(9)))),
    Broken("body", "is cut", lambda rng: set_bytes(rng)[: -1 - rng.randrange(3)]),
    Broken("header", "is cut", lambda rng: set_bytes(rng)[: rng.randrange(17)]),
    Broken("gaps", "one is padded", lambda rng: set_bytes(rng, count=2, gaps=b"\x83\0\5")),
    Broken("gaps", "one has five bytes", lambda rng: set_bytes(rng, count=2, gaps=b"\x81\x80\x80\x80\x01\x05")),
    Broken("gaps", "the last does not end", lambda rng: set_bytes(rng, count=2, gaps=b"\5\x85")),
    Broken(
        "gaps",
        "an index lies beyond",
        lambda rng: set_bytes(rng, count=2, gaps=b"\5" + gap(rng.randrange(SIZE, 2**28))),
    ),
)


def judge_set(data: bytes, value: Any) -> str:
    magic, n, k, length = struct.unpack_from("<4sIII", data)
    try:
        body = slow_codec.inflate(data[16:], 1)
        slow_codec.require(magic == b"EFI1" and len(body) == length and 1 <= k <= n, "the header")
        wanted = slow_codec.read_indices(body, k, n)
    except ValueError as e:
        return f"this rule does not hold: {e}"
    return "" if (value.size, value.indices.tolist()) == (n, wanted) else f"it says {wanted[:4]}"


LEB_BROKEN = (
    Broken("number", "is padded", lambda rng: b"\2" + bytes((rng.randrange(128) | 128, 0, 1))),
    Broken("number", "has five bytes", lambda rng: b"\1\xff\xff\xff\xff\1"),
    Broken("number", "does not end", lambda rng: b"\2\1" + bytes((rng.randrange(128, 256),))),
    Broken("count", "is more than there are", lambda rng: bytes((4, 1, rng.randrange(128), 3))),
    Broken("count", "is fewer than there are", lambda rng: bytes((2, 1, rng.randrange(128), 3))),
    Broken("count", "is 0 before bytes", lambda rng: bytes((0, rng.randrange(256)))),
)


def judge_leb(data: bytes, value: Any) -> str:
    try:
        wanted = slow_codec.read_gaps(data[1:], data[0] if data else 0)
    except ValueError as e:
        return f"this rule does not hold: {e}"
    return "" if value.tolist() == wanted else f"it says {wanted}"


def decode_leb(data: bytes) -> Any:
    return leb128.read_leb128(data[1:], data[0] if data else 0)


def ring_of(data: bytes) -> ring.Ring:
    return ring.Ring(2.0**-8, data[0], data[1])


def decode_ring(data: bytes) -> Any:
    head = data[:3].ljust(3, b"\0")
    ring.check_ring(ring_of(head))
    return ring.read_values(data[3:], head[2] % 32, ring_of(head))


def ring_bytes(rng: Random, *, beyond: bool = False, spare: bool = False, longer: int = 0) -> bytes:
    bits, headroom, count = rng.randint(2, 16), rng.randint(1, 16), rng.randint(1, 31)
    width, largest = bits + headroom, (1 << bits - 1) - 1
    if spare:
        while count * width % 8 == 0:
            count, headroom = rng.randint(1, 31), rng.randint(1, 16)
            width = bits + headroom
    numbers = [rng.randint(-largest, largest) for _ in range(count)]
    if beyond:
        numbers[rng.randrange(count)] = rng.choice((largest + 1, -largest - 1))
    data = bytearray(packed_bits([number % (1 << width) for number in numbers], width))
    if spare:
        data[-1] |= 1 << rng.randrange(count * width % 8, 8)
    data = data[:longer] if longer < 0 else data + bytes(longer)
    return bytes((bits, headroom, count)) + bytes(data)


RING_BROKEN = (
    Broken("bits", "are none that a ring has", lambda rng: bytes((rng.choice((0, 1, *range(17, 256))), 4, 0))),
    Broken("headroom", "is too much", lambda rng: bytes((8, rng.randrange(21, 256), 0))),
    Broken("width", "is above 32", lambda rng: bytes((16, rng.randrange(17, 21), 0))),
    Broken("value", "is beyond its range", lambda rng: ring_bytes(rng, beyond=True)),
    Broken("body", "a spare bit is set", lambda rng: ring_bytes(rng, spare=True)),
    Broken("body", "is longer", lambda rng: ring_bytes(rng, longer=1 + rng.randrange(4))),
    Broken("body", "is shorter", lambda rng: ring_bytes(rng, longer=-1)),
)


def judge_ring(data: bytes, value: Any) -> str:
    bits, headroom, count = data[:3].ljust(3, b"\0")
    count %= 32
    try:
        numbers = slow_codec.read_bits(data[3:], count, bits + headroom)
    except ValueError as e:
        return f"this rule does not hold: {e}"
    wanted = [number - (1 << bits + headroom) if number >> bits + headroom - 1 else number for number in numbers]
    largest = (1 << bits - 1) - 1
    good = 2 <= bits <= 16 and headroom <= 20 and bits + headroom <= 32 and all(abs(q) <= largest for q in wanted)
    return "" if good and value.tolist() == wanted else f"it says {wanted}"


def decode_topk(data: bytes) -> Any:
    return codec.decode(data, size=SIZE)


def decode_few(data: bytes) -> Any:
    return codec.decode(data, size=SIZE, plan=FEW)


def few_bytes(rng: Random, **changes: Any) -> bytes:
    return topk_bytes(rng, **{"width": 0, "count": 1 + int(rng.random() * 8), **changes})


FEW_BROKEN = (
    Broken("k", "is above the plan's", lambda rng: few_bytes(rng, count=9 + int(rng.random() * 90), gaps=None)),
    Broken("width", "is another than the plan's", lambda rng: few_bytes(rng, width=rng.choice((1, 2, 8)))),
)


def judge_few(data: bytes, value: Any) -> str:
    if len(value.indices) > 8 or data[7] != 0:
        return "the plan has at most 8 values of 4 bits"
    return judge_topk(data, value)


def decode_shared(data: bytes) -> Any:
    return codec.decode(data, size=SIZE, plan=PLAN, index_set=SET)


def targets() -> list[Target]:
    """Every decoder of an update's parts."""
    rng = Random(7)
    return [
        Target("codec topk", topk_seeds(), decode_topk, judge_topk, TOPK_BROKEN, share=3.0),
        Target("codec topk of a plan", tuple(few_bytes(rng) for _ in range(6)), decode_few, judge_few, FEW_BROKEN),
        Target("codec shared", shared_seeds(), decode_shared, judge_shared, SHARED_BROKEN, share=2.0),
        Target("index set", tuple(set_bytes(rng) for _ in range(8)), index_set.decode_index_set, judge_set, SET_BROKEN),
        Target("leb128", tuple(bytes((3, *gap(a), *gap(b), *gap(1)))
                               for a, b in ((0, 127), (128, 16_383), (16_384, 2**21), (2**28 - 1, 5))),
               decode_leb, judge_leb, LEB_BROKEN, share=2.0),
        Target("ring", tuple(ring_bytes(rng) for _ in range(8)), decode_ring, judge_ring, RING_BROKEN),
    ]  # fmt: skip
