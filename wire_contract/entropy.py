"""The entropy stage behind an update's body and an index set: none, zstd or raw deflate.

The rules:
- the size of the body is declared in front of it, and the body has exactly that size;
- decompression stops at the declared size, whatever the bytes ask for; the zstd window is at most 8 MiB;
- one whole stream, and nothing behind it.
"""

import threading
import zlib
from typing import Final

import zstandard

from wire_contract.errors import Malformed

ENTROPY_CODES: Final = {"none": 0, "zstd": 1, "deflate": 2}
ENTROPY_NAMES: Final = {code: name for name, code in ENTROPY_CODES.items()}

_ZSTD_LEVEL = 19
_ZSTD_WINDOW_BYTES = 1 << 23
# Magic, the longest header, one empty block and a checksum take 25.
_EMPTY_FRAME_BYTES = 32


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
    """Return exactly `size` bytes or raise `Malformed`; never holds more of the body than that."""
    if entropy == "zstd":
        return _decompress_zstd(packed, size)
    if entropy == "none":
        body, rest = packed, b""
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


def _decompress_zstd(packed: bytes, size: int) -> bytes:
    if packed[:4] != zstandard.FRAME_HEADER:
        raise Malformed(f"the body is one zstd frame, which begins with {zstandard.FRAME_HEADER.hex()}")
    try:
        frame = zstandard.get_frame_parameters(packed)
        # A frame that states its size, or wants a window, makes the library take that much, whatever bound it is given.
        if frame.content_size not in (zstandard.CONTENTSIZE_UNKNOWN, size):
            raise Malformed(f"the body has {size} bytes, its frame states {frame.content_size}")
        if frame.window_size > _ZSTD_WINDOW_BYTES:
            raise Malformed(f"a zstd window has at most {_ZSTD_WINDOW_BYTES} bytes, got {frame.window_size}")
        body = _empty_frame(packed) if size == 0 else _whole_frame(packed, size)
    except zstandard.ZstdError as e:
        raise Malformed(f"the body has {size} bytes and nothing behind it, one whole zstd frame: {e}") from e
    if len(body) != size:
        raise Malformed(f"the body has {size} bytes and nothing behind it, got {len(body)}")
    return body


def _whole_frame(packed: bytes, size: int) -> bytes:
    # The bound is exact: only of a full buffer does the library say that bytes are left over.
    body: bytes = _decompressor().decompress(
        packed, max_output_size=size, read_across_frames=False, allow_extra_data=False
    )
    return body


def _empty_frame(packed: bytes) -> bytes:
    """Return what a frame that should hold nothing holds. The library takes a bound of 0 for none."""
    if len(packed) > _EMPTY_FRAME_BYTES:
        raise Malformed(f"a zstd frame of 0 bytes has at most {_EMPTY_FRAME_BYTES} bytes, got {len(packed)}")
    stream = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES).decompressobj()
    body: bytes = stream.decompress(packed)
    if not stream.eof or stream.unused_data:
        raise Malformed("the body is one whole zstd frame and nothing behind it, got a cut one or more")
    return body


_of_thread = threading.local()


def _decompressor() -> zstandard.ZstdDecompressor:
    """Return this thread's decompressor: making one takes as long as half an update, and none may be shared."""
    found: zstandard.ZstdDecompressor | None = getattr(_of_thread, "zstd", None)
    if found is None:
        found = _of_thread.zstd = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
    return found
