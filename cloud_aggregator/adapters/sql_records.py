"""`records.Records` on one SQLAlchemy connection: enrolment, leases, versions and what the operator sees.

The updates and their chunks are in `sql_updates`, evaluations in `sql_evaluations`, the signed repository in
`sql_trust`; this class builds on all three.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict

import numpy as np
import sqlalchemy as sa

from cloud_aggregator.adapters import schema as t
from cloud_aggregator.adapters.sql_trust import SqlTrust
from cloud_aggregator.adapters.sql_updates import in_parts
from cloud_aggregator.labels import printable
from cloud_aggregator.leases import Lease, LeaseState
from cloud_aggregator.records import (
    AnnouncementRecord,
    DeviceRecord,
    EventRecord,
    PartialSums,
    PopulationRecord,
    ReleaseRecord,
    RequestRecord,
    ScheduleRecord,
    TokenRecord,
    VersionRecord,
)
from cloud_aggregator.server_optimizer import OptimizerState
from wire_contract.topics import Track

MAX_EVENTS = 10_000


class SqlRecords(SqlTrust):
    """One transaction's operations."""

    def add_columns(self, columns: Sequence[tuple[str, str]]) -> None:
        """Add those of these (table, column) that the database lacks; earlier rows hold their default."""
        for table, name in columns:
            if name in {found["name"] for found in sa.inspect(self._connection).get_columns(table)}:
                continue
            column = t.metadata.tables[table].c[name]
            kind = column.type.compile(self._connection.dialect)
            rule = "" if column.nullable else f" NOT NULL DEFAULT {column.server_default.arg}"  # type: ignore[union-attr]
            self._connection.exec_driver_sql(f"ALTER TABLE {table} ADD COLUMN {name} {kind}{rule}")

    def meta(self, key: str) -> bytes | None:
        value = self._connection.scalar(sa.select(t.meta.c.value).where(t.meta.c.key == key))
        return None if value is None else bytes(value)

    def set_meta(self, key: str, value: bytes) -> None:
        self._put(t.meta, {"key": key, "value": value}, ["key"])

    def add_token(self, token: TokenRecord) -> None:
        self._connection.execute(sa.insert(t.tokens).values(asdict(token)))

    def take_token(self, token_sha256: str, now: int) -> TokenRecord | None:
        usable = (t.tokens.c.token_sha256 == token_sha256) & (t.tokens.c.uses_left > 0) & (t.tokens.c.expires_at > now)
        taken = self._connection.execute(
            sa.update(t.tokens).where(usable).values(uses_left=t.tokens.c.uses_left - 1)
        ).rowcount
        if not taken:
            return None
        row = self._connection.execute(sa.select(t.tokens).where(t.tokens.c.token_sha256 == token_sha256)).one()
        return TokenRecord(**row._mapping)

    def tokens(self) -> list[TokenRecord]:
        rows = self._connection.execute(sa.select(t.tokens).order_by(t.tokens.c.minted_at.desc()))
        return [TokenRecord(**row._mapping) for row in rows]

    def add_device(self, device: DeviceRecord) -> bool:
        return self._insert_new(t.devices, asdict(device))

    def device(self, device: str) -> DeviceRecord | None:
        row = self._connection.execute(sa.select(t.devices).where(t.devices.c.device == device)).one_or_none()
        return None if row is None else DeviceRecord(**row._mapping)

    def devices_of(self, devices: Iterable[str]) -> dict[str, DeviceRecord]:
        found = {}
        for some in in_parts(devices):
            for row in self._connection.execute(sa.select(t.devices).where(t.devices.c.device.in_(some))):
                found[row.device] = DeviceRecord(*row)
        return found

    def devices(self) -> list[DeviceRecord]:
        order = (t.devices.c.enrolled_at.desc(), t.devices.c.device)
        return [DeviceRecord(**row._mapping) for row in self._connection.execute(sa.select(t.devices).order_by(*order))]

    def replace_device(self, device: DeviceRecord) -> None:
        self._put(t.devices, asdict(device), ["device"])

    def touch_device(self, device: str, now: int) -> None:
        self._connection.execute(sa.update(t.devices).where(t.devices.c.device == device).values(last_seen=now))

    def set_retry(self, device: str, earliest: int, latest: int) -> None:
        chosen = sa.update(t.devices).where(t.devices.c.device == device)
        self._connection.execute(chosen.values(retry_earliest=earliest, retry_latest=latest))

    def add_population(self, population: PopulationRecord) -> bool:
        return self._insert_new(t.populations, asdict(population))

    def populations(self) -> list[PopulationRecord]:
        rows = self._connection.execute(sa.select(t.populations).order_by(t.populations.c.population))
        return [PopulationRecord(**row._mapping) for row in rows]

    def template(self, template_sha256: str, population: str = "") -> bytes | None:
        column = t.populations.c
        query = sa.select(column.signed_template).where(column.template_sha256 == template_sha256)
        if population:
            query = query.where(column.population == population)
        value = self._connection.scalar(query.limit(1))
        return None if value is None else bytes(value)

    def put_requests(self, requests: Sequence[RequestRecord]) -> None:
        rows = [{"device": r.device, "kind": r.kind, "key": r.key, "payload": r.payload} for r in requests]
        self._put_all(t.requests, rows, ["device", "kind", "key"])

    def requests(self, limit: int) -> list[RequestRecord]:
        column = t.requests.c
        query = sa.select(column.id, column.device, column.kind, column.key, column.payload)
        # A flood of questions must not keep anybody's check-in from this pass.
        order = (column.kind != "check-in", column.device, column.id)
        rows = self._connection.execute(query.order_by(*order).limit(limit))
        return [RequestRecord(**row._mapping) for row in rows]

    def drop_requests(self, ids: Sequence[int]) -> None:
        self._for_each(f"DELETE FROM requests WHERE id = {self._mark}", [(number,) for number in ids])

    def count_requests(self, kind: str) -> int:
        query = sa.select(sa.func.count()).select_from(t.requests).where(t.requests.c.kind == kind)
        return int(self._connection.scalar(query) or 0)

    def waiting_queries(self, device: str) -> set[tuple[str, str]]:
        column = t.requests.c
        query = sa.select(column.kind, column.key).where((column.device == device) & (column.kind != "check-in"))
        return {(row.kind, row.key) for row in self._connection.execute(query)}

    def add_lease(self, lease: Lease) -> None:
        self._connection.execute(sa.insert(t.leases).values(asdict(lease)))

    def lease(self, task: str, device: str, lease: str) -> Lease | None:
        column = t.leases.c
        chosen = (column.lease == lease) & (column.task == task) & (column.device == device)
        row = self._connection.execute(sa.select(t.leases).where(chosen)).one_or_none()
        return None if row is None else Lease(**row._mapping)

    def leases_of(self, leases: Iterable[str]) -> dict[str, Lease]:
        found = {}
        for some in in_parts(leases):
            for row in self._connection.execute(sa.select(t.leases).where(t.leases.c.lease.in_(some))):
                found[row.lease] = Lease(*row)
        return found

    def live_lease(self, task: str, device: str) -> Lease | None:
        column = t.leases.c
        chosen = (column.task == task) & (column.device == device) & (column.state == "live")
        row = self._connection.execute(sa.select(t.leases).where(chosen)).one_or_none()
        return None if row is None else Lease(**row._mapping)

    def count_leases(self, task: str, device: str) -> int:
        column = t.leases.c
        chosen = (column.task == task) & (column.device == device)
        return int(self._connection.scalar(sa.select(sa.func.count()).select_from(t.leases).where(chosen)) or 0)

    def count_in_flight(self, task: str, now: int) -> int:
        column = t.leases.c
        chosen = (column.task == task) & (column.state == "live") & (column.deadline > now)
        return int(self._connection.scalar(sa.select(sa.func.count()).select_from(t.leases).where(chosen)) or 0)

    def set_lease_state(self, lease: str, state: LeaseState) -> None:
        self._connection.execute(sa.update(t.leases).where(t.leases.c.lease == lease).values(state=state))

    def answer_leases(self, leases: Sequence[str]) -> None:
        change = f"UPDATE leases SET state = 'answered' WHERE lease = {self._mark} AND state = 'live'"
        self._for_each(change, [(lease,) for lease in leases])

    def expire_leases(self, task: str, now: int) -> int:
        column = t.leases.c
        over = (column.task == task) & (column.state == "live") & (column.deadline <= now)
        return self._connection.execute(sa.update(t.leases).where(over).values(state="expired")).rowcount

    def add_version(self, version: VersionRecord) -> None:
        self._connection.execute(
            sa.insert(t.versions).values({**asdict(version), "staleness": list(version.staleness)})
        )

    def version(self, population: str, version: int) -> VersionRecord | None:
        chosen = (t.versions.c.population == population) & (t.versions.c.version == version)
        row = self._connection.execute(sa.select(t.versions).where(chosen)).one_or_none()
        return None if row is None else _version(row)

    def versions(self, population: str) -> list[VersionRecord]:
        query = sa.select(t.versions).where(t.versions.c.population == population)
        return [_version(row) for row in self._connection.execute(query.order_by(t.versions.c.version.desc()))]

    def announce(self, announcement: AnnouncementRecord) -> None:
        self._put(t.announcements, asdict(announcement), ["population", "track"])

    def announcements(self) -> list[AnnouncementRecord]:
        column = t.announcements.c
        rows = self._connection.execute(sa.select(t.announcements).order_by(column.population, column.track))
        return [AnnouncementRecord(**row._mapping) for row in rows]

    def announcement(self, population: str, track: Track) -> AnnouncementRecord | None:
        column = t.announcements.c
        chosen = (column.population == population) & (column.track == track)
        row = self._connection.execute(sa.select(t.announcements).where(chosen)).one_or_none()
        return None if row is None else AnnouncementRecord(**row._mapping)

    def optimizer(self, population: str) -> OptimizerState | None:
        column = t.optimizers.c
        row = self._connection.execute(sa.select(t.optimizers).where(column.population == population)).one_or_none()
        return None if row is None else _state(row)

    def set_optimizer(self, population: str, state: OptimizerState) -> None:
        self._put(t.optimizers, {"population": population, **_state_values(state)}, ["population"])

    def put_sums(self, sums: PartialSums) -> None:
        self._put(t.partial_sums, asdict(sums), ["population", "version"])

    def sums(self, population: str, version: int) -> PartialSums | None:
        column = t.partial_sums.c
        chosen = (column.population == population) & (column.version == version)
        row = self._connection.execute(sa.select(t.partial_sums).where(chosen)).one_or_none()
        return None if row is None else PartialSums(**row._mapping)

    def drop_sums(self, population: str, version: int) -> None:
        column = t.partial_sums.c
        chosen = (column.population == population) & (column.version == version)
        self._connection.execute(sa.delete(t.partial_sums).where(chosen))

    def drop_old_sums(self, population: str, before: int) -> None:
        column = t.partial_sums.c
        old = (column.population == population) & (column.version > 0) & (column.version < before)
        self._connection.execute(sa.delete(t.partial_sums).where(old))

    def keep_state(self, population: str, version: int, state: OptimizerState) -> None:
        values = {"population": population, "version": version, **_state_values(state)}
        self._put(t.kept_states, values, ["population", "version"])

    def kept_state(self, population: str, version: int) -> OptimizerState | None:
        column = t.kept_states.c
        chosen = (column.population == population) & (column.version == version)
        row = self._connection.execute(sa.select(t.kept_states).where(chosen)).one_or_none()
        return None if row is None else _state(row)

    def kept_versions(self, population: str) -> list[int]:
        column = t.kept_states.c
        query = sa.select(column.version).where(column.population == population).order_by(column.version.desc())
        return [int(version) for version in self._connection.scalars(query)]

    def drop_states(self, population: str, versions: Sequence[int]) -> None:
        column = t.kept_states.c
        for some in in_parts(versions):
            gone = (column.population == population) & column.version.in_(some)
            self._connection.execute(sa.delete(t.kept_states).where(gone))

    def add_release(self, release: ReleaseRecord) -> None:
        values = asdict(release)
        del values["id"]
        self._connection.execute(sa.insert(t.releases).values(values))

    def releases(self, population: str | None) -> list[ReleaseRecord]:
        query = sa.select(t.releases).order_by(t.releases.c.id.desc())
        if population is not None:
            query = query.where(t.releases.c.population == population)
        return [_release(row) for row in self._connection.execute(query)]

    def schedule(self, population: str) -> ScheduleRecord | None:
        row = self._connection.execute(
            sa.select(t.schedules).where(t.schedules.c.population == population)
        ).one_or_none()
        return None if row is None else ScheduleRecord(**row._mapping)

    def set_schedule(self, schedule: ScheduleRecord) -> None:
        self._put(t.schedules, asdict(schedule), ["population"])

    def add_event(self, at: int, kind: str, device: str, text: str) -> None:
        self.add_events([EventRecord(at, kind, device, text)])

    def add_events(self, events: Sequence[EventRecord]) -> None:
        # Whoever can reach the broker can cause events: a counter goes on, the texts are kept for the first ones only.
        kept = []
        for kind, more in Counter(event.kind for event in events).items():
            before = int((self.meta(f"event:{kind}") or b"0").decode())
            self.set_meta(f"event:{kind}", b"%d" % (before + more))
            room = max(0, MAX_EVENTS - before)
            kept += [event for event in events if event.kind == kind][:room]
        if kept:
            rows = [
                {"at": e.at, "kind": e.kind, "device": e.device[:32], "text": printable(e.text)[:400]} for e in kept
            ]
            self._connection.execute(sa.insert(t.events), rows)

    def count_events(self) -> dict[str, int]:
        rows = self._connection.execute(sa.select(t.meta).where(t.meta.c.key.like("event:%")))
        return {row.key.removeprefix("event:"): int(bytes(row.value).decode()) for row in rows}


def _version(row: sa.Row[tuple[object, ...]]) -> VersionRecord:
    values = dict(row._mapping)
    return VersionRecord(**{**values, "staleness": tuple(values["staleness"])})


def _release(row: sa.Row[tuple[object, ...]]) -> ReleaseRecord:
    values = dict(row._mapping)
    return ReleaseRecord(**{**values, "signed_manifest": bytes(values["signed_manifest"] or b"")})


def _state(row: sa.Row[tuple[object, ...]]) -> OptimizerState:
    master, m, v = (np.frombuffer(bytes(blob), dtype="<f4") for blob in (row.master, row.m, row.v))
    return OptimizerState(master, m, v, row.step)


def _state_values(state: OptimizerState) -> dict[str, object]:
    vectors = {name: getattr(state, name).astype("<f4").tobytes() for name in ("master", "m", "v")}
    return {"step": state.step, **vectors}
