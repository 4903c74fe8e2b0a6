"""One population in memory: what its next step is made of. Everything here is rebuilt from committed rows.

`Population` holds the registry, the buffer, the optimizer's state and the file that the next version is patched into.
`admit_one` gives an update its verdict and folds it; `close_round` makes the buffer the next training version. Both
work inside one transaction of the service; if that fails, the value in memory is thrown away and loaded again.
"""

import hashlib
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from cloud_aggregator import buffer as buffers
from cloud_aggregator import registry as registries
from cloud_aggregator import server_optimizer
from cloud_aggregator.admission import Arrived, Rules, Verdict, admit
from cloud_aggregator.buffer import Buffer
from cloud_aggregator.bundle import Bundle, check_plan
from cloud_aggregator.config import PopulationSettings, check_population
from cloud_aggregator.errors import Refused, StorageFailed
from cloud_aggregator.keys import ServiceKeys
from cloud_aggregator.ports import Blobs
from cloud_aggregator.records import (
    AnnouncementRecord,
    PopulationRecord,
    Records,
    ReleaseRecord,
    UpdateRecord,
    VersionRecord,
)
from cloud_aggregator.registry import Registered, Registry
from cloud_aggregator.release_schedule import first_schedule
from cloud_aggregator.rounds import RoundRules, close_cause
from cloud_aggregator.server_optimizer import OptimizerState
from cloud_aggregator.staleness import MAXIMUM
from wire_contract import codec, envelope
from wire_contract.codec import SparseVector
from wire_contract.layout import Layout
from wire_contract.manifest import Manifest, decode_manifest, encode_manifest
from wire_contract.messages import UpdateHeader, decode_message
from wire_contract.patch import patch
from wire_contract.topics import Track


@dataclass(slots=True)
class Population:
    """The one mutable value of the aggregator; only the service's pass touches it."""

    record: PopulationRecord
    settings: PopulationSettings
    manifest: Manifest
    layout: Layout
    registry: Registry
    ordinals: dict[int, int]
    optimizer: OptimizerState
    file: bytes
    buffer: Buffer
    waiting: list[int]
    staleness: list[int]
    opened_at: int

    @property
    def name(self) -> str:
        return self.record.population

    @property
    def rules(self) -> Rules:
        return Rules(
            population=self.record.population,
            task=self.record.task,
            layout_fingerprint=self.manifest.layout_fingerprint,
            size=self.layout.size,
            plan=self.settings.plan,
            lease_grace_s=self.settings.lease_grace_seconds,
            maximum_age_s=self.settings.maximum_age_seconds,
        )

    def staleness_of(self, base_version: int) -> int | None:
        """Return how many steps the training version is ahead of `base_version`; None if that was none."""
        ordinal = self.ordinals.get(base_version)
        return None if ordinal is None else (self.registry.training.ordinal or 0) - ordinal


def found(
    records: Records, blobs: Blobs, keys: ServiceKeys, bundle: Bundle, settings: PopulationSettings, now: int
) -> PopulationRecord:
    """Store a checked bundle as a new population: its version becomes training version and refresh at once.

    Raises `InvalidSetting` for settings that break a rule, `Refused` if the population exists already.
    """
    check_population(settings)
    manifest = bundle.manifest
    check_plan(settings.plan, manifest)
    record = PopulationRecord(
        population=manifest.population,
        settings=msgspec.json.encode(settings),
        manifest_key=bundle.manifest_key,
        template_sha256=manifest.template_sha256,
        signed_template=bundle.signed_manifest,
        task=task_of(manifest.population),
        created_at=now,
    )
    if not records.add_population(record):
        raise Refused(f"population {manifest.population} exists already", "a model family has one population")
    blobs.put(bundle.model)
    blobs.put(bundle.vocabulary)
    version = Registered(manifest.version, manifest.sha256, 0)
    records.add_version(
        VersionRecord(
            population=manifest.population,
            version=manifest.version,
            sha256=manifest.sha256,
            ordinal=0,
            made_at=now,
            opened_at=now,
            cause="import",
            updates=0,
            staleness=(),
            delta_norm=0.0,
        )
    )
    tracks: tuple[Track, ...] = ("training", "refresh")
    for track in tracks:
        records.announce(make_announcement(manifest, keys, track, version, now, settings.manifest_days))
    records.set_optimizer(manifest.population, OptimizerState.start(bundle.weights))
    records.set_schedule(first_schedule(manifest.population, settings.release, now))
    records.add_release(
        ReleaseRecord(
            id=0,
            population=manifest.population,
            version=manifest.version,
            previous=0,
            sha256=manifest.sha256,
            outcome="released",
            cause="import",
            reason="the bundle's version",
            at=now,
        )
    )
    return record


def load(records: Records, blobs: Blobs, record: PopulationRecord, keys: ServiceKeys) -> Population:
    """Return the population as its committed rows say: the buffer is the accepted updates that no step used."""
    settings = msgspec.json.decode(record.settings, type=PopulationSettings)
    manifest = decode_manifest(envelope.verify(record.signed_template, "manifest", record.manifest_key))
    layout = Layout.of(manifest)
    versions = records.versions(record.population)
    steps = [version for version in versions if version.ordinal is not None]
    refresh = records.announcement(record.population, "refresh")
    optimizer = records.optimizer(record.population)
    if not steps or refresh is None or optimizer is None:
        raise StorageFailed(f"population {record.population} has no version, refresh or optimizer state")
    current = steps[0]
    ordinal = next((v.ordinal for v in versions if v.version == refresh.version), None)
    population = Population(
        record=record,
        settings=settings,
        manifest=manifest,
        layout=layout,
        registry=Registry(
            training=Registered(current.version, current.sha256, current.ordinal),
            refresh=Registered(refresh.version, refresh.sha256, ordinal),
            highest=versions[0].version,
        ),
        ordinals={v.version: v.ordinal for v in steps if v.ordinal is not None},
        optimizer=optimizer,
        file=blobs.get(current.sha256),
        buffer=Buffer.empty(layout.size),
        waiting=[],
        staleness=[0] * (MAXIMUM + 1),
        opened_at=0,
    )
    for row in records.accepted_unused(record.task):
        header = decode_message(row.header, UpdateHeader)
        plain = envelope.unseal(
            records.sealed_bytes(row.update_id),
            header=row.header,
            ephemeral_key=header.ephemeral_key,
            recipient=keys.sealing,
        )
        _fold(
            population, row, codec.decode(plain, size=layout.size), row.weight, row.staleness or 0, row.judged_at or 0
        )
    return population


def _fold(
    population: Population, row: UpdateRecord, vector: SparseVector, weight: float, staleness: int, now: int
) -> None:
    folded = buffers.fold(population.buffer, vector, weight)
    if not population.waiting:
        population.opened_at = now
    population.buffer = folded
    population.waiting.append(row.id)
    population.staleness[staleness] += 1


def admit_one(population: Population, records: Records, row: UpdateRecord, keys: ServiceKeys, now: int) -> Verdict:
    """Give a received update its verdict, store it, and fold the update if it is accepted.

    An update that no rule foresaw is `malformed`, with an event: it must not stop every later one, at each restart.
    """
    sealed = records.sealed_bytes(row.update_id)
    lease = records.lease(population.record.task, row.device, row.lease or "")
    norm = 0.0
    try:
        header = decode_message(row.header, UpdateHeader)
        arrived = Arrived(row.header, header, sealed, lease, population.staleness_of(header.base_version))
        verdict, vector = admit(arrived, population.rules, keys.sealing, now)
        if vector is not None:
            norm = vector.norm()
            _fold(population, row, vector, verdict.weight, verdict.staleness or 0, now)
    except MemoryError:
        # Says something of this machine, not of the update.
        raise
    except Exception as e:  # noqa: BLE001 - see above
        verdict = Verdict("malformed", f"it could not be admitted: {type(e).__name__}: {e}"[:300])
        records.add_event(now, "admission failed", row.device, f"update {row.update_id}: {type(e).__name__}: {e}")
    _store_verdict(records, row, verdict, norm if verdict.name == "accepted" else 0.0, now)
    return verdict


def refuse_orphan(records: Records, row: UpdateRecord, now: int) -> Verdict:
    """Refuse an update whose device was revoked, or whose population went, after it came in."""
    verdict = Verdict("unknown_device", f"device {row.device} is revoked, or its population is gone")
    _store_verdict(records, row, verdict, 0.0, now)
    return verdict


def _store_verdict(records: Records, row: UpdateRecord, verdict: Verdict, norm: float, now: int) -> None:
    if verdict.name != "accepted":
        records.drop_chunks(row.update_id)
    records.set_verdict(
        replace(
            row,
            state="judged",
            verdict=verdict.name,
            reason=verdict.reason[:400],
            staleness=verdict.staleness,
            weight=verdict.weight,
            norm=norm,
            judged_at=now,
        )
    )


def close_round(
    population: Population, records: Records, blobs: Blobs, keys: ServiceKeys, now: int
) -> VersionRecord | None:
    """Make the next training version if the round closes now, and return it.

    The new file is durable before the rows that name it are committed.
    """
    settings = population.settings
    rules = RoundRules(settings.goal_count, settings.minimum_updates, settings.report_deadline_seconds)
    cause = close_cause(rules, updates=population.buffer.count, opened_at=population.opened_at, now=now)
    if cause is None:
        return None
    delta = buffers.close(population.buffer, settings.goal_count)
    optimizer = server_optimizer.step(population.optimizer, delta, settings.optimizer)
    file = patch(population.file, population.manifest, population.layout.unflatten(optimizer.master))
    sha256 = blobs.put(file)
    registry = registries.advance(population.registry, sha256)
    version = VersionRecord(
        population=population.name,
        version=registry.training.version,
        sha256=sha256,
        ordinal=registry.training.ordinal,
        made_at=now,
        opened_at=population.opened_at,
        cause=cause,
        updates=population.buffer.count,
        staleness=tuple(population.staleness),
        delta_norm=float(np.sqrt(np.dot(delta.astype(np.float64), delta.astype(np.float64)))),
    )
    records.add_version(version)
    records.set_optimizer(population.name, optimizer)
    records.mark_used(population.waiting, version.version)
    announce(population, records, keys, "training", registry.training, now)
    population.registry, population.optimizer, population.file = registry, optimizer, file
    population.ordinals[version.version] = registry.training.ordinal or 0
    population.buffer, population.waiting = Buffer.empty(population.layout.size), []
    population.staleness, population.opened_at = [0] * (MAXIMUM + 1), 0
    return version


def announce(
    population: Population,
    records: Records,
    keys: ServiceKeys,
    track: Track,
    version: Registered,
    now: int,
    undo_of: int = 0,
) -> AnnouncementRecord:
    """Sign the manifest of `version` for a track and store it as what the track announces."""
    record = make_announcement(
        population.manifest, keys, track, version, now, population.settings.manifest_days, undo_of=undo_of
    )
    records.announce(record)
    return record


def make_announcement(
    manifest: Manifest, keys: ServiceKeys, track: Track, version: Registered, now: int, days: int, undo_of: int = 0
) -> AnnouncementRecord:
    """Return a track's announcement: the exporter's manifest with this version's number, hash, kind, URLs and dates."""
    body = msgspec.structs.replace(
        manifest,
        version=version.version,
        kind=track,
        sha256=version.sha256,
        created_at=now,
        expires_at=now + days * 86_400,
        url=f"/v1/models/{version.sha256}",
        vocabulary_url=f"/v1/vocabularies/{manifest.vocabulary_sha256}",
        undo_of=undo_of,
    )
    signed = envelope.sign(keys.signing, "manifest", encode_manifest(body))
    return AnnouncementRecord(manifest.population, track, version.version, version.sha256, signed, now)


def task_of(population: str) -> str:
    """Return the id of a population's training task."""
    return hashlib.sha256(b"edge-federation task v1\n" + population.encode() + b"\ntrain").hexdigest()[:16]
