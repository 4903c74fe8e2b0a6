"""The update's wire form read slowly, with Python's integers and decimals: the judge of what the codec accepts.

Written from the codec's docstring: no numpy, no table of constants. Each reader returns the entries as (index, value)
or raises `ValueError` with the rule that does not hold.
"""

import decimal
import math
import struct
import zlib

import zstandard

_HEADER = struct.Struct("<4sBBBBIIfI")
Entries = list[tuple[int, float]]
# Fifty digits, so that one rounding to binary64 is the correct one.
_DIGITS = decimal.Context(prec=50)
SIXTEENTHS = [float(_DIGITS.power(decimal.Decimal(2), decimal.Decimal(-j) / 16)) for j in range(16)]


def require(holds: bool, rule: str) -> None:
    if not holds:
        raise ValueError(rule)


def read_gaps(data: bytes, count: int) -> list[int]:
    """Read `count` canonical LEB128 numbers of at most 4 bytes that fill `data`."""
    numbers, at = [], 0
    for _ in range(count):
        number, place = 0, 0
        while True:
            require(at < len(data), "the gaps are cut")
            require(place < 4, "a gap has at most 4 bytes")
            byte = data[at]
            at += 1
            number |= (byte & 127) << 7 * place
            place += 1
            if byte < 128:
                break
        require(place == 1 or byte != 0, "a gap is in its shortest form")
        numbers.append(number)
    require(at == len(data), "the gaps fill their bytes")
    return numbers


def read_indices(data: bytes, count: int, size: int) -> list[int]:
    """Read ascending indices below `size`."""
    indices, index = [], -1
    for gap in read_gaps(data, count):
        index += gap + 1
        require(index < size, "an index lies in the model")
        indices.append(index)
    return indices


def inflate(packed: bytes, entropy: int) -> bytes:
    """Return what one whole stream holds. Not bounded: only for bytes that the bounded decoder has accepted."""
    if entropy == 0:
        return packed
    stream = zstandard.ZstdDecompressor().decompressobj() if entropy == 1 else zlib.decompressobj(-15)
    body = stream.decompress(packed)
    require(stream.eof and not stream.unused_data, "one whole stream and nothing behind it")
    return bytes(body)


def read_bits(data: bytes, count: int, width: int) -> list[int]:
    """Read `count` numbers of `width` bits, low bits first; the spare bits are 0."""
    whole = int.from_bytes(data, "little")
    require(len(data) == -(-count * width // 8), "the numbers fill their bytes")
    require(whole >> count * width == 0, "spare bits are 0")
    return [whole >> width * j & (1 << width) - 1 for j in range(count)]


def read_topk(data: bytes, size: int) -> Entries:
    """Read a `topk` update."""
    require(len(data) >= _HEADER.size, "a whole header")
    magic, mode, entropy, step, width, n, k, scale, length = _HEADER.unpack_from(data)
    require(magic == b"EFU1" and mode == 1, "magic and mode")
    require(entropy in (0, 1, 2) and width in (0, 1, 2, 8), "a known stage and width")
    bits = width or 4
    levels = 2 ** (bits - 1)
    require(step >= 1 and step * (levels - 1) <= 126 * 16, "the step")
    require(n == size and k <= n, "n and k")
    require(math.isfinite(scale) and scale > 0, "the scale")
    body = inflate(data[_HEADER.size :], entropy)
    require(len(body) == length, "the body's length")
    code_bytes = -(-k * bits // 8)
    require(len(body) >= code_bytes, "the body holds the codes")
    indices = read_indices(body[: len(body) - code_bytes], k, size)
    entries = []
    for index, code in zip(indices, read_bits(body[len(body) - code_bytes :], k, bits), strict=True):
        octaves, sixteenths = divmod(step * (code % levels), 16)
        value = scale * (SIXTEENTHS[sixteenths] * 0.5**octaves)
        entries.append((index, -value if code >= levels else value))
    return entries


def read_shared(data: bytes, size: int, indices: list[int], set_id: bytes) -> Entries:
    """Read a `shared` update over the places `indices`."""
    require(len(data) >= _HEADER.size, "a whole header")
    magic, mode, entropy, headroom, bits, n, k, unit, length = _HEADER.unpack_from(data)
    require(magic == b"EFU1" and mode == 2 and entropy == 0, "magic, mode and no stage")
    require(2 <= bits <= 16 and headroom <= 20 and bits + headroom <= 32, "the ring")
    require(n == size and k == len(indices), "n and k")
    require(math.isfinite(unit) and 0 < unit <= 1e6, "the unit")
    body = data[_HEADER.size :]
    require(len(body) == length and body[:8] == set_id, "length and set")
    width, entries = bits + headroom, []
    for index, number in zip(indices, read_bits(body[8:], k, width), strict=True):
        centered = number - (1 << width) if number >= 1 << width - 1 else number
        require(abs(centered) < 1 << bits - 1, "the value range")
        entries.append((index, centered * unit))
    return entries
