"""Fuzz targets of what is signed: every message type, envelopes, seals, manifests; and the topics.

The rules to break are read off the type hints: each field is left out, given each wrong kind, and put beyond each of
its bounds, at any depth.
"""

import hashlib
import math
import re
import types
import typing
from collections.abc import Callable, Iterator
from random import Random
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec

from tests.fuzzing import slow_msgpack
from tests.fuzzing.target import Broken, Target
from tests.vectors.write import EPHEMERAL, RECIPIENT, SIGNING
from tests.wire_contract.samples import DEVICE, MESSAGES
from tests.wire_contract.toy_model import ARRAY_MANIFEST, FILE, FULL_MANIFEST, MANIFEST
from wire_contract import envelope, manifest, messages, topics
from wire_contract.lineage import Measure, Parent
from wire_contract.manifest import GoldenVector, Part, TrainInput

Path = tuple[str | int, ...]
_WRONG: dict[type | None, tuple[Any, ...]] = {
    None: (None,), bool: (True, False), int: (1, -1, 2**64 - 1), float: (1.5,), str: ("x", ""), bytes: (b"x", b""),
    list: ([], [1]), dict: ({}, {"a": 1}),
}  # fmt: skip
_NEITHER = (float("nan"), float("inf"), float("-inf"))


def _kinds(hint: Any) -> set[type | None]:
    """Return the MessagePack kinds that a hint takes."""
    origin = get_origin(hint)
    if origin is Annotated:
        return _kinds(get_args(hint)[0])
    if isinstance(hint, types.UnionType) or origin is typing.Union:
        return set().union(*map(_kinds, get_args(hint)))
    if origin is Literal:
        return {str}
    if origin in (tuple, dict):
        return {list if origin is tuple else dict}
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return {list if hint.__struct_config__.array_like else dict}
    return {int, float} if hint is float else {None if hint is types.NoneType else hint}


def _bounds(hint: Any) -> Iterator[tuple[str, Any, msgspec.Meta]]:
    if get_origin(hint) is Annotated:
        base, *metas = get_args(hint)
        yield from (("", base, meta) for meta in metas)
        yield from _bounds(base)
    elif isinstance(hint, types.UnionType):
        for each in get_args(hint):
            yield from _bounds(each)


def _put(tree: Any, path: Path, value: Any) -> Any:
    """Return `tree` with `value` at `path`; `...` takes the field out."""
    head, *rest = path
    changed = tree.copy()
    if rest:
        changed[head] = _put(tree[head], tuple(rest), value)
    elif value is ...:
        del changed[head]
    else:
        changed[head] = value
    return changed


def _at(tree: Any, path: Path) -> Any:
    for step in path:
        tree = tree[step]
    return tree


def _putting(tree: Any, path: Path, draw: Callable[[Random], Any]) -> Callable[[Random], bytes]:
    return lambda rng: msgspec.msgpack.encode(_put(tree, path, draw(rng)))


def _one_of(values: tuple[Any, ...]) -> Callable[[Random], Any]:
    return lambda rng: values[int(rng.random() * len(values))]


def _beyond(base: Any, meta: msgspec.Meta, now: Any) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yield what lies just beyond each bound of `meta`; `now` is a good value."""
    if base is float:
        low = (meta.ge - 1e-7 * max(1.0, abs(meta.ge)),) if meta.ge is not None else (meta.gt,)
        high = (meta.le * 1.000001,) if meta.le is not None else () if meta.lt is None else (meta.lt,)
        yield "is below its bound", tuple(v for v in (*low, -1e300) if v is not None)
        if high:
            yield "is above its bound", (*high, 1e300)
        yield "is not finite", _NEITHER
    elif base is int:
        if meta.ge is not None:
            yield "is below its bound", (meta.ge - 1, -(2**62))
        if meta.le is not None:
            yield "is above its bound", (meta.le + 1, 2**64 - 1)
    elif meta.pattern is not None:
        spoiled = (now + "\n", "\n" + now, now + "/", now + "+", "#", now.upper() + "A", now[:-1] + "é", now * 5 + "!",
                   now + "\0", " " + now)  # fmt: skip
        yield "is not like its pattern", tuple(v for v in spoiled if not re.search(meta.pattern, v))
    else:
        filler = {bytes: b"x", str: "x"}.get(base)
        length = len(now) if now is not None else 0
        if meta.max_length is not None:
            more = meta.max_length + 1
            yield "is too long", (filler * more,) if filler else ((now or [0]) * -(-more // max(1, length)),)
        if meta.min_length is not None:
            yield "is too short", (now[: meta.min_length - 1],)


def broken_fields(struct_type: Any, tree: Any, path: Path = (), root: Any = None) -> Iterator[Broken]:
    """Yield every rule of `struct_type` that its hints state, broken in `tree` (the message as maps and arrays)."""
    root = tree if root is None else root
    config = struct_type.__struct_config__
    if config.tag is not None and not path:
        yield Broken("type", "is missing", _putting(root, ("type",), lambda rng: ...))
        yield Broken("type", "is unknown", _putting(root, ("type",), _one_of(("dance", "", "Check-in", "chunk "))))
    for field in msgspec.structs.fields(struct_type):
        hint = slow_msgpack.hints_of(struct_type)[field.name]
        here = (*path, field.name)
        yield from _broken_field(hint, field.name, field.required, here, root)


def _broken_field(hint: Any, name: str, required: bool, path: Path, root: Any) -> Iterator[Broken]:
    label = ".".join(map(str, path))
    if required:
        yield Broken(label, "is missing", _putting(root, path, lambda rng: ...))
    taken = _kinds(hint)
    wrong = tuple(value for kind, values in _WRONG.items() if kind not in taken for value in values)
    yield Broken(label, "is of another kind", _putting(root, path, _one_of(wrong)))
    now = _at(root, path)
    for _, base, meta in _bounds(hint):
        base = get_origin(base) or base
        if now is None and (meta.pattern or meta.min_length):
            continue
        for rule, values in _beyond({tuple: list}.get(base, base), meta, now):
            yield Broken(label, rule, _putting(root, path, _one_of(values)))
    if get_origin(hint) is Literal:
        yield Broken(label, "is none of its words", _putting(root, path, _one_of(("", "x", str(now) + " "))))
    inner = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
        yield from broken_fields(inner, now, path, root)
    if get_origin(inner) is tuple and now:
        element = get_args(inner)[0]
        wrong = tuple(value for kind, values in _WRONG.items() if kind not in _kinds(element) for value in values)
        yield Broken(f"{label}[0]", "is of another kind", _putting(root, (*path, 0), _one_of(wrong)))
        for _, base, meta in _bounds(element):
            for rule, values in _beyond(base, meta, now[0]):
                yield Broken(f"{label}[0]", rule, _putting(root, (*path, 0), _one_of(values)))
        if isinstance(element, type) and issubclass(element, msgspec.Struct):
            yield from broken_fields(element, now[0], (*path, 0), root)


def filled(message: Any) -> Any:
    """Return the sample with its empty arrays filled, so that their elements are broken too."""
    if isinstance(message, messages.Receipt):
        return msgspec.structs.replace(message, missing=(0, 3))
    if isinstance(message, messages.TaskOffer):
        rules = (messages.LocalRule(name="freeze", value=0.5, tensors=("kernel",)), messages.LocalRule(name="sgd"))
        plan = msgspec.structs.replace(message.plan, rules=rules, separation_versions=3, separation_s=86_400)
        return msgspec.structs.replace(message, plan=plan)
    return message


def message_targets() -> Iterator[Target]:
    """Yield one target for each type of message."""
    for message in map(filled, MESSAGES):
        data, kind = messages.encode_message(message), type(message)
        tree = msgspec.msgpack.decode(data)
        yield Target(
            f"message {kind.__name__}",
            (data,),
            lambda data, kind=kind: messages.decode_message(data, kind),
            slow_msgpack.judge_struct,
            tuple(broken_fields(kind, tree)),
        )
    everything = tuple(messages.encode_message(filled(message)) for message in MESSAGES)
    yield Target(
        "message of any type", everything, lambda data: messages.decode_message(data, messages.AnyMessage),
        slow_msgpack.judge_struct, (),
    )  # fmt: skip


BODIES = (b"body", messages.encode_message(MESSAGES[7]))
PUBLIC = envelope.public_bytes(SIGNING)


def _signed_with(place: int, draw: Callable[[Random], Any]) -> Callable[[Random], bytes]:
    tree = msgspec.msgpack.decode(envelope.sign(SIGNING, "receipt", BODIES[1]))
    return _putting(tree, (place,), draw)


ENVELOPE_BROKEN = (
    Broken("version", "is another", _signed_with(0, lambda rng: rng.choice((0, 2, -1, 2**63)))),
    Broken("version", "is no number", _signed_with(0, _one_of((None, "1", 1.5, b"1", [1])))),
    Broken("kind", "is no text", _signed_with(1, _one_of((None, 1, b"receipt", ["receipt"])))),
    Broken("key id", "is no text", _signed_with(2, _one_of((None, 1, b"x", {})))),
    Broken("body", "is no bytes", _signed_with(3, _one_of((None, 1, "body", [])))),
    Broken("signature", "is shorter", _signed_with(4, lambda rng: bytes(rng.randrange(64)))),
    Broken("signature", "is longer", _signed_with(4, lambda rng: bytes(65 + rng.randrange(64)))),
    Broken("signature", "is no bytes", _signed_with(4, _one_of((None, 1, "x" * 64)))),
    Broken("envelope", "has four fields", lambda rng: msgspec.msgpack.encode([1, "receipt", "x", b"body"])),
    Broken("envelope", "is a map", lambda rng: msgspec.msgpack.encode({"version": 1})),
)
VERIFY_BROKEN = (
    Broken("kind", "is another", _signed_with(1, _one_of(("manifest", "", "receipt\n", "Receipt")))),
    Broken("key id", "is another key's", _signed_with(2, _one_of(("0" * 32, "", envelope.key_id(bytes(32)))))),
    Broken("body", "is not what was signed", _signed_with(3, lambda rng: rng.randbytes(rng.randrange(99)))),
    Broken("signature", "is another's", _signed_with(4, lambda rng: rng.randbytes(64))),
    Broken("signature", "is of another kind", lambda rng: _other_kind()),
)


def _other_kind() -> bytes:
    signed = msgspec.msgpack.decode(envelope.sign(SIGNING, "manifest", BODIES[1]))
    signed[1] = "receipt"
    return msgspec.msgpack.encode(signed)


def judge_verified(data: bytes, value: object) -> str:
    return "" if value in BODIES else "nobody signed that"


HEADER = b"header"
SEALED = envelope.seal(b"an update", header=HEADER, ephemeral=EPHEMERAL, recipient=envelope.public_bytes(RECIPIENT))


def decode_sealed(data: bytes) -> object:
    """The first 32 bytes are the ephemeral key."""
    return envelope.unseal(data[32:], header=HEADER, ephemeral_key=data[:32], recipient=RECIPIENT)


def judge_unsealed(data: bytes, value: object) -> str:
    # X25519 ignores the key's highest bit (RFC 7748), but the salt of the sealing key does not.
    return "" if data == envelope.public_bytes(EPHEMERAL) + SEALED and value == b"an update" else "it was not sealed so"


def _sealed(rng: Random) -> bytes:
    data = bytearray(SEALED)
    data[rng.randrange(len(data))] ^= 1 + rng.randrange(255)
    return envelope.public_bytes(EPHEMERAL) + bytes(data)


SEAL_BROKEN = (
    Broken("ciphertext", "a byte changed", _sealed),
    Broken("ciphertext", "is cut", lambda rng: envelope.public_bytes(EPHEMERAL) + SEALED[: rng.randrange(len(SEALED))]),
    Broken("ephemeral key", "is another", lambda rng: rng.randbytes(32) + SEALED),
    Broken("ephemeral key", "gives a secret of zeros", lambda rng: bytes(32) + SEALED),
    Broken("ephemeral key", "is short", lambda rng: bytes(rng.randrange(32))),
)


def _manifest(**changes: Any) -> bytes:
    return msgspec.msgpack.encode(msgspec.structs.replace(MANIFEST, **changes))


def _tensor(index: int, **changes: Any) -> bytes:
    tensors = list(MANIFEST.tensors)
    tensors[index] = msgspec.structs.replace(tensors[index], **changes)
    return _manifest(tensors=tuple(tensors), layout_fingerprint=manifest.fingerprint(tuple(tensors)))


def _input(shape: tuple[int, ...], *parts: Part) -> bytes:
    return _manifest(train_inputs=(TrainInput(name="a", shape=shape, parts=parts),))


def _arrays(**changes: Any) -> bytes:
    return msgspec.msgpack.encode(msgspec.structs.replace(ARRAY_MANIFEST, **changes))


def _example(**changes: Any) -> bytes:
    return _arrays(examples=(msgspec.structs.replace(_EXAMPLES[0], **changes), *_EXAMPLES[1:]))


def _lineage(**changes: Any) -> bytes:
    lineage = msgspec.structs.replace(FULL_MANIFEST.lineage, **changes)
    return msgspec.msgpack.encode(msgspec.structs.replace(FULL_MANIFEST, lineage=lineage))


_EXAMPLES = ARRAY_MANIFEST.examples
_ROWS = Part(tensor="rows", start=0, stop=4)
_MANIFEST_RULES: tuple[tuple[str, str, tuple[bytes, ...]], ...] = (
    ("format", "is another", (_manifest(format=0), _manifest(format=2))),
    *(
        (
            name,
            "is no SHA-256",
            tuple(_manifest(**{name: text}) for text in ("", "0" * 63, "0" * 65, "A" * 64, "é" * 64)),
        )
        for name in ("sha256", "template_sha256", "vocabulary_sha256", "layout_fingerprint")
    ),
    ("layout_fingerprint", "is not the tensors'", (_manifest(layout_fingerprint="0" * 64),)),
    ("version", "is below 1", (_manifest(version=0), _manifest(version=-5))),
    (
        "size_bytes",
        "is out of range",
        tuple(_manifest(size_bytes=n) for n in (0, -1, manifest.MAX_MODEL_BYTES + 1, 2**63)),
    ),
    ("size_bytes", "cuts a tensor", (_manifest(size_bytes=len(FILE) - 20),)),
    ("expires_at", "is before its creation", (_manifest(expires_at=0), _manifest(expires_at=MANIFEST.created_at))),
    ("tensors", "are none", (_manifest(tensors=()),)),
    ("tensors", "one is named twice", (_manifest(tensors=(MANIFEST.tensors[0],) * 2),)),
    ("tensors.shape", "is no shape", tuple(_tensor(2, shape=s) for s in ((), (0,), (-6,), (6, 1, 1, 1, 1), (2**40,)))),
    ("tensors.shape", "is too large together", (_tensor(2, shape=(1 << 27, 1 << 27)),)),
    ("tensors.offsets", "are none", (_tensor(0, offsets=()),)),
    ("tensors.offsets", "are negative", (_tensor(0, offsets=(-4,)), _tensor(0, offsets=(16, -1)))),
    ("tensors.offsets", "lie behind the file", (_tensor(0, offsets=(2**40,)), _tensor(0, offsets=(len(FILE) - 23,)))),
    (
        "tensors.offsets",
        "overlap another's",
        (_tensor(1, offsets=MANIFEST.tensors[0].offsets), _tensor(1, offsets=(39,))),
    ),
    ("tensors.scale_offsets", "are missing", (_tensor(0, scale_offsets=()),)),
    ("tensors.scale_offsets", "are a float's", (_tensor(2, scale_offsets=(4,)),)),
    ("tensors.scale_offsets", "overlap the codes", (_tensor(0, scale_offsets=(17,)),)),
    ("tensors.transposed", "is no matrix", (_tensor(2, transposed=True),)),
    ("train_inputs.shape", "is no shape", (_input((), _ROWS), _input((6, 0), _ROWS), _input((6, 2**40), _ROWS))),
    ("train_inputs.parts", "are none", (_input((6, 4)),)),
    ("train_inputs.parts", "name no tensor", (_input((6, 4), Part(tensor="x", start=0, stop=4)),)),
    (
        "train_inputs.parts",
        "do not fit",
        (_input((6, 4), Part(tensor="rows", start=0, stop=3)), _input((5, 6), _ROWS, _ROWS)),
    ),
    ("train_inputs.parts", "overlap", (_input((6, 9), _ROWS, Part(tensor="rows", start=3, stop=7)),)),
    ("train_inputs.parts", "are too wide", (_input((6, 7), _ROWS, Part(tensor="rows", start=4, stop=8)),)),
    ("family", "is unknown", (_manifest(family="speech"), _manifest(family=""), _manifest(family="Arrays"))),
    ("family", "of text has examples", (_manifest(examples=ARRAY_MANIFEST.examples),)),
    ("family", "of arrays has a vocabulary", (_arrays(vocabulary_words=1), _arrays(vocabulary_sha256="1" * 64))),
    (
        "examples",
        "are no inputs and one target",
        tuple(
            _arrays(examples=e)
            for e in ((), _EXAMPLES[:2], _EXAMPLES[2:], (*_EXAMPLES, _EXAMPLES[2]), (_EXAMPLES[0],) * 40)
        ),
    ),
    ("examples.name", "is there twice", (_arrays(examples=(*_EXAMPLES, _EXAMPLES[0])),)),
    ("examples.name", "breaks its pattern", tuple(_example(name=n) for n in ("", "A", "1", "a b", "é", "a" * 65))),
    ("examples.shape", "is no shape", tuple(_example(shape=x) for x in ((0,), (-1,), (1,) * 7, (1 << 12,) * 2))),
    ("golden_vectors", "are too many", (_manifest(golden_vectors=(GoldenVector(ids=(1,)),) * 65),)),
    (
        "golden_vectors",
        "name no word",
        tuple(
            _manifest(golden_vectors=(v,))
            for v in (
                GoldenVector(ids=(6,)),
                GoldenVector(ids=(-1,)),
                GoldenVector(ids=(1,), context=(6,)),
                GoldenVector(ids=()),
                GoldenVector(ids=(1,) * 17),
                GoldenVector(ids=(1,), example=-1),
            )
        ),
    ),
    ("needs", "are no capabilities", tuple(_manifest(needs=n) for n in (("train",), ("a:B",), ("a:b",) * 65, ("",)))),
    ("minimum_runtime", "is no release", tuple(_manifest(minimum_runtime=r) for r in ("x", "1.", "1.2.3.4", "-1"))),
    (
        "lineage.parents",
        "are not lower",
        tuple(
            _lineage(parents=p)
            for p in (
                (),
                (Parent(version=9, sha256="a" * 64),),
                (Parent(version=0, sha256="a" * 64),),
                (Parent(version=1, sha256="A" * 64),),
                (Parent(version=1, sha256="a" * 64),) * 9,
            )
        ),
    ),
    ("lineage", "counts below 0", (_lineage(updates=-1), _lineage(examples=-1), _lineage(updates=1 << 60))),
    (
        "lineage.evaluation",
        "is no number with a name",
        tuple(
            _lineage(evaluation=(Measure(name=n, value=v),))
            for n, v in (("a", float("nan")), ("a", float("inf")), ("A", 1.0), ("", 1.0), ("a", 1e13))
        ),
    ),
    ("lineage", "names no hash", (_lineage(code_sha256="x"), _lineage(sources=("0" * 63,)))),
    ("url", "is no address", tuple(_manifest(url=u) for u in ("ftp://x/", "x", "/a b", "/\n", "/é", "/" * 501))),
    ("vocabulary_url", "is no address", (_manifest(vocabulary_url="file:///etc"), _manifest(vocabulary_url="//\r\n"))),
)


def judge_manifest(data: bytes, value: Any) -> str:
    found = slow_msgpack.judge_struct(data, value)
    if found:
        return found
    taken: set[int] = set()
    for tensor in value.tensors:
        size = 1
        for dimension in tensor.shape:
            size *= dimension
        spans = [(at, size * {"int8": 1, "float16": 2, "float32": 4}[tensor.kind]) for at in tensor.offsets]
        for start, length in spans + [(at, 4) for at in tensor.scale_offsets]:
            here = set(range(start, start + length))
            if len(here) != length or here & taken or start < 0 or start + length > value.size_bytes:
                return f"{tensor.name} is not apart inside the file"
            taken |= here
    text = "\n".join(f"{t.name}:{'x'.join(map(str, t.shape))}" for t in value.tensors)
    if hashlib.sha256(b"edge-federation layout v1\n" + text.encode()).hexdigest() != value.layout_fingerprint:
        return "the fingerprint is another layout's"
    for measure in value.lineage.evaluation if value.lineage else ():
        if not math.isfinite(measure.value):
            return "a measure is not finite"
    words = {"arrays": 0, "next-word": value.vocabulary_words}[value.family]
    if any(not 0 <= i < (words or 1 << 31) for vector in value.golden_vectors for i in vector.ids):
        return "a golden id is no word"
    if (value.family == "arrays") != (not value.vocabulary_sha256) or (value.family == "arrays") != bool(
        value.examples
    ):
        return "family, vocabulary and examples do not go together"
    if value.lineage and any(parent.version >= value.version for parent in value.lineage.parents):
        return "a parent is not older"
    good = value.version >= 1 and value.expires_at > value.created_at and value.url.isascii() and value.format == 1
    return "" if good else "a plain rule does not hold"


def _topic(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


_TOPICS = (
    "fl/v1/pop/en-chat/refresh", "fl/v1/pop/en-chat/training", f"fl/v1/dev/{DEVICE}/state", f"fl/v1/dev/{DEVICE}/req",
    f"fl/v1/dev/{DEVICE}/down/task", f"fl/v1/dev/{DEVICE}/down/rcpt", f"fl/v1/up/7/{DEVICE}/{'f' * 32}/init",
    f"fl/v1/up/65535/{DEVICE}/{'f' * 32}/0",
)  # fmt: skip
_UP = f"fl/v1/up/{{}}/{DEVICE}/{'f' * 32}/{{}}"
_TOPIC_RULES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("root", "is another", ("fl/v2/pop/a/refresh", "FL/v1/pop/a/refresh", "/fl/v1/pop/a/refresh", "v1/pop/a/refresh")),
    (
        "population",
        "breaks its pattern",
        tuple(f"fl/v1/pop/{p}/refresh" for p in ("", "-a", "A", "a_b", "é", "a" * 41, "+", "a\n", "#")),
    ),
    ("track", "is unknown", ("fl/v1/pop/a/", "fl/v1/pop/a/canary", "fl/v1/pop/a/refresh/x", "fl/v1/pop/a/#")),
    (
        "device",
        "breaks its pattern",
        tuple(
            f"fl/v1/dev/{d}/req"
            for d in ("", DEVICE[:-1], DEVICE + "0", DEVICE.upper().replace("0", "A"), "+", DEVICE + "\n")
        ),
    ),
    (
        "leaf",
        "is unknown",
        tuple(f"fl/v1/dev/{DEVICE}/{leaf}" for leaf in ("", "down", "down/", "down/x", "state/x", "STATE")),
    ),
    ("shard", "breaks its pattern", tuple(_UP.format(s, 0) for s in ("", "-1", "07", "123456", "1.0", "+", "\u0661"))),
    (
        "chunk",
        "breaks its pattern",
        tuple(_UP.format(0, c) for c in ("", "-1", "00", "123456", "Init", "1\n", "\u0661")),
    ),
    (
        "update id",
        "breaks its pattern",
        tuple(f"fl/v1/up/0/{DEVICE}/{u}/init" for u in ("", "f" * 31, "F" * 32, "g" * 32, "+")),
    ),
    ("topic", "is too long", ("fl/v1/pop/a/refresh" + "x" * 200, "/" * 100_000)),
)


def decode_topic(data: bytes) -> object:
    return topics.parse_topic(data.decode("utf-8", "surrogateescape"))


def judge_topic(data: bytes, value: Any) -> str:
    if _topic(topics.build_topic(value)) != data:
        return f"it builds {topics.build_topic(value)!r}"
    return "" if re.fullmatch(rb"fl/v1/[a-z0-9/-]+", data) else "a level holds what none may hold"


def listed(rules: tuple[tuple[str, str, tuple[bytes, ...]], ...]) -> tuple[Broken, ...]:
    """Return the rules that are broken by one of a few fixed inputs."""
    return tuple(Broken(field, rule, _one_of(inputs)) for field, rule, inputs in rules)


def targets() -> list[Target]:
    """Every decoder of messages and topics."""
    signed = tuple(envelope.sign(SIGNING, "receipt", body) for body in BODIES)
    topic_rules = tuple((field, rule, tuple(map(_topic, texts))) for field, rule, texts in _TOPIC_RULES)
    data = manifest.encode_manifest(MANIFEST)
    seeds = (data, manifest.encode_manifest(FULL_MANIFEST), manifest.encode_manifest(ARRAY_MANIFEST))
    manifest_broken = [
        broken
        for broken in broken_fields(type(MANIFEST), msgspec.msgpack.decode(data))
        if broken.rule in ("is missing", "is of another kind", "is none of its words")
    ]
    return [
        *message_targets(),
        Target("envelope", signed, envelope.read_envelope, slow_msgpack.judge_struct, ENVELOPE_BROKEN, share=1.5),
        Target("envelope verified", signed, lambda data: envelope.verify(data, "receipt", PUBLIC), judge_verified,
               VERIFY_BROKEN, share=0.15),
        Target("seal", (envelope.public_bytes(EPHEMERAL) + SEALED,), decode_sealed, judge_unsealed, SEAL_BROKEN,
               share=0.1),
        Target("manifest", seeds, manifest.decode_manifest, judge_manifest,
               (*listed(_MANIFEST_RULES), *manifest_broken), share=0.7),
        Target("topic", tuple(map(_topic, _TOPICS)), decode_topic, judge_topic, listed(topic_rules), share=3.0),
    ]  # fmt: skip
