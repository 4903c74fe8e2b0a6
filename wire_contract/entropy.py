"""The entropy stage behind an update's body and an index set: none, zstd or raw deflate.

The rules:
- the size of the body is declared in front of it, and the body has exactly that size;
- decompression stops at the declared size, whatever the bytes ask for; the zstd window is at most 8 MiB;
- one whole stream, and nothing behind it.
"""

import zlib
from typing import Final

import zstandard

from wire_contract.errors import Malformed

ENTROPY_CODES: Final = {"none": 0, "zstd": 1, "deflate": 2}
ENTROPY_NAMES: Final = {code: name for name, code in ENTROPY_CODES.items()}

_ZSTD_LEVEL = 19
_ZSTD_WINDOW_LOG = 23


def compress(body: bytes, entropy: str) -> bytes:
    """Return `body` behind the named stage; inverse of `decompress`."""
    if entropy == "zstd":
        return zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_content_size=False, write_checksum=False).compress(
            body
        )
    if entropy == "deflate":
        deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
        return deflate.compress(body) + deflate.flush()
    return body


def decompress(packed: bytes, size: int, entropy: str) -> bytes:
    """Return exactly `size` bytes or raise `Malformed`; never holds more than a zstd block above that."""
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
