"""What is stored, as frozen values, and the operations on it that the service needs.

One `Records` is one transaction (see `ports.Database`). The state of everything that counts is a function of these
rows: the buffer is the accepted updates whose `used_by` is empty, so a restart rebuilds it exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from cloud_aggregator.leases import Lease, LeaseState
from cloud_aggregator.server_optimizer import OptimizerState
from wire_contract.topics import Track

UpdateState = Literal["open", "received", "judged"]


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
    kind: Literal["check-in", "status-query", "repeat"]
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
class VersionRecord:
    """A version that was made: by the import (ordinal 0), a step, or an undo (no ordinal)."""

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
    """One decision about a refresh: released, held or undone, by whom and why."""

    id: int
    population: str
    version: int
    previous: int
    sha256: str
    outcome: Literal["released", "held", "undone"]
    cause: str
    reason: str
    at: int


@dataclass(frozen=True, slots=True)
class ScheduleRecord:
    """When a population's refresh is due; `next_due` None: only by hand."""

    population: str
    cron: str
    time_zone: str
    next_due: int | None
    last_run: int | None


class Records(Protocol):
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
    def devices(self) -> list[DeviceRecord]:
        """Newest first."""

    def replace_device(self, device: DeviceRecord) -> None: ...
    def touch_device(self, device: str, now: int) -> None: ...
    def set_retry(self, device: str, earliest: int, latest: int) -> None:
        """Keep the retry window that a device was told."""

    def add_population(self, population: PopulationRecord) -> bool: ...
    def populations(self) -> list[PopulationRecord]: ...
    def template(self, template_sha256: str) -> bytes | None: ...

    def put_request(self, device: str, kind: str, key: str, payload: bytes) -> None:
        """Keep a request until the pass; a later one of the same kind and key takes its place."""

    def requests(self, limit: int) -> list[RequestRecord]:
        """Check-ins first, then in the order of device and arrival."""

    def drop_requests(self, ids: Sequence[int]) -> None: ...
    def count_requests(self, kind: str) -> int: ...
    def waiting_queries(self, device: str) -> set[tuple[str, str]]:
        """(kind, key) of a device's requests that are no check-in."""

    def add_lease(self, lease: Lease) -> None: ...
    def lease(self, task: str, device: str, lease: str) -> Lease | None: ...
    def live_lease(self, task: str, device: str) -> Lease | None: ...
    def count_leases(self, task: str, device: str) -> int: ...
    def count_in_flight(self, task: str, now: int) -> int:
        """Leases that live and are not past their deadline, their update not yet received."""

    def set_lease_state(self, lease: str, state: LeaseState) -> None: ...
    def expire_leases(self, task: str, now: int) -> int: ...

    def add_update(self, update: UpdateRecord) -> int | None:
        """Store a new update and return its id; None if its lease or its very init is already there."""

    def update(self, update_id: str) -> UpdateRecord | None:
        """The one verified update of this id, or else one refused at the door."""

    def count_refused_at_door(self, device: str) -> int: ...
    def set_update_state(self, id: int, state: UpdateState, mismatches: int) -> None: ...
    def received_updates(self, limit: int) -> list[UpdateRecord]:
        """In the order (finished_at, device, id)."""

    def count_updates(self, state: UpdateState) -> int: ...
    def set_verdict(self, update: UpdateRecord) -> None: ...
    def accepted_unused(self, task: str) -> list[UpdateRecord]: ...
    def mark_used(self, ids: Sequence[int], version: int) -> None: ...
    def unpublished_receipts(self, limit: int) -> list[UpdateRecord]: ...
    def mark_published(self, ids: Sequence[int]) -> None: ...
    def updates_of_version(self, task: str, version: int | None) -> list[UpdateRecord]: ...
    def count_verdicts(self, task: str) -> dict[tuple[str, int | None], int]:
        """Counts by (verdict, staleness)."""

    def put_chunk(self, update_id: str, device: str, index: int, data: bytes, now: int) -> None:
        """Store a chunk unless this index is already there."""

    def chunk_sizes(self, update_id: str) -> dict[int, int]:
        """Sizes in bytes by index."""

    def sealed_bytes(self, update_id: str) -> bytes:
        """All chunks joined in order."""

    def drop_chunks(self, update_id: str) -> None: ...
    def unfinished_bytes(self, device: str, *, claimed: bool) -> int:
        """Chunk bytes stored for a device: of signed inits not yet accepted, or (`claimed` False) of no signed init."""

    def drop_old_chunks(self, judged_before: int) -> int:
        """Delete the sealed bytes of updates with an old verdict, unless they still wait for a step."""

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

    def add_release(self, release: ReleaseRecord) -> None: ...
    def releases(self, population: str | None) -> list[ReleaseRecord]:
        """Newest first."""

    def schedule(self, population: str) -> ScheduleRecord | None: ...
    def set_schedule(self, schedule: ScheduleRecord) -> None: ...

    def add_event(self, at: int, kind: str, device: str, text: str) -> None: ...
    def count_events(self) -> dict[str, int]: ...
