"""The messages that devices and the aggregator exchange: msgspec structs in MessagePack, signed as bytes.

The rules:
- a message is decoded once, from the exact bytes that were signed, and never re-serialized to verify;
- every message is a map with a `type` tag; an unknown type is `Unsupported`, an unknown field is ignored, a field
  that is missing or out of its range is `Malformed`; the protocol's major version is the topic's `v1`;
- lengths are bounded before decoding: no message is longer than `MAX_MESSAGE_BYTES`;
- times are Unix seconds, sizes are bytes, identifiers are lower-case hex.
This module imports no numpy, so that the idle supervisor stays small.
"""

import functools
import hashlib
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from wire_contract.errors import Malformed, Unsupported
from wire_contract.manifest import signature_family

MAX_MESSAGE_BYTES = 96 * 1024
MAX_CHUNK_BYTES = 48 * 1024
MAX_UPDATE_BYTES = 8 * 1024 * 1024
MAX_MODEL_WINDOW = 4
MAX_INDEX_SET_BYTES = 4 * 1024 * 1024
MAX_BASIS_BYTES = 4 * 1024 * 1024 + 64 * 1024

Hex16 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}\Z")]
Hex32 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
Hex64 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Hex64OrNone = Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{64})?\Z")]
Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,39}\Z")]
Bytes32 = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Capability = Annotated[str, msgspec.Meta(pattern=r"^[a-z]+:[a-z0-9_-]{1,40}\Z")]
Text = Annotated[str, msgspec.Meta(max_length=400)]
Seconds = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]
ChunkIndex = Annotated[int, msgspec.Meta(ge=0, le=65_535)]
Version = Annotated[int, msgspec.Meta(ge=1, le=1 << 31)]
Positive = Annotated[float, msgspec.Meta(gt=0.0, le=1e6)]
ClipNorm = Annotated[float, msgspec.Meta(ge=1e-6, le=1e6)]
Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]


MetadataName = Annotated[str, msgspec.Meta(pattern=r"^(\d{1,9}\.)?[a-z]{1,20}\.json\Z")]


class RetryWindow(msgspec.Struct, frozen=True, kw_only=True):
    """When the device may ask again: it draws a moment between the two, so that a fleet does not arrive together."""

    earliest: Seconds
    latest: Seconds


class CodecPlan(msgspec.Struct, frozen=True, kw_only=True):
    """How an update is compressed (`codec.check_plan` says which of these go together).

    `mode` "topk" sends the largest values, at places of the device's own; "topk4" is its form with 4 bits, which older
    devices know; "shared" sends the values of the public set `index_set` (a file's SHA-256), in multiples of `unit`.
    `kept` is the share of the model's values that goes out, or that the set holds. With `threshold` above 0, topk sends
    only what adds that much to the sum (|value| x `examples_share`), and `kept` is the most that it sends. `basis` (a
    file's SHA-256) names the axes in which topk selects and sends. `bits` a value: 1, 2, 4 or 8 of topk, 2 to 16 of
    shared, which adds `headroom_bits` so that 2^headroom_bits updates can be summed in the ring. `entropy` is the stage
    behind topk; shared has none, for its length must not depend on the text.
    """

    mode: str = "topk4"
    kept: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] = 0.01
    threshold: Annotated[float, msgspec.Meta(ge=0.0, le=64.0)] = 0.0
    entropy: str = "zstd"
    bits: Annotated[int, msgspec.Meta(ge=1, le=16)] = 4
    index_set: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{64})?\Z")] = ""
    basis: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{64})?\Z")] = ""
    unit: Positive = 2.0**-10
    headroom_bits: Annotated[int, msgspec.Meta(ge=0, le=20)] = 0


class LocalRule(msgspec.Struct, frozen=True, kw_only=True):
    """One rule of the local training beside plain SGD, by name (`LOCAL_RULES`).

    `value` is its number, `tensors` are the fleet tensors that it is about, if it is about some.

    A device that does not know a name refuses the plan by that name; check-ins name the rules that a device knows.
    """

    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9-]{0,39}\Z")]
    value: Annotated[float, msgspec.Meta(ge=0.0, le=1e6)] = 0.0
    tensors: Annotated[tuple[Text, ...], msgspec.Meta(max_length=64)] = ()


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The device's instructions for a training task.

    `signature` names the train signature; `rows` examples of the signature's length are drawn at most, `epochs` times
    over; `weight_rule` "uniform" counts an update 1, "examples" counts min(examples, example_cap) / example_cap.
    The residual is multiplied by `residual_keep` when it is added, and dropped if its base lies more than
    `residual_versions` versions behind this task's (0: whatever its age). `rules` are applied to each step in their
    order. A device that took part in the task within the last `separation_versions` versions or `separation_s` seconds
    does not take part again (0: no such minimum).
    """

    signature: str = "train_sampled"
    rule: str = "sgd"
    rows: Annotated[int, msgspec.Meta(ge=1, le=65_536)] = 80
    epochs: Annotated[int, msgspec.Meta(ge=1, le=100)] = 1
    learning_rate: Positive = 1.0
    dropout: Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)] = 0.2
    clip_norm: ClipNorm = 10.0
    weight_rule: Literal["uniform", "examples"] = "examples"
    example_cap: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] = 80
    minimum_examples: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] = 1
    codec: CodecPlan = CodecPlan()
    residual_keep: Share = 1.0
    residual_versions: Annotated[int, msgspec.Meta(ge=0, le=1 << 31)] = 0
    rules: Annotated[tuple[LocalRule, ...], msgspec.Meta(max_length=16)] = ()
    separation_versions: Annotated[int, msgspec.Meta(ge=0, le=1 << 31)] = 0
    separation_s: Annotated[int, msgspec.Meta(ge=0, le=1 << 31)] = 0


class CheckIn(msgspec.Struct, frozen=True, kw_only=True, tag="check-in"):
    """A device asks for work. `capabilities` are names like `codec:topk4`, `entropy:zstd`, `rule:sgd`,
    `signature:train`; a plan that needs another is never offered to it."""

    device: Hex32
    population: Name
    nonce: Hex32
    sent_at: Seconds
    held_version: Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]
    capabilities: Annotated[tuple[Capability, ...], msgspec.Meta(max_length=64)]
    examples: Count


class StatusQuery(msgspec.Struct, frozen=True, kw_only=True, tag="status-query"):
    """A device whose receipt did not come asks what has arrived, rather than sending the update again."""

    device: Hex32
    update_id: Hex32
    nonce: Hex32
    sent_at: Seconds


class ModelRequest(msgspec.Struct, frozen=True, kw_only=True, tag="model-request"):
    """A device that cannot reach the HTTP side asks for pieces of an announced version's file over the broker.

    `wanted` is the file's SHA-256; `held` is the file that a delta shall start from, or empty for the whole file.
    Pieces `first` to `first + count - 1` are wanted: few, so that the broker never holds much for one device.
    """

    device: Hex32
    nonce: Hex32
    sent_at: Seconds
    wanted: Hex64
    held: Hex64OrNone
    first: ChunkIndex
    count: Annotated[int, msgspec.Meta(ge=1, le=MAX_MODEL_WINDOW)]


class ModelChunk(msgspec.Struct, frozen=True, kw_only=True, tag="model-chunk"):
    """Piece `index` of a delta or, with `held` empty, of a whole file; every piece but the last has `MAX_CHUNK_BYTES`.

    Not signed: the whole must hash to what the signed manifest says, and until then it is believed in nothing.
    """

    wanted: Hex64
    held: Hex64OrNone
    size_bytes: Annotated[int, msgspec.Meta(ge=1, le=1 << 26)]
    index: ChunkIndex
    data: Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_CHUNK_BYTES)]


class ModelDenied(msgspec.Struct, frozen=True, kw_only=True, tag="model-denied"):
    """No pieces now, and why; signed. The device asks again within the retry window.

    `code`: `no_delta` (ask for the whole file), `later` (it is being made, or the broker carries enough),
    `deltas_only`, `off`, `not_announced`, `past_the_end` (the pieces before `first` were no good), `too_much` (more
    than a device may have over the broker in a day).
    """

    device: Hex32
    nonce: Hex32
    code: Literal["no_delta", "later", "deltas_only", "off", "not_announced", "past_the_end", "too_much"]
    issued_at: Seconds
    retry: RetryWindow


class TaskOffer(msgspec.Struct, frozen=True, kw_only=True, tag="task-offer"):
    """This task, for this device, now: a lease until `deadline`. Signed by the aggregator.

    `sealing_key` is the X25519 public key that updates are sealed to; `seed` fixes every random choice of the local
    training; `nonce` repeats the check-in's, so that an old offer can't be played again.
    """

    device: Hex32
    population: Name
    task: Hex16
    lease: Hex32
    nonce: Hex32
    base_version: Version
    base_sha256: Hex64
    layout_fingerprint: Hex64
    plan: Plan
    seed: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
    sealing_key: Bytes32
    shard: Annotated[int, msgspec.Meta(ge=0, le=65_535)]
    issued_at: Seconds
    deadline: Seconds
    retry: RetryWindow


class EvaluationOffer(msgspec.Struct, frozen=True, kw_only=True, tag="evaluation-offer"):
    """Evaluate this version on words that the device holds out, and report counts: a lease until `deadline`. Signed.

    `version` is of the refresh or of the training track, whichever announces `version_sha256`. With fewer held-out
    words than `minimum_words` the device reports none; it scores `most_words` at most, the newest.
    """

    device: Hex32
    population: Name
    task: Hex16
    lease: Hex32
    nonce: Hex32
    version: Version
    version_sha256: Hex64
    minimum_words: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] = 50
    most_words: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] = 2000
    issued_at: Seconds
    deadline: Seconds
    retry: RetryWindow


class EvaluationReport(msgspec.Struct, frozen=True, kw_only=True, tag="evaluation-report"):
    """A device's answer to an evaluation offer: counts only, each rounded down to its bucket (`evaluation_buckets`).

    `report_id` is made of device, task and lease, as an update's id is: a lease has one report. `words` is how many
    were scored, `hits1` and `hits3` how many of them the first suggestion and the first three hit. Words 0 says that
    the device holds too little text.
    """

    device: Hex32
    task: Hex16
    lease: Hex32
    report_id: Hex32
    version: Version
    words: Count
    hits1: Count
    hits3: Count
    sent_at: Seconds


class TurnedAway(msgspec.Struct, frozen=True, kw_only=True, tag="turned-away"):
    """No work now; not an error. The device comes again within the retry window."""

    device: Hex32
    nonce: Hex32
    reason: Text
    issued_at: Seconds
    retry: RetryWindow


class UpdateHeader(msgspec.Struct, frozen=True, kw_only=True, tag="update-header"):
    """What an update says of itself; these bytes are the associated data of the seal.

    `examples` is the device's own count: the aggregator caps it by the plan and never weights by more.
    """

    device: Hex32
    population: Name
    task: Hex16
    lease: Hex32
    update_id: Hex32
    base_version: Version
    layout_fingerprint: Hex64
    codec: str
    examples: Count
    steps: Count
    loss_before: float
    loss_after: float
    finished_at: Seconds
    ephemeral_key: Bytes32


class UpdateInit(msgspec.Struct, frozen=True, kw_only=True, tag="update-init"):
    """Opens an upload: the header's exact bytes, and size and hash of the sealed bytes that follow in chunks."""

    header: Annotated[bytes, msgspec.Meta(max_length=4096)]
    size_bytes: Annotated[int, msgspec.Meta(ge=1, le=MAX_UPDATE_BYTES)]
    sha256: Hex64
    chunk_bytes: Annotated[int, msgspec.Meta(ge=1024, le=MAX_CHUNK_BYTES)]

    @property
    def chunks(self) -> int:
        """Number of chunks that the sealed bytes are cut into."""
        return -(-self.size_bytes // self.chunk_bytes)


class Chunk(msgspec.Struct, frozen=True, kw_only=True, tag="chunk"):
    """Piece `index` of an update's sealed bytes; integrity comes from the hash in the signed `UpdateInit`."""

    update_id: Hex32
    index: ChunkIndex
    data: Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_CHUNK_BYTES)]


class Receipt(msgspec.Struct, frozen=True, kw_only=True, tag="receipt"):
    """The aggregator's signed answer to an update; it never promises that a release used it.

    `verdict`: `accepted` and `duplicate` (the kept vector may be dropped), `stale` (it returns to the residual),
    `incomplete` (send the chunks in `missing`; `init_missing` asks for the init too), or a refusal by name, after
    which the device discards the update.
    """

    device: Hex32
    update_id: Hex32
    verdict: Text
    reason: Text
    staleness: Annotated[int, msgspec.Meta(ge=0, le=1 << 31)] | None = None
    missing: Annotated[tuple[ChunkIndex, ...], msgspec.Meta(max_length=4096)] = ()
    init_missing: bool = False
    issued_at: Seconds


class DeviceReport(msgspec.Struct, frozen=True, kw_only=True, tag="device-report"):
    """Retained on the device's state topic: online or not, versions held, and why it does not train now."""

    device: Hex32
    nonce: Hex32
    online: bool
    training_version: Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]
    refresh_version: Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]
    runtime: Text
    reason: Text
    sent_at: Seconds


class TrustFile(msgspec.Struct, frozen=True, kw_only=True):
    """One metadata file of the repository (TUF), by the name it has there: `timestamp.json`, `7.snapshot.json`."""

    name: MetadataName
    data: Annotated[bytes, msgspec.Meta(max_length=65_536)]


class ModelAnnouncement(msgspec.Struct, frozen=True, kw_only=True, tag="model-announcement"):
    """Retained on a population's model topics: the signed manifest, the exact bytes that `envelope.sign` made.

    `trust`: the repository's current metadata, as far as they fit, so that a device can check a refresh without HTTP.
    """

    signed_manifest: Annotated[bytes, msgspec.Meta(max_length=70_000)]
    trust: Annotated[tuple[TrustFile, ...], msgspec.Meta(max_length=16)] = ()


class Enrolment(msgspec.Struct, frozen=True, kw_only=True, tag="enrolment"):
    """A device asks for its identity over HTTP: a one-use token and the public key that it made itself.

    `proof` is the device's signature over the token and its key (kind "enrolment-proof").
    """

    token: Annotated[str, msgspec.Meta(max_length=200)]
    public_key: Bytes32
    population: Name
    label: Annotated[str, msgspec.Meta(max_length=80)]
    proof: Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]


class Enrolled(msgspec.Struct, frozen=True, kw_only=True, tag="enrolled"):
    """The answer: who the device is, where the broker is, and the aggregator's key that the device pins.

    `root`: the repository's root metadata (TUF), where the population has one; the device pins it and from then on
    takes a refresh only if the repository's roles say so.
    """

    device: Hex32
    population: Name
    aggregator_key: Bytes32
    manifest_key: Bytes32
    broker_url: Text
    model_url: Text
    shard: Annotated[int, msgspec.Meta(ge=0, le=65_535)]
    issued_at: Seconds
    root: Annotated[bytes, msgspec.Meta(max_length=65_536)] = b""


Request = CheckIn | StatusQuery | ModelRequest | EvaluationReport
TaskReply = TaskOffer | EvaluationOffer | TurnedAway | ModelDenied
AnyMessage = (
    CheckIn
    | StatusQuery
    | ModelRequest
    | ModelChunk
    | ModelDenied
    | TaskOffer
    | EvaluationOffer
    | EvaluationReport
    | TurnedAway
    | UpdateHeader
    | UpdateInit
    | Chunk
    | Receipt
    | DeviceReport
    | ModelAnnouncement
    | Enrolment
    | Enrolled
)

Message = TypeVar("Message")

_TAGS = {
    "check-in", "status-query", "task-offer", "turned-away", "update-header", "update-init", "chunk", "receipt",
    "device-report", "model-announcement", "enrolment", "enrolled", "model-request", "model-chunk", "model-denied",
    "evaluation-offer", "evaluation-report",
}  # fmt: skip


def encode_message(message: AnyMessage) -> bytes:
    """Return a message's bytes; inverse of `decode_message`."""
    return msgspec.msgpack.encode(message)


class _Tagged(msgspec.Struct):
    type: str


_NO_MESSAGE = "no-message"


class _NoMessage(msgspec.Struct, frozen=True, tag=_NO_MESSAGE):
    """Stands beside the expected type; never sent."""


def decode_message(data: bytes, expected: type[Message]) -> Message:
    """Read one message of type `expected` (a message class or a union of them).

    Raises `Malformed` for bytes that break a rule, `Unsupported` for a type this side does not know.
    """
    if len(data) > MAX_MESSAGE_BYTES:
        raise Malformed(f"a message has at most {MAX_MESSAGE_BYTES} bytes, got {len(data)}")
    try:
        message: Message | _NoMessage = _decoder_of(expected).decode(data)  # type: ignore[arg-type] # a type is hashable
    except (msgspec.DecodeError, RecursionError, ValueError) as e:
        tag = _tag_of(data)
        if tag is not None and tag not in _TAGS:
            raise Unsupported(f"this side knows no message of type {tag[:40]!r}") from e
        raise Malformed(f"a message is a MessagePack map of the contract's fields: {e}") from e
    if isinstance(message, _NoMessage):
        raise Unsupported(f"this side knows no message of type {_NO_MESSAGE!r}")
    return message


@functools.cache
def _decoder_of(expected: Any) -> "msgspec.msgpack.Decoder[Any]":
    # Of a single type msgspec takes a map without the tag; of one among several it does not.
    return msgspec.msgpack.Decoder(expected | _NoMessage)


def _tag_of(data: bytes) -> str | None:
    try:
        return msgspec.msgpack.decode(data, type=_Tagged).type
    except (msgspec.DecodeError, RecursionError, ValueError):
        return None


def examples_share(plan: Plan, examples: int) -> float:
    """Return an update's weight before staleness, 0 to 1, as the plan's `weight_rule` has it; both ends use this."""
    return 1.0 if plan.weight_rule == "uniform" else min(examples, plan.example_cap) / plan.example_cap


def verdict_returns_the_update(verdict: str) -> bool:
    """Whether the device puts the update's vector back into its residual (only a stale one)."""
    return verdict == "stale"


def capabilities_needed(plan: Plan) -> frozenset[str]:
    """Return the capabilities that a device must name at check-in before this plan may be offered to it."""
    family = signature_family(plan.signature)
    needed = {f"codec:{plan.codec.mode}", f"rule:{plan.rule}", f"signature:{family}"}
    if family != plan.signature:
        # A device that knows no variants would look for the family's own name and refuse the plan each time.
        needed.add("plan:variant")
    if plan.codec.mode != "shared":
        needed.add(f"entropy:{plan.codec.entropy}")
    # A device that does not know these two fields would ignore them, and send something else than the plan says.
    if plan.codec.basis:
        needed.add("codec:basis")
    if plan.codec.threshold:
        needed.add("codec:threshold")
    needed.update(f"rule:{rule.name}" for rule in plan.rules)
    if plan.separation_versions or plan.separation_s:
        needed.add("plan:separation")
    return frozenset(needed)


LOCAL_RULES = frozenset((
    "clip", "example-clip", "example-noise", "freeze", "max-steps", "momentum", "nesterov", "proximal",
    "schedule-cosine", "schedule-linear", "warm-up",
))  # fmt: skip
"""The names of local rules that this release's devices know; their maths is the device's alone."""

EVALUATION_BUCKET = 10
EVALUATION_CAPABILITY = "task:evaluate"


def evaluation_buckets(words: int, hits1: int, hits3: int) -> tuple[int, int, int]:
    """Return the counts as they may leave a device: rounded down to tens, so that no single word shows in them."""
    return tuple(count - count % EVALUATION_BUCKET for count in (words, hits1, hits3))  # type: ignore[return-value]


def lease_id(device: str, task: str, lease: str) -> str:
    """Return the id of what a device answers to a lease, an update or a report: one lease has one of it."""
    return hashlib.sha256(f"{device}|{task}|{lease}".encode("ascii")).hexdigest()[:32]
