"""Fuzz targets of what a plan names: the basis file, and the codec plan itself with its rules between fields."""

import hashlib
import struct
from collections.abc import Callable
from random import Random
from typing import Any

import msgspec
import numpy as np

from tests.fuzzing import slow_msgpack
from tests.fuzzing.message_targets import broken_fields
from tests.fuzzing.target import Broken, Target
from tests.wire_contract.samples import MESSAGES
from tests.wire_contract.toy_model import MANIFEST
from wire_contract import basis, codec, messages
from wire_contract.basis import BasisFile, Turned
from wire_contract.layout import Layout

LAYOUT = Layout(MANIFEST.tensors)
_NOT_A_NUMBER = (float("nan"), float("inf"), float("-inf"))
# Rows is [6, 4], kernel [2, 2], bias [6].
_TURNED = {4: (("rows", 1),), 2: (("rows", 1), ("kernel", 0), ("bias", 0))}


def _rotation(width: int, rng: Random) -> np.ndarray:
    drawn = np.random.default_rng(int(rng.random() * 2**32)).normal(size=(width, width))
    return np.linalg.qr(drawn)[0].astype(np.float32)


def basis_bytes(rng: Random, **changes: Any) -> bytes:
    """Draw a good basis file; `changes` replace `width`, `turned`, `matrix`, `magic` or `behind`; `alter` edits it."""
    width = changes.get("width", rng.choice((2, 4)))
    matrix = _rotation(changes.pop("made", width), rng)
    if "alter" in changes:
        matrix = changes.pop("alter")(matrix)
    turned = changes.pop("turned", None) or _TURNED.get(width, _TURNED[4])
    tree = {
        "width": width,
        "turned": [{"tensor": tensor, "axis": axis} for tensor, axis in turned],
        "matrix": changes.pop("matrix", matrix.astype("<f4").tobytes()),
    }
    return changes.get("magic", basis.MAGIC) + msgspec.msgpack.encode(tree) + changes.get("behind", b"")


def _entry(draw: Callable[[Random], float]) -> Callable[[Random], bytes]:
    """Put a number into one place of the matrix."""

    def make(rng: Random) -> bytes:
        def alter(matrix: np.ndarray) -> np.ndarray:
            matrix[rng.randrange(len(matrix)), rng.randrange(len(matrix))] = draw(rng)
            return matrix

        return basis_bytes(rng, alter=alter)

    return make


def _stretched(rng: Random) -> bytes:
    by = np.float32(rng.choice((0.0, 0.5, 0.999, 1.001, 2.0, 1e30)))
    return basis_bytes(rng, alter=lambda matrix: matrix * by)


def _twice(rng: Random) -> bytes:
    return basis_bytes(rng, alter=lambda matrix: matrix[:, [0, *range(len(matrix) - 1)]])


def _file(**changes: Any) -> Callable[[Random], bytes]:
    return lambda rng: basis_bytes(rng, **changes)


_FIRST = basis_bytes(Random(1), width=4)
BASIS_BROKEN = (
    Broken("magic", "is another", lambda rng: basis_bytes(rng, magic=rng.choice((b"EFB0", b"EFI1", b"efb1", b"")))),
    Broken("width", "is not the matrix's", lambda rng: basis_bytes(rng, made=4, width=rng.choice((1, 2, 3, 5, 1024)))),
    Broken("matrix", "is cut", lambda rng: basis_bytes(rng, matrix=bytes(rng.randrange(16)))),
    Broken("matrix", "is longer", lambda rng: basis_bytes(rng, matrix=bytes(65 + rng.randrange(9)))),
    Broken("matrix", "is zeros", lambda rng: basis_bytes(rng, width=4, matrix=bytes(64))),
    Broken("matrix", "is not finite", _entry(lambda rng: rng.choice(_NOT_A_NUMBER))),
    Broken("matrix", "has a huge entry", _entry(lambda rng: rng.choice((3e38, -3e38, 1.1)))),
    Broken("matrix", "is stretched", _stretched),
    Broken("matrix", "has a column twice", _twice),
    Broken("turned", "names a tensor twice", _file(width=2, turned=(("rows", 1), ("rows", 0)))),
    Broken("turned", "names no tensor of the model", _file(turned=(("columns", 1),))),
    Broken("turned", "names an axis that is none", _file(turned=(("bias", 1), ("rows", 1)))),
    Broken("turned", "names an axis of another length", _file(width=4, turned=(("rows", 0),))),
    Broken("turned", "names a narrower tensor", _file(width=4, turned=(("rows", 1), ("kernel", 0)))),
    Broken("file", "has bytes behind", lambda rng: basis_bytes(rng, behind=rng.randbytes(1 + rng.randrange(9)))),
    Broken("file", "is cut", lambda rng: _FIRST[: rng.randrange(len(_FIRST))]),
    *(
        Broken(broken.field, broken.rule, lambda rng, make=broken.make: basis.MAGIC + make(rng))
        for broken in broken_fields(BasisFile, msgspec.msgpack.decode(_FIRST[4:]))
    ),
)


def decode_basis(data: bytes) -> Any:
    """As a device does: read, then held against its own layout."""
    found = basis.decode_basis(data)
    basis.check_fits(found, LAYOUT)
    return found


def judge_basis(data: bytes, value: Any) -> str:
    try:
        tree = slow_msgpack.read(data[4:])
    except ValueError as e:
        return f"it is no MessagePack: {e}"
    width, raw = tree["width"], tree["matrix"]
    turned = tuple(Turned(tensor=each["tensor"], axis=each["axis"]) for each in tree["turned"])
    if data[:4] != b"EFB1" or len(raw) != 4 * width * width or value.turned != turned:
        return "a field does not hold"
    shapes = {tensor.name: tensor.shape for tensor in MANIFEST.tensors}
    if len({each.tensor for each in turned}) != len(turned) or not turned:
        return "a tensor is named twice, or none"
    if any(each.tensor not in shapes or shapes[each.tensor][each.axis] % width for each in turned):
        return "an axis is no multiple of the width"
    numbers = struct.unpack(f"<{width * width}f", raw)
    for a in range(width):
        for b in range(width):
            product = sum(numbers[row * width + a] * numbers[row * width + b] for row in range(width))
            # The decoder may add in another order.
            if not abs(product - (a == b)) <= 1e-3 + 1e-12:
                return f"columns {a} and {b} are not orthonormal: {product}"
    same = value.matrix.reshape(-1).tolist() == list(numbers) and value.sha256 == hashlib.sha256(data).hexdigest()
    return "" if same else "it says another matrix or hash"


_OFFER = next(message for message in MESSAGES if isinstance(message, messages.TaskOffer))
_HASH = "ab" * 32


def plan_bytes(**changes: Any) -> bytes:
    """Return an offer whose codec plan has these fields."""
    tree = msgspec.msgpack.decode(messages.encode_message(_OFFER))
    tree["plan"]["codec"].update(changes)
    return msgspec.msgpack.encode(tree)


def _ruled() -> bytes:
    """Return an offer whose plan names rules and how far apart participations lie."""
    rules = (messages.LocalRule(name="momentum", value=0.9), messages.LocalRule(name="freeze", tensors=("bias",)))
    plan = msgspec.structs.replace(_OFFER.plan, rules=rules, separation_versions=4, separation_s=86_400)
    return messages.encode_message(msgspec.structs.replace(_OFFER, plan=plan))


def _plan(*choices: dict[str, Any]) -> Callable[[Random], bytes]:
    return lambda rng: plan_bytes(**choices[int(rng.random() * len(choices))])


_SHARED = {"mode": "shared", "bits": 6, "headroom_bits": 8, "unit": 2.0**-9, "index_set": _HASH}
PLAN_BROKEN = (
    Broken("mode", "is unknown", _plan(*({"mode": mode} for mode in ("", "topk9", "Topk", "shared ", "x" * 5_000)))),
    Broken("entropy", "is unknown", _plan({"entropy": ""}, {"entropy": "gzip"}, {"mode": "topk", "entropy": "zstd "})),
    Broken("bits", "are no code's", _plan(*({"mode": "topk", "bits": bits} for bits in (3, 5, 6, 7, 9, 16)))),
    Broken("bits", "are not four of topk4", _plan(*({"mode": "topk4", "bits": bits} for bits in (1, 2, 3, 8)))),
    Broken("bits", "are no ring's", _plan({**_SHARED, "bits": 1})),
    Broken("headroom_bits", "are beyond the ring", _plan({**_SHARED, "bits": 16, "headroom_bits": 17})),
    Broken("unit", "is no float32", _plan({**_SHARED, "unit": 0.1}, {**_SHARED, "unit": 1e-300})),
    Broken("threshold", "is a shared plan's", _plan({**_SHARED, "threshold": 0.5}, {**_SHARED, "threshold": 1e-300})),
    Broken("threshold", "is negative", _plan({"mode": "topk", "threshold": -1e-9}, {"threshold": -1.0})),
    Broken("threshold", "is above 64", _plan({"mode": "topk", "threshold": 64.1}, {"threshold": 1e300})),
    Broken("threshold", "is not finite", _plan(*({"mode": "topk", "threshold": value} for value in _NOT_A_NUMBER))),
    Broken("threshold", "is no number", _plan({"threshold": "0.5"}, {"threshold": None}, {"threshold": b"\0"})),
    Broken("basis", "is a shared plan's", _plan({**_SHARED, "basis": _HASH})),
    Broken("basis", "is topk4's", _plan({"mode": "topk4", "basis": _HASH})),
    Broken(
        "basis",
        "is no SHA-256",
        _plan(*({"mode": "topk", "basis": text} for text in ("0", "AB" * 32, "ab" * 33, _HASH + "\n", "é" * 64))),
    ),
    Broken("basis", "is no text", _plan({"mode": "topk", "basis": bytes(32)}, {"mode": "topk", "basis": None})),
)


def decode_plan(data: bytes) -> Any:
    """As a device does: read the offer, then ask whether its codec plan can be met."""
    offer = messages.decode_message(data, messages.TaskOffer)
    codec.check_plan(offer.plan.codec)
    return offer


def judge_plan(data: bytes, value: Any) -> str:
    plan = value.plan.codec
    if plan.mode == "shared":
        single = struct.unpack("<f", struct.pack("<f", plan.unit))[0]
        good = 2 <= plan.bits <= 16 and plan.bits + plan.headroom_bits <= 32 and 0 < single == plan.unit
        good = good and not plan.threshold and not plan.basis
    else:
        good = plan.entropy in ("none", "zstd", "deflate")
        good = good and ((plan.mode == "topk4" and plan.bits == 4 and not plan.basis)
                         or (plan.mode == "topk" and plan.bits in (1, 2, 4, 8)))  # fmt: skip
    return slow_msgpack.judge_struct(data, value) if good else "a rule between the plan's fields does not hold"


def targets() -> list[Target]:
    """What a plan names, and the plan."""
    rng = Random(11)
    plans = (
        plan_bytes(),
        plan_bytes(mode="topk", bits=2, threshold=0.25, basis=_HASH),
        plan_bytes(**_SHARED),
        _ruled(),
    )
    return [
        Target("basis", tuple(basis_bytes(rng) for _ in range(6)), decode_basis, judge_basis, BASIS_BROKEN, share=0.7),
        Target("codec plan", plans, decode_plan, judge_plan, PLAN_BROKEN, share=0.7),
    ]
