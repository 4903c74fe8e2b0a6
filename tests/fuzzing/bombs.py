"""Inputs that ask for much: compression bombs, lengths that lie, deep nesting. Each must be refused, and cheaply.

They are made without ever holding what they stand for, so that a process's peak memory says what decoding took.
"""

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import zstandard

from tests.fuzzing import file_targets, update_targets
from tests.wire_contract.samples import MESSAGES
from wire_contract import basis, delta, envelope, index_set, manifest, messages, patch, topics, vocabulary

BOMB_MB = 256
_MB = bytes(1 << 20)


@dataclass(frozen=True, slots=True)
class Bomb:
    """One input that must be refused by `decode`."""

    name: str
    decode: Callable[[bytes], object]
    data: bytes


def zstd_zeros(size_mb: int, **parameters: Any) -> bytes:
    """Return a zstd frame of that many MB of zeros, made in pieces."""
    stated = parameters.pop("stated", False)
    compressor = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters.from_level(3, write_content_size=stated, **parameters)
    ).compressobj(**({"size": size_mb << 20} if stated else {}))
    return b"".join(compressor.compress(_MB) for _ in range(size_mb)) + compressor.flush()


def deflate_zeros(size_mb: int) -> bytes:
    """Return a raw deflate stream of that many MB of zeros."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    return b"".join(deflate.compress(_MB) for _ in range(size_mb)) + deflate.flush()


def _update(packed: bytes, *, entropy: int, k: int = 8, length: int = 20) -> bytes:
    head = struct.pack("<4sBBBBIIfI", b"EFU1", 1, entropy, 4, 0, update_targets.SIZE, k, 1.0, length)
    return head + packed


def _set(packed: bytes, *, k: int = 8, length: int = 8) -> bytes:
    return struct.pack("<4sIII", b"EFI1", update_targets.SIZE, k, length) + packed


def _delta(packed: bytes) -> bytes:
    section = bytes([delta.DENSE]) + struct.pack("<fII", 0.5, 24, min(23, len(packed))) + packed
    data = bytearray(file_targets.DIRECT[:108])
    struct.pack_into("<I", data, 40, 64 + len(section))
    return bytes(data) + section


def bombs() -> Iterator[Bomb]:
    """Yield every explicit case."""
    frame, skippable = zstd_zeros(BOMB_MB), struct.pack("<II", 0x184D2A50, 16) + bytes(16)
    small = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(20))
    frames = {
        "a zstd bomb": frame,
        "a zstd bomb that states its size": zstd_zeros(BOMB_MB, stated=True),
        "a zstd frame with a window of 32 MB": zstd_zeros(40, window_log=25),
        "two zstd frames": small + small,
        "a skippable frame first": skippable + small,
        "a skippable frame behind": small + skippable,
        "only a skippable frame": skippable,
        "a frame that states 2^62 bytes": b"\x28\xb5\x2f\xfd\xc0\x00" + struct.pack("<Q", 1 << 62) + b"\1\0\0",
        "a frame that needs a dictionary": b"\x28\xb5\x2f\xfd\x01\x58\x07\1\0\0",
        "blocks of 128 kB from four bytes": b"\x28\xb5\x2f\xfd\x00\x58"
        + b"\x02\x00\x10\x00" * 900
        + b"\x03\x00\x10\x00",
    }
    for name, packed in frames.items():
        yield Bomb(f"update: {name}", update_targets.decode_topk, _update(packed, entropy=1))
        yield Bomb(f"index set: {name}", index_set.decode_index_set, _set(packed))
        yield Bomb(f"delta: {name}", file_targets.decode_delta, _delta(packed))
    yield Bomb("update: a deflate bomb", update_targets.decode_topk, _update(deflate_zeros(BOMB_MB), entropy=2))
    yield Bomb(
        "update: a deflate stream that never ends",
        update_targets.decode_topk,
        _update(b"\0\0\0\xff\xff" * 9_000, entropy=2),
    )
    for k, length in ((2**32 - 1, 2**32 - 1), (400, 1_800), (0, 2**31), (2**22, 2**24)):
        yield Bomb(
            f"update: k {k}, length {length}", update_targets.decode_topk, _update(frame, entropy=1, k=k, length=length)
        )
        yield Bomb(f"index set: k {k}, length {length}", index_set.decode_index_set, _set(frame, k=k, length=length))
    yield from _messages()
    yield Bomb("vocabulary: too long", vocabulary.Vocabulary.from_bytes, bytes(vocabulary.MAX_FILE_BYTES + 1))
    many = b"<pad>\n<s>\n<unk>\n<num>\n" + b"".join(
        bytes((97 + i // 17_576 % 26, 97 + i // 676 % 26, 97 + i // 26 % 26, 97 + i % 26, 10)) for i in range(65_536)
    )
    yield Bomb("vocabulary: too many words", vocabulary.Vocabulary.from_bytes, many)
    yield Bomb("vocabulary: one endless line", vocabulary.Vocabulary.from_bytes, b"a" * 2_000_000 + b"\n")
    yield Bomb("topic: long", lambda data: topics.parse_topic(data.decode()), b"/" * 2_000_000)
    yield Bomb("weights: a short file", lambda data: patch.read_tensors(data, file_targets.MANIFEST), b"")


def _messages() -> Iterator[Bomb]:
    readers: dict[str, Callable[[bytes], object]] = {
        "message": lambda data: messages.decode_message(data, messages.AnyMessage),
        "receipt": lambda data: messages.decode_message(data, messages.Receipt),
        "envelope": envelope.read_envelope,
        "manifest": manifest.decode_manifest,
        "basis": lambda data: basis.decode_basis(basis.MAGIC + data),
    }
    depths = {
        "arrays 30,000 deep": b"\x91" * 30_000 + b"\xc0",
        "maps 30,000 deep": b"\x81\xa1a" * 10_000 + b"\xc0",
        "an array of 2^32-1": b"\xdd\xff\xff\xff\xff" + b"\xc0" * 99,
        "a map of 2^32-1": b"\xdf\xff\xff\xff\xff\xa1a\xc0",
        "bytes of 2^32-1": b"\xc6\xff\xff\xff\xff" + b"x" * 99,
        "a text of 2^32-1": b"\xdb\xff\xff\xff\xff" + b"x" * 99,
        "a map whose value is an array of 2^32-1": b"\x81\xa4type\xdd\xff\xff\xff\xff",
        "an unknown field 20,000 deep": b"\x82\xa4type\xa7receipt\xa1z" + b"\x91" * 20_000 + b"\xc0",
        "nothing": b"",
    }
    for reader, decode in readers.items():
        for name, data in depths.items():
            yield Bomb(f"{reader}: {name}", decode, data)
        yield Bomb(f"{reader}: too long", decode, bytes(messages.MAX_MESSAGE_BYTES + 1))
    wide = msgspec.msgpack.encode({"width": 1024, "turned": [{"tensor": "a", "axis": 0}], "matrix": bytes(16)})
    yield Bomb("basis: wide, of 16 bytes", readers["basis"], wide)
    yield Bomb("basis: too long by a byte", basis.decode_basis, basis.MAGIC + bytes(messages.MAX_BASIS_BYTES - 3))
    yield Bomb("manifest: too long", manifest.decode_manifest, bytes(manifest.MAX_MANIFEST_BYTES + 1))
    receipt = next(message for message in MESSAGES if isinstance(message, messages.Receipt))
    tree = msgspec.msgpack.decode(messages.encode_message(receipt))
    for name, missing in {
        "4,097 chunks": list(range(4_097)), "90,000 chunks": [1] * 90_000, "chunk -1": [-1], "chunk 65,536": [65_536],
        "chunk 2^64-1": [2**64 - 1], "no list": {"0": 1}, "a text": ["0"], "half a chunk": [0.5],
    }.items():  # fmt: skip
        data = msgspec.msgpack.encode({**tree, "missing": missing})
        yield Bomb(f"receipt: {name} missing", readers["receipt"], data)
