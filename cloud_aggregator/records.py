"""What is stored, as frozen values, and the operations on it that the service needs.

One `Records` is one transaction (see `ports.Database`). The state of everything that counts is a function of these
rows: the buffer is the accepted updates whose `used_by` is empty, so a restart rebuilds it exactly. A `PartialSums` is
a part of that sum which was worked out already, kept in the transaction that gave its updates their verdicts.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from cloud_aggregator.leases import Lease, LeaseState
from cloud_aggregator.server_optimizer import OptimizerState
from cloud_aggregator.trust_records import TrustRecords
from wire_contract.topics import Track

UpdateState = Literal["open", "received", "judged"]
RequestKind = Literal["check-in", "status-query", "repeat", "model-request", "evaluation"]


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """A minted enrolment token (only its hash is kept): how often it may be used still, and until when."""

    token_sha256: str
    label: str
    population: str
    uses_left: int
    minted_at: int
    expires_at: int


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """An enrolled device, what it last said of itself, and the retry window that it was last told."""

    device: str
    population: str
    public_key: bytes
    label: str
    enrolled_at: int
    revoked_at: int | None = None
    last_seen: int | None = None
    online: bool = False
    training_version: int = 0
    refresh_version: int = 0
    runtime: str = ""
    reason: str = ""
    report_nonce: str = ""
    reported_at: int = 0
    retry_earliest: int = 0
    retry_latest: int = 0


@dataclass(frozen=True, slots=True)
class PopulationRecord:
    """A population: settings (JSON), the exporter's key, its signed manifest, and its one task."""

    population: str
    settings: bytes
    manifest_key: bytes
    template_sha256: str
    signed_template: bytes
    task: str
    created_at: int


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """A verified check-in or status query that waits for the next pass. A device has one check-in here."""

    id: int
    device: str
    kind: RequestKind
    key: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class UpdateRecord:
    """An update as far as it has come. `task` and `lease` are empty for one refused at the door (nothing verified)."""

    id: int
    update_id: str
    device: str
    task: str | None
    lease: str | None
    header: bytes
    size_bytes: int
    sha256: str
    chunk_bytes: int
    init_sha256: str
    finished_at: int
    arrived_at: int
    state: UpdateState
    verdict: str | None = None
    reason: str = ""
    staleness: int | None = None
    weight: float = 0.0
    norm: float = 0.0
    base_version: int = 0
    judged_at: int | None = None
    receipt: bytes = b""
    receipt_published: bool = False
    used_by: int | None = None
    mismatches: int = 0

    @property
    def chunks(self) -> int:
        """Number of chunks of the sealed bytes."""
        return -(-self.size_bytes // self.chunk_bytes)


@dataclass(frozen=True, slots=True)
class ChunkRecord:
    """A chunk of an update that is not whole yet."""

    update_id: str
    index: int
    device: str
    data: bytes
    arrived_at: int


@dataclass(frozen=True, slots=True)
class PartialSums:
    """The exact sum of some accepted updates (see `partial_sums` for the packed forms), for `version`, 0: still open.

    `high_water` is the highest row id in it, `members` are the row ids, `members_sha256` binds ids, the updates' hashes
    and their weights, `sums_sha256` is of the unpacked sums.
    """

    population: str
    version: int
    count: int
    high_water: int
    members: bytes
    members_sha256: str
    sums: bytes
    sums_sha256: str


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """A version that was made: by the import (ordinal 0), a step, or an undo (no ordinal).

    `examples` is the sum of what its updates' devices stated; nobody can check it.
    """

    population: str
    version: int
    sha256: str
    ordinal: int | None
    made_at: int
    opened_at: int
    cause: str
    updates: int
    staleness: tuple[int, ...]
    delta_norm: float
    weights_of: int | None = None
    examples: int = 0


@dataclass(frozen=True, slots=True)
class AnnouncementRecord:
    """What a track announces: the signed manifest's exact bytes."""

    population: str
    track: Track
    version: int
    sha256: str
    signed_manifest: bytes
    announced_at: int


@dataclass(frozen=True, slots=True)
class ReleaseRecord:
    """One decision about a refresh: released, held or undone, by whom and why.

    `signed_manifest` is what went out first, with its lineage; empty for what was held.
    """

    id: int
    population: str
    version: int
    previous: int
    sha256: str
    outcome: Literal["released", "held", "undone"]
    cause: str
    reason: str
    at: int
    signed_manifest: bytes = b""


@dataclass(frozen=True, slots=True)
class EventRecord:
    """Something that an operator may want to know, counted by its kind."""

    at: int
    kind: str
    device: str
    text: str


@dataclass(frozen=True, slots=True)
class ScheduleRecord:
    """When a population's refresh is due; `next_due` None: only by hand."""

    population: str
    cron: str
    time_zone: str
    next_due: int | None
    last_run: int | None


@dataclass(frozen=True, slots=True)
class EvaluationRecord:
    """A version that `devices` devices are asked to evaluate until `deadline`, and the sums of what they reported.

    `silent` reports are of devices with too little text; the last three are sums of squares and products, of which the
    scatter between devices follows (`evaluations.recall`).
    """

    task: str
    population: str
    version: int
    sha256: str
    devices: int
    minimum_words: int
    most_words: int
    asked_at: int
    deadline: int
    reports: int = 0
    silent: int = 0
    words: int = 0
    hits1: int = 0
    hits3: int = 0
    words_words: int = 0
    words_hits3: int = 0
    hits3_hits3: int = 0


@dataclass(frozen=True, slots=True)
class ReportRecord:
    """That a lease's report was counted: its body's hash, and none of its counts."""

    task: str
    device: str
    lease: str
    body_sha256: str
    at: int


class Records(TrustRecords, Protocol):
    """The operations inside one transaction; lists are in the order that each says."""

    def meta(self, key: str) -> bytes | None: ...
    def set_meta(self, key: str, value: bytes) -> None: ...

    def add_token(self, token: TokenRecord) -> None: ...
    def take_token(self, token_sha256: str, now: int) -> TokenRecord | None:
        """Use the token once and return it; None if there is no use left or it has expired."""

    def tokens(self) -> list[TokenRecord]: ...

    def add_device(self, device: DeviceRecord) -> bool:
        """Store a new device; False if its id is taken."""

    def device(self, device: str) -> DeviceRecord | None: ...
    def devices_of(self, devices: Iterable[str]) -> dict[str, DeviceRecord]:
        """Those of these ids that are enrolled."""

    def devices(self) -> list[DeviceRecord]:
        """Newest first."""

    def replace_device(self, device: DeviceRecord) -> None: ...
    def touch_device(self, device: str, now: int) -> None: ...
    def set_retry(self, device: str, earliest: int, latest: int) -> None:
        """Keep the retry window that a device was told."""

    def add_population(self, population: PopulationRecord) -> bool: ...
    def populations(self) -> list[PopulationRecord]: ...
    def template(self, template_sha256: str, population: str = "") -> bytes | None:
        """Return the exporter-signed manifest of a template, as a population was founded from it ("": any one)."""

    def put_requests(self, requests: Sequence[RequestRecord]) -> None:
        """Keep requests until the pass; a later one of the same device, kind and key takes its place."""

    def requests(self, limit: int) -> list[RequestRecord]:
        """Check-ins first, then in the order of device and arrival."""

    def drop_requests(self, ids: Sequence[int]) -> None: ...
    def count_requests(self, kind: str) -> int: ...
    def waiting_queries(self, device: str) -> set[tuple[str, str]]:
        """(kind, key) of a device's requests that are no check-in."""

    def add_lease(self, lease: Lease) -> None: ...
    def lease(self, task: str, device: str, lease: str) -> Lease | None: ...
    def leases_of(self, leases: Iterable[str]) -> dict[str, Lease]:
        """Those of these ids that were given."""

    def live_lease(self, task: str, device: str) -> Lease | None: ...
    def count_leases(self, task: str, device: str) -> int: ...
    def count_in_flight(self, task: str, now: int) -> int:
        """Leases that live and are not past their deadline, their update not yet received."""

    def set_lease_state(self, lease: str, state: LeaseState) -> None: ...
    def answer_leases(self, leases: Sequence[str]) -> None:
        """End these leases by their updates, where they live."""

    def expire_leases(self, task: str, now: int) -> int: ...

    def count_taken(self, task: str) -> int:
        """Leases that live or were answered."""

    def put_evaluation(self, evaluation: EvaluationRecord) -> None:
        """Store an evaluation, or its new sums."""

    def evaluation(self, task: str) -> EvaluationRecord | None: ...
    def evaluations(self, population: str | None) -> list[EvaluationRecord]:
        """Newest first."""

    def open_evaluations(self, population: str, now: int) -> list[EvaluationRecord]:
        """Those before their deadline, newest first."""

    def add_report(self, report: ReportRecord) -> None:
        """Note that a report was counted; a second one of a lease is an error of the program."""

    def report(self, task: str, device: str, lease: str) -> ReportRecord | None: ...
    def drop_old_reports(self, counted_before: int) -> int:
        """Delete the notes of reports; the sums stay."""

    def add_update(self, update: UpdateRecord) -> int | None:
        """Store a new update and return its id; None if its lease or its very init is already there."""

    def take_update_ids(self, count: int) -> range:
        """Return ids for that many new updates; ids rise and none is given twice."""

    def add_updates(self, updates: Sequence[UpdateRecord]) -> int:
        """Store updates under their own ids, ignoring those whose lease or very init is there; return how many."""

    def update(self, update_id: str) -> UpdateRecord | None:
        """The one verified update of this id, or else one refused at the door."""

    def updates_of(self, update_ids: Iterable[str]) -> dict[str, UpdateRecord]:
        """What `update` returns, for many ids; those without a row are left out."""

    def has_init(self, update_id: str, init_sha256: str) -> bool:
        """Whether there is a row of these very bytes, verified or refused."""

    def updates_by_id(self, ids: Iterable[int]) -> dict[int, UpdateRecord]: ...
    def count_refused_at_door(self, device: str) -> int: ...
    def received_updates(self, limit: int) -> list[UpdateRecord]:
        """In the order (finished_at, device, id)."""

    def count_updates(self, state: UpdateState) -> int: ...
    def set_verdicts(self, updates: Sequence[UpdateRecord]) -> None:
        """Store state, verdict with reason and numbers, receipt and mismatches of updates that are there."""

    def accepted_unused(self, task: str) -> list[UpdateRecord]: ...
    def mark_used(self, ids: Sequence[int], version: int) -> None: ...
    def unpublished_receipts(self, limit: int) -> list[UpdateRecord]: ...
    def mark_published(self, ids: Sequence[int]) -> None: ...
    def updates_of_version(self, task: str, version: int | None) -> list[UpdateRecord]: ...
    def count_verdicts(self, task: str) -> dict[tuple[str, int | None], int]:
        """Counts by (verdict, staleness)."""

    def put_sealed(self, sealed: Mapping[int, bytes]) -> None:
        """Store the sealed bytes of whole updates by row id."""

    def sealed_bytes(self, id: int) -> bytes:
        """The sealed bytes of an update; empty if they are not there (refused, or deleted by age)."""

    def sealed_of(self, ids: Iterable[int]) -> dict[int, bytes]:
        """The sealed bytes of many updates; those that are not there are left out."""

    def drop_sealed(self, ids: Sequence[int]) -> None: ...

    def put_chunks(self, chunks: Sequence[ChunkRecord]) -> None:
        """Store chunks, each unless its index is already there."""

    def chunk_sizes(self, update_id: str) -> dict[int, int]:
        """Sizes in bytes by index."""

    def chunk_sizes_of(self, update_ids: Iterable[str]) -> dict[str, dict[int, int]]:
        """What `chunk_sizes` returns, for many ids; those without a chunk are left out."""

    def chunk_data(self, update_id: str) -> dict[int, bytes]:
        """An unfinished update's chunks by index."""

    def drop_chunks(self, update_ids: Iterable[str]) -> None: ...
    def unfinished_bytes(self, device: str, *, claimed: bool) -> int:
        """Chunk bytes stored for a device: of signed inits not yet whole, or (`claimed` False) of no signed init."""

    def drop_old_sealed(self, judged_before: int, task: str, used_up_to: int) -> int:
        """Delete the sealed bytes of a task's updates that a step used, where the verdict is old or the version is at
        most `used_up_to`."""

    def drop_unclaimed_chunks(self, arrived_before: int) -> int:
        """Delete chunks whose signed init has not come."""

    def drop_old_refusals(self, judged_before: int) -> int:
        """Delete the rows of updates that were refused."""

    def drop_old_uploads(self, arrived_before: int) -> int:
        """Delete uploads that were never finished: rows and chunks."""

    def add_version(self, version: VersionRecord) -> None: ...
    def version(self, population: str, version: int) -> VersionRecord | None: ...
    def versions(self, population: str) -> list[VersionRecord]:
        """Newest first."""

    def announce(self, announcement: AnnouncementRecord) -> None: ...
    def announcements(self) -> list[AnnouncementRecord]: ...
    def announcement(self, population: str, track: Track) -> AnnouncementRecord | None: ...

    def optimizer(self, population: str) -> OptimizerState | None: ...
    def set_optimizer(self, population: str, state: OptimizerState) -> None: ...

    def put_sums(self, sums: PartialSums) -> None:
        """Keep sums in place of those of the same population and version."""

    def sums(self, population: str, version: int) -> PartialSums | None: ...
    def drop_sums(self, population: str, version: int) -> None: ...
    def drop_old_sums(self, population: str, before: int) -> None:
        """Delete the sums of versions below `before`, but not those of the open round."""

    def keep_state(self, population: str, version: int, state: OptimizerState) -> None:
        """Keep the optimizer's state after a version, for replays."""

    def kept_state(self, population: str, version: int) -> OptimizerState | None: ...
    def kept_versions(self, population: str) -> list[int]:
        """The versions whose state is kept, newest first."""

    def drop_states(self, population: str, versions: Sequence[int]) -> None: ...

    def add_release(self, release: ReleaseRecord) -> None: ...
    def releases(self, population: str | None) -> list[ReleaseRecord]:
        """Newest first."""

    def schedule(self, population: str) -> ScheduleRecord | None: ...
    def set_schedule(self, schedule: ScheduleRecord) -> None: ...

    def add_event(self, at: int, kind: str, device: str, text: str) -> None: ...
    def add_events(self, events: Sequence[EventRecord]) -> None: ...
    def count_events(self) -> dict[str, int]: ...
