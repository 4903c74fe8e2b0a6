"""Fuzz targets of what is fetched or kept as a file: vocabularies, weights in a `.tflite`, deltas."""

import hashlib
import math
import re
import struct
from collections.abc import Callable
from random import Random
from typing import Any

import msgspec
import numpy as np

from tests.fuzzing import slow_msgpack
from tests.fuzzing.message_targets import listed
from tests.fuzzing.target import Broken, Target
from tests.wire_contract.samples import OFFLINE_BUNDLE
from tests.wire_contract.toy_model import FILE, MANIFEST, TENSORS
from wire_contract import delta, offline_bundle, patch, vocabulary
from wire_contract.offline_bundle import encode_offline_bundle

_GOOD = b"<pad>\n<s>\n<unk>\n<num>\nthe\ncat\ndon't\nsat\n"
_SPECIALS = b"<pad>\n<s>\n<unk>\n<num>\n"
_VOCABULARY_RULES: tuple[tuple[str, str, tuple[bytes, ...]], ...] = (
    ("file", "is not UTF-8", (_SPECIALS + b"caf\xe9\n", b"\xff\xfe", _SPECIALS + b"\xed\xa0\x80\n")),
    ("file", "does not end with a line break", (_GOOD[:-1], b"", _GOOD + b"x")),
    ("specials", "are others", (_GOOD.replace(b"<s>", b"<S>"), _GOOD[6:], b"\n" + _GOOD, b"the\ncat\nsat\nmat\nhat\n")),
    ("words", "are none", (_SPECIALS,)),
    ("words", "one is named twice", (_GOOD + b"cat\n", _SPECIALS + b"a\na\n")),
    ("words", "one is empty", (_GOOD + b"\n", _SPECIALS + b"\na\n")),
    ("words", "one is too long", (_GOOD + b"a" * 41 + b"\n",)),
    ("words", "one is no word", tuple(_GOOD + w + b"\n" for w in (b"The", b"a b", b"'a", b"a'", b"a''b", b"a1", b"a-b",
                                                                  b"a\r", b"\xc3\xa9", b"a\0", b"a\x0b", b"<pad>"))),
)  # fmt: skip


def judge_vocabulary(data: bytes, value: Any) -> str:
    words = data[:-1].split(b"\n")
    good = data[-1:] == b"\n" and words[:4] == [b"<pad>", b"<s>", b"<unk>", b"<num>"] and 4 < len(words) <= 65_536
    good = good and len(set(words)) == len(words)
    good = good and all(re.fullmatch(rb"[a-z']+", w) and len(w) <= 40 and b"''" not in w for w in words[4:])
    good = good and not any(w.startswith(b"'") or w.endswith(b"'") for w in words[4:])
    return "" if good and value.to_bytes() == data and len(value) == len(words) else "a rule of the file does not hold"


def _file_with(at: int, draw: Callable[[Random], float]) -> Callable[[Random], bytes]:
    def make(rng: Random) -> bytes:
        data = bytearray(FILE)
        struct.pack_into("<f", data, at, draw(rng))
        return bytes(data)

    return make


def _not_finite(rng: Random) -> float:
    return rng.choice((float("nan"), float("inf"), float("-inf")))


WEIGHTS_BROKEN = (
    Broken("size", "is another", lambda rng: FILE[: rng.randrange(len(FILE))]),
    Broken("size", "is larger", lambda rng: FILE + bytes(1 + rng.randrange(9))),
    *(
        Broken(f"scale at {at}", rule, _file_with(at, draw))
        for at in (MANIFEST.tensors[0].scale_offsets[0], MANIFEST.tensors[1].scale_offsets[0])
        for rule, draw in (
            ("is not finite", _not_finite),
            ("is 0", lambda rng: rng.choice((0.0, -0.0))),
            ("is negative", lambda rng: -rng.random() - 1e-9),
        )
    ),
    *(
        Broken(f"bias {i}", "is not finite", _file_with(MANIFEST.tensors[2].offsets[0] + 4 * i, _not_finite))
        for i in range(6)
    ),
)


def judge_weights(data: bytes, value: Any) -> str:
    if len(data) != len(FILE):
        return "the file has another size"
    for tensor in MANIFEST.tensors:
        rows, columns = (tensor.shape * 2)[:2] if len(tensor.shape) == 2 else (1, tensor.shape[0])
        form = f"<{rows * columns}{'b' if tensor.kind == 'int8' else 'f'}"
        raw = struct.unpack_from(form, data, tensor.offsets[0])
        if tensor.kind == "int8":
            (scale,) = struct.unpack_from("<f", data, tensor.scale_offsets[0])
            if not (math.isfinite(scale) and scale > 0):
                return f"the scale of {tensor.name} is {scale}"
            with np.errstate(over="ignore"):
                raw = tuple(float(np.float32(code * scale)) for code in raw)
        if tensor.transposed:
            raw = tuple(raw[c * rows + r] for r in range(rows) for c in range(columns))
        if not all(map(math.isfinite, raw)):
            return f"{tensor.name} is not finite"
        if value[tensor.name].shape != tensor.shape or tuple(value[tensor.name].reshape(-1).tolist()) != raw:
            return f"{tensor.name} is {raw[:3]}"
    return ""


def decode_weights(data: bytes) -> Any:
    return patch.read_tensors(data, MANIFEST)


def version(*moved: tuple[int, int]) -> bytes:
    """Return the file of a version in which these rows' values and one bias are others."""
    tensors = {name: value.copy() for name, value in TENSORS.items()}
    for row, column in moved:
        tensors["rows"][row, column] *= np.float32(0.37)
        tensors["bias"][row] += np.float32(0.25)
    return patch.patch(FILE, MANIFEST, tensors)


# One code moves, so that the direct delta has the sparse form whose fields are broken below.
MIDDLE, TARGET = version((1, 2)), version((4, 1))
TO_TARGET = msgspec.structs.replace(MANIFEST, version=3, sha256=hashlib.sha256(TARGET).hexdigest())
DIRECT = delta.encode(FILE, TARGET, MANIFEST)
CHAINED = delta.chain([delta.encode(FILE, MIDDLE, MANIFEST), delta.encode(MIDDLE, TARGET, MANIFEST)])
_HEAD = 40
_BODY = _HEAD + 4 + 64


def _changed(at: int, new: bytes, data: bytes = DIRECT) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def _other(at: int, count: int) -> Callable[[Random], bytes]:
    """Return a maker of deltas with one byte of a field changed."""

    def make(rng: Random) -> bytes:
        place = at + rng.randrange(count)
        return _changed(place, bytes((DIRECT[place] ^ (1 + rng.randrange(255)),)))

    return make


def _length(by: int) -> Callable[[Random], bytes]:
    (length,) = struct.unpack_from("<I", DIRECT, _HEAD)
    return lambda rng: _changed(_HEAD, struct.pack("<I", (length + by) % 2**32))


# Section by section: mode, then for a sparse one scale, count, and blocks of length, packed length, bytes.
_FIRST_COUNT = _BODY + 1 + 4
_FIRST_BLOCK = _FIRST_COUNT + 4
DELTA_BROKEN = (
    Broken("magic", "is another", _other(0, 4)),
    Broken("format", "is another", _other(4, 1)),
    Broken("hops", "are none", lambda rng: _changed(5, b"\0")),
    Broken("hops", "are more than there are", lambda rng: _changed(5, bytes((rng.randrange(2, 256),)))),
    Broken("hops", "are fewer than there are", lambda rng: _changed(5, b"\1", CHAINED)),
    Broken("hops", "are too many", lambda rng: _changed(5, bytes((17,)), DIRECT[:_HEAD]) + DIRECT[_HEAD:] * 17),
    Broken("hops", "do not follow one another", lambda rng: _changed(5, b"\2") + DIRECT[_HEAD:]),
    Broken("reserved", "is not 0", _other(6, 2)),
    Broken("template", "is another", _other(8, 32)),
    Broken("hop length", "is one more", _length(1)),
    Broken("hop length", "is one less", _length(-1)),
    Broken("hop length", "is huge", _length(1 << 31)),
    Broken("hop length", "is below its hashes", lambda rng: _changed(_HEAD, struct.pack("<I", rng.randrange(64)))),
    Broken("base", "is another", _other(_HEAD + 4, 32)),
    Broken("target", "is another", _other(_HEAD + 36, 32)),
    Broken("section mode", "is another", _other(_BODY, 1)),
    Broken("section scale", "is another", _other(_BODY + 1, 4)),
    Broken(
        "section count",
        "is huge",
        lambda rng: _changed(_FIRST_COUNT, struct.pack("<I", rng.choice((25, 2**31, 2**32 - 1)))),
    ),
    Broken("section count", "is another", _other(_FIRST_COUNT, 4)),
    Broken("block length", "is another", _other(_FIRST_BLOCK, 4)),
    Broken("block packed length", "is another", _other(_FIRST_BLOCK + 4, 4)),
    Broken("delta", "is cut", lambda rng: DIRECT[: rng.randrange(len(DIRECT))]),
    Broken("delta", "has bytes behind", lambda rng: DIRECT + bytes(1 + rng.randrange(9))),
)


def decode_delta(data: bytes) -> bytes:
    return delta.apply(FILE, data, TO_TARGET)


def judge_delta(data: bytes, value: object) -> str:
    return "" if value == TARGET else "it makes another file"


def judge_hops(data: bytes, value: Any) -> str:
    hops = b"".join(
        struct.pack("<I", len(hop.body) + 64) + bytes.fromhex(hop.base) + bytes.fromhex(hop.target) + hop.body
        for hop in value.hops
    )
    head = b"EFD1\1" + bytes((len(value.hops), 0, 0)) + bytes.fromhex(value.template_sha256)
    return "" if head + hops == data else "it writes other bytes"


def _of_form(names: tuple[str, ...]) -> tuple[Broken, ...]:
    return tuple(broken for broken in DELTA_BROKEN if broken.field in names)


_OFFLINE = encode_offline_bundle(OFFLINE_BUNDLE)
_MAGIC_END = len(offline_bundle.MAGIC)


def judge_offline(data: bytes, value: object) -> str:
    if data[:_MAGIC_END] != b"edge-federation offline bundle v1\n":
        return "it begins otherwise"
    return slow_msgpack.judge_struct(data[_MAGIC_END:], value)


def _offline(**changes: Any) -> bytes:
    tree = msgspec.msgpack.decode(_OFFLINE[_MAGIC_END:])
    return offline_bundle.MAGIC + msgspec.msgpack.encode({**tree, **changes})


_OFFLINE_RULES: tuple[tuple[str, str, tuple[bytes, ...]], ...] = (
    ("magic", "is another", (_OFFLINE[1:], b"", _OFFLINE[:_MAGIC_END], b"E" + _OFFLINE[1:], _OFFLINE[_MAGIC_END:])),
    ("roots", "are none or too many", (_offline(roots=[]), _offline(roots=[b"r"] * 65), _offline(roots=[b""]))),
    ("roots", "one is too long", (_offline(roots=[bytes(65_537)]),)),
    ("targets", "are empty or too long", (_offline(targets=b""), _offline(targets=bytes(262_145)))),
    ("model", "is empty", (_offline(model=b""),)),
    ("file", "goes on", (_OFFLINE + b"\0", _OFFLINE + _OFFLINE)),
    ("file", "is cut", tuple(_OFFLINE[:n] for n in range(_MAGIC_END, len(_OFFLINE), 7))),
)


def targets() -> list[Target]:
    """Every decoder of files."""
    structure = ("magic", "format", "hops", "reserved", "hop length", "delta")
    return [
        Target("vocabulary", (_GOOD, _SPECIALS + b"a\n", _SPECIALS + b"a'b'c\nzz\n"), vocabulary.Vocabulary.from_bytes,
               judge_vocabulary, listed(_VOCABULARY_RULES)),
        Target("weights of a file", (FILE, MIDDLE, TARGET), decode_weights, judge_weights, WEIGHTS_BROKEN, share=0.6),
        Target("delta", (DIRECT, CHAINED), decode_delta, judge_delta, DELTA_BROKEN),
        Target("offline bundle", (_OFFLINE,), offline_bundle.decode_offline_bundle, judge_offline,
               listed(_OFFLINE_RULES), share=0.5),
        Target("hops of a delta", (DIRECT, CHAINED), delta.read, judge_hops, _of_form(structure)),
    ]  # fmt: skip
