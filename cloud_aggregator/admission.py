"""The verdict on an update: one name, one reason, given once.

The rules, cheap checks first, nothing of the update is believed before its check:
 at the door, when the init arrives (`open_init`)
  (a device without a key here, `unknown_device`, and bytes that its key did not sign, `bad_signature`, are events:
  they get neither a verdict nor a receipt, for the id that they name may be a real update's; so is `unknown_lease`)
  malformed       the device signed it, but init or header break the contract, or their ids differ from the topic's
  unknown_device  the device signed it and is revoked
 at the pass, when all chunks are there (`admit`)
  wrong_task      made for another population or task
  unknown_lease   the lease was for another base version
  wrong_layout    another layout fingerprint
  expired         after the lease's deadline and grace, or older than the maximum age by the aggregator's own clock
  stale           more than 3 steps behind: the device keeps the vector
  unsupported     a codec that the plan does not name, or an index set that no plan of this population has named
  bad_seal        does not open with the header's bytes
  malformed       does not decode to this model's size, finite, in range, in the plan's codec
  norm_exceeded   the decoded vector is longer than the clip norm, or one value is above the buffer's bound
  accepted        weight = (1, or min(examples, cap) / cap) / sqrt(1 + staleness)
`duplicate` and `conflict` (other bytes under one lease) come from what is stored, not from the bytes: see `ingest`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from cloud_aggregator import staleness as staleness_rule
from cloud_aggregator.buffer import MAX_MAGNITUDE
from cloud_aggregator.leases import Lease
from wire_contract import codec, envelope
from wire_contract.codec import SparseVector
from wire_contract.errors import ContractError, Malformed, Unsupported, Untrusted
from wire_contract.index_set import IndexSet
from wire_contract.messages import (
    CodecPlan,
    Plan,
    UpdateHeader,
    UpdateInit,
    decode_message,
    examples_share,
    lease_id,
)
from wire_contract.topics import UpdateTopic

VerdictName = Literal[
    "accepted", "duplicate", "stale", "conflict", "expired", "wrong_layout", "bad_signature", "bad_seal", "malformed",
    "unsupported", "unknown_device", "unknown_lease", "norm_exceeded", "wrong_task",
]  # fmt: skip

# The device scales with float32 and the norm is summed in another order here: leave one part in a million.
NORM_SLACK: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of an update. `staleness` in steps where it is known; `weight` is 0 unless accepted."""

    name: VerdictName
    reason: str
    staleness: int | None = None
    weight: float = 0.0


@dataclass(frozen=True, slots=True)
class OpenedInit:
    """An init whose signature holds and whose ids fit its topic."""

    init: UpdateInit
    header: UpdateHeader


def no_index_set(wanted: bytes) -> IndexSet | None:
    """Where no plan names an index set, none is found."""
    return None


class Decode(Protocol):
    """`codec.decode`, or a kernel's (`aggregation_kernel`), which gives the same vector or the same error."""

    def __call__(
        self, data: bytes, *, size: int, plan: CodecPlan | None = None, index_set: IndexSet | None = None
    ) -> SparseVector: ...


@dataclass(frozen=True, slots=True)
class Rules:
    """What an update is measured by; times in seconds. `index_set` finds a set by the 8 bytes that an update names.

    `decode` is the machine's matter and changes no verdict.
    """

    population: str
    task: str
    layout_fingerprint: str
    size: int
    plan: Plan
    lease_grace_s: int
    maximum_age_s: int
    index_set: Callable[[bytes], IndexSet | None] = no_index_set
    decode: Decode = codec.decode


@dataclass(frozen=True, slots=True)
class Arrived:
    """An update with all its chunks, its lease if there is one, and its staleness in steps (None: unknown base)."""

    header_bytes: bytes
    header: UpdateHeader
    sealed: bytes
    lease: Lease | None
    staleness: int | None


def open_init(payload: bytes, topic: UpdateTopic, public_key: bytes | None) -> OpenedInit | Verdict:
    """Read a signed init; `public_key` is the topic's device's, None if it is not enrolled. Never raises.

    After `unknown_device` and `bad_signature` nothing of the init is the device's own (see `is_signed`).
    """
    if public_key is None:
        return Verdict("unknown_device", f"device {topic.device} is not enrolled here")
    try:
        body = envelope.verify(payload, "update", public_key)
    except ContractError as e:
        return Verdict("bad_signature", str(e)[:300])
    try:
        init = decode_message(body, UpdateInit)
        header = decode_message(init.header, UpdateHeader)
    except Unsupported as e:
        return Verdict("unsupported", str(e))
    except ContractError as e:
        return Verdict("malformed", str(e)[:300])
    if header.device != topic.device:
        return Verdict("malformed", f"the topic's device is {topic.device}, the header says {header.device}")
    wanted = lease_id(header.device, header.task, header.lease)
    if not header.update_id == topic.update_id == wanted:
        return Verdict("malformed", f"an update of this lease has the id {wanted}, got {header.update_id}")
    return OpenedInit(init, header)


def is_signed(refusal: Verdict) -> bool:
    """Whether a refusal of `open_init` is of bytes that the topic's device signed, and so may be answered."""
    return refusal.name not in ("unknown_device", "bad_signature")


def update_weight(plan: Plan, examples: int, staleness: int) -> float:
    """Return an update's weight, above 0 and at most 1; 0 only where it claims no example under the rule "examples"."""
    return examples_share(plan, examples) * staleness_rule.weight(staleness)


def admit(
    update: Arrived, rules: Rules, sealing_key: X25519PrivateKey, now: int
) -> tuple[Verdict, SparseVector | None]:
    """Return the verdict, and the vector to fold if it is `accepted`. Never raises, whatever the bytes."""
    verdict = _refuse_unopened(update, rules, now)
    if verdict is not None:
        return verdict, None
    behind = update.staleness or 0
    try:
        plain = envelope.unseal(
            update.sealed,
            header=update.header_bytes,
            ephemeral_key=update.header.ephemeral_key,
            recipient=sealing_key,
        )
    except Untrusted as e:
        return Verdict("bad_seal", str(e), behind), None
    try:
        vector = read_vector(plain, rules)
    except Unsupported as e:
        return Verdict("unsupported", str(e), behind), None
    except Malformed as e:
        return Verdict("malformed", str(e)[:300], behind), None
    norm, limit = vector.norm(), rules.plan.clip_norm
    # Written so that a NaN or an infinite norm fails it too.
    if not norm <= limit * (1.0 + NORM_SLACK):
        return Verdict("norm_exceeded", f"the clip norm is {limit}, the update's norm is {norm:.6g}", behind), None
    peak = float(abs(vector.values).max()) if len(vector.values) else 0.0
    if not peak <= MAX_MAGNITUDE:
        return Verdict("norm_exceeded", f"a value lies within {MAX_MAGNITUDE}, the largest is {peak:.9g}", behind), None
    weight = update_weight(rules.plan, update.header.examples, behind)
    if weight <= 0.0:
        return Verdict("malformed", "an update is made of at least one example, got 0", behind), None
    return Verdict("accepted", f"staleness {behind}, weight {weight:.4f}", behind, weight), vector


def read_vector(plain: bytes, rules: Rules) -> SparseVector:
    """Return what opened bytes say, decoded as the plan has it. Raises `Malformed` or `Unsupported`.

    The set of a `shared` update is the one that it names: the plan may name a newer one since the lease went out.
    """
    wanted = codec.set_id_of(plain)
    index_set = None if wanted is None else rules.index_set(wanted)
    if wanted is not None and index_set is None:
        raise Unsupported(f"no plan of this population has named the index set {wanted.hex()}")
    return rules.decode(plain, size=rules.size, plan=rules.plan.codec, index_set=index_set)


def _refuse_unopened(update: Arrived, rules: Rules, now: int) -> Verdict | None:
    header, lease, behind = update.header, update.lease, update.staleness
    if (header.population, header.task) != (rules.population, rules.task):
        return Verdict("wrong_task", f"the task is {rules.population}/{rules.task}, got {header.population}")
    if lease is None:
        return Verdict("unknown_lease", f"device {header.device} holds no lease {header.lease}")
    if header.base_version != lease.base_version or behind is None:
        return Verdict(
            "unknown_lease", f"the lease is for version {lease.base_version}, the update for {header.base_version}"
        )
    if header.layout_fingerprint != rules.layout_fingerprint:
        return Verdict(
            "wrong_layout",
            f"the layout is {rules.layout_fingerprint[:16]}, the update's is {header.layout_fingerprint[:16]}",
        )
    if now > lease.deadline + rules.lease_grace_s:
        late = now - lease.deadline
        return Verdict("expired", f"the lease ended {late} s ago, grace is {rules.lease_grace_s} s", behind)
    if now - lease.issued_at > rules.maximum_age_s:
        age = now - lease.issued_at
        return Verdict("expired", f"an update is at most {rules.maximum_age_s} s old, this one is {age} s", behind)
    if behind > staleness_rule.MAXIMUM:
        return Verdict("stale", f"staleness {behind} is above {staleness_rule.MAXIMUM}", behind)
    if header.codec != rules.plan.codec.mode:
        return Verdict("unsupported", f"the plan's codec is {rules.plan.codec.mode}, got {header.codec[:40]!r}", behind)
    return None
