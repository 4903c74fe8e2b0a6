"""One population in memory: what its next step is made of. Everything here is rebuilt from committed rows.

`Population` holds the registry, the buffer, the optimizer's state and the file that the next version is patched into.
`admit_one` gives an update its verdict and folds it; `close_round` makes the buffer the next training version;
`checkpoint` keeps the buffer's sums, so that `load` folds only what came after it. All work inside one transaction of
the service; if that fails, the value in memory is thrown away and loaded again.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from cloud_aggregator import registry as registries
from cloud_aggregator import trust
from cloud_aggregator.admission import Arrived, Decode, Rules, Verdict, admit, read_vector
from cloud_aggregator.buffer import Accumulator
from cloud_aggregator.bundle import Bundle, check_plan
from cloud_aggregator.config import PopulationSettings, check_population
from cloud_aggregator.errors import Refused, StorageFailed
from cloud_aggregator.keys import ServiceKeys
from cloud_aggregator.leases import Lease
from cloud_aggregator.lineages import step_lineage
from cloud_aggregator.named_basis import name_basis, read_basis
from cloud_aggregator.named_sets import NamedSets, name_first, read_names
from cloud_aggregator.partial_sums import Member, members_hash, pack, unpack_members, unpack_sums
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
from cloud_aggregator.training_step import take_step
from wire_contract import codec, envelope
from wire_contract.basis import Basis
from wire_contract.codec import SparseVector
from wire_contract.layout import Layout
from wire_contract.lineage import Lineage
from wire_contract.manifest import GoldenVector, Manifest, decode_manifest, encode_manifest
from wire_contract.messages import Plan, UpdateHeader, decode_message
from wire_contract.norm import l2_norm
from wire_contract.topics import Track

# The key of the sums of a round that has not closed.
OPEN_ROUND: Final = 0
# The optimizer's state is three float32 vectors (17 MB for 1.42 M values): a replay sets out from one of every sixteen.
KEEP_STATE_EVERY: Final = 16


class _Stated(msgspec.Struct):
    examples: int


# Of a header that was checked before: one of its fields at a fraction of the cost.
_STATED: Final = msgspec.msgpack.Decoder(_Stated)


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
    buffer: Accumulator
    waiting: list[Member]
    staleness: list[int]
    opened_at: int
    index_sets: NamedSets
    basis: Basis | None = None
    decode: Decode = codec.decode
    folded_since_checkpoint: int = 0
    # As the devices of the updates that wait stated them.
    examples: int = 0

    @property
    def name(self) -> str:
        return self.record.population

    @property
    def plan(self) -> Plan:
        """The plan that offers carry: the operator's, with the index set that is named now, and the basis."""
        return plan_of(self.settings, self.index_sets, self.basis)

    @property
    def rules(self) -> Rules:
        rules = rules_of(self.record, self.settings, self.manifest, self.layout, self.index_sets, self.basis)
        return replace(rules, decode=self.decode)

    def staleness_of(self, base_version: int) -> int | None:
        """Return how many steps the training version is ahead of `base_version`; None if that was none."""
        ordinal = self.ordinals.get(base_version)
        return None if ordinal is None else (self.registry.training.ordinal or 0) - ordinal


def plan_of(settings: PopulationSettings, index_sets: NamedSets, basis: Basis | None) -> Plan:
    """Return the operator's plan with the index set that is named now, and the population's basis."""
    plan = settings.plan
    named = msgspec.structs.replace(
        plan.codec, index_set=index_sets.current, basis="" if basis is None else basis.sha256
    )
    return msgspec.structs.replace(plan, codec=named)


def rules_of(
    record: PopulationRecord, settings: PopulationSettings, manifest: Manifest, layout: Layout, index_sets: NamedSets,
    basis: Basis | None,
) -> Rules:  # fmt: skip
    """Return what a population's updates are measured by."""
    return Rules(
        population=record.population,
        task=record.task,
        layout_fingerprint=manifest.layout_fingerprint,
        size=layout.size,
        plan=plan_of(settings, index_sets, basis),
        lease_grace_s=settings.lease_grace_seconds,
        maximum_age_s=settings.maximum_age_seconds,
        index_set=index_sets.find,
    )


def found(
    records: Records, blobs: Blobs, keys: ServiceKeys, bundle: Bundle, settings: PopulationSettings, now: int
) -> PopulationRecord:
    """Store a checked bundle as a new population: its version becomes training version and refresh at once.

    Raises `InvalidSetting` for settings that break a rule, `Refused` if the population exists already, the model
    cannot have the basis that the settings want, or there is a signed repository that does not name the template.
    """
    check_population(settings)
    manifest = bundle.manifest
    check_plan(settings.plan, manifest)
    trust.check_template(records, manifest.population, manifest.template_sha256, bundle.signed_manifest)
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
    if bundle.vocabulary:
        blobs.put(bundle.vocabulary)
    name_first(records, blobs, manifest, settings)
    name_basis(records, blobs, bundle, settings)
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
        announced = make_announcement(manifest, keys, track, version, now, settings.manifest_days)
        records.announce(announced)
    trust.publish_refresh(records, keys, record, announced.signed_manifest, now)
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
            signed_manifest=announced.signed_manifest,
        )
    )
    return record


def load(
    records: Records, blobs: Blobs, record: PopulationRecord, keys: ServiceKeys, decode: Decode = codec.decode
) -> Population:
    """Return the population as its committed rows say: the buffer is the accepted updates that no step used.

    `decode` is how this machine reads updates, see `admission.Rules`.
    """
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
        buffer=Accumulator.empty(layout.size),
        waiting=[],
        staleness=[0] * (MAXIMUM + 1),
        opened_at=0,
        index_sets=read_names(records, blobs, record.population),
        basis=read_basis(records, blobs, record.population),
        decode=decode,
    )
    _load_buffer(population, records, keys)
    return population


def _load_buffer(population: Population, records: Records, keys: ServiceKeys) -> None:
    """Take the checkpoint's sums, and fold the accepted updates that came after it."""
    rows = records.accepted_unused(population.record.task)
    summed = _checkpointed(population, records, rows)
    later = [row for row in rows if row.id not in summed]
    for row in rows:
        if row.id in summed:
            _count(population, row, row.weight, row.staleness or 0, row.judged_at or 0)
    for row in later:
        # One at a time: a round may be larger than the memory.
        _fold(population, row, _vector_of(population, records, row, keys), row.weight, row.staleness or 0,
              row.judged_at or 0)  # fmt: skip
    population.folded_since_checkpoint = len(later)


def _checkpointed(population: Population, records: Records, rows: list[UpdateRecord]) -> set[int]:
    """Set the buffer to the checkpoint's sums and return the ids in it: none if there is no checkpoint to believe."""
    kept = records.sums(population.name, OPEN_ROUND)
    if kept is None:
        return set()
    try:
        ids = set(unpack_members(kept))
        if members_hash(_member(row) for row in rows if row.id in ids) != kept.members_sha256:
            raise StorageFailed("its members are not the accepted updates that no step has used")
        population.buffer = Accumulator(unpack_sums(kept, population.layout.size), kept.count)
    except StorageFailed as e:
        # The updates themselves are all there: the sums can be worked out again, and are.
        told = f"the checkpoint of {population.name} is not used, its round is summed anew: {e}"
        records.add_event(max((row.judged_at or 0 for row in rows), default=0), "damaged checkpoint", "", told)
        return set()
    return ids


def _vector_of(population: Population, records: Records, row: UpdateRecord, keys: ServiceKeys) -> SparseVector:
    header = decode_message(row.header, UpdateHeader)
    plain = envelope.unseal(
        records.sealed_bytes(row.id), header=row.header, ephemeral_key=header.ephemeral_key, recipient=keys.sealing
    )
    return read_vector(plain, population.rules)


def _member(row: UpdateRecord, weight: float | None = None) -> Member:
    return Member(row.id, row.sha256, row.weight if weight is None else weight)


def _fold(
    population: Population, row: UpdateRecord, vector: SparseVector, weight: float, staleness: int, now: int
) -> None:
    population.buffer.fold(vector, weight)
    _count(population, row, weight, staleness, now)
    population.folded_since_checkpoint += 1


def _count(population: Population, row: UpdateRecord, weight: float, staleness: int, now: int) -> None:
    population.opened_at = min(population.opened_at, now) if population.waiting else now
    population.waiting.append(_member(row, weight))
    population.staleness[staleness] += 1
    population.examples += _STATED.decode(row.header).examples


def checkpoint(population: Population, records: Records, every: int = 1) -> bool:
    """Keep the open round's sums if at least `every` updates were folded since that was last done.

    Call it in the transaction that stores their verdicts.
    """
    if population.folded_since_checkpoint < every:
        return False
    records.put_sums(pack(population.name, OPEN_ROUND, population.waiting, population.buffer.sums))
    population.folded_since_checkpoint = 0
    return True


def admit_one(
    population: Population, records: Records, row: UpdateRecord, sealed: bytes, lease: Lease | None, keys: ServiceKeys,
    now: int,
) -> UpdateRecord:  # fmt: skip
    """Give a received update its verdict and fold it if that is `accepted`; return the row to store.

    An update that no rule foresaw is `malformed`, with an event: it must not stop every later one, at each restart.
    """
    norm = 0.0
    try:
        verdict, vector = judge(row, sealed, lease, population.rules, population.staleness_of, keys, now)
        if vector is not None:
            norm = vector.norm()
            _fold(population, row, vector, verdict.weight, verdict.staleness or 0, now)
    except (MemoryError, StorageFailed):
        # Says something of this machine, not of the update.
        raise
    except Exception as e:  # noqa: BLE001 - see above
        verdict = Verdict("malformed", f"it could not be admitted: {type(e).__name__}: {e}"[:300])
        records.add_event(now, "admission failed", row.device, f"update {row.update_id}: {type(e).__name__}: {e}")
    return _judged(row, verdict, norm if verdict.name == "accepted" else 0.0, now)


def judge(
    row: UpdateRecord, sealed: bytes, lease: Lease | None, rules: Rules, staleness_of: Callable[[int], int | None],
    keys: ServiceKeys, now: int,
) -> tuple[Verdict, SparseVector | None]:  # fmt: skip
    """Return the verdict on a stored update, and its vector if that is `accepted`. A replay asks the same again.

    `staleness_of` gives the steps since a base version, None for one that was none.
    """
    header = decode_message(row.header, UpdateHeader)
    if lease is not None and (lease.task, lease.device) != (rules.task, row.device):
        lease = None
    arrived = Arrived(row.header, header, sealed, lease, staleness_of(header.base_version))
    return admit(arrived, rules, keys.sealing, now)


def refuse_orphan(row: UpdateRecord, now: int) -> UpdateRecord:
    """Refuse an update whose device was revoked, or whose population went, after it came in; return the row."""
    return _judged(
        row, Verdict("unknown_device", f"device {row.device} is revoked, or its population is gone"), 0.0, now
    )


def _judged(row: UpdateRecord, verdict: Verdict, norm: float, now: int) -> UpdateRecord:
    return replace(
        row,
        state="judged",
        verdict=verdict.name,
        reason=verdict.reason[:400],
        staleness=verdict.staleness,
        weight=verdict.weight,
        norm=norm,
        judged_at=now,
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
    step = take_step(
        population.file,
        population.optimizer,
        population.buffer,
        manifest=population.manifest,
        layout=population.layout,
        settings=settings,
        basis=population.basis,
    )
    delta, optimizer, file = step.delta, step.optimizer, step.file
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
        delta_norm=l2_norm(delta),
        examples=population.examples,
    )
    records.add_version(version)
    records.set_optimizer(population.name, optimizer)
    records.mark_used([member.id for member in population.waiting], version.version)
    sums = pack(population.name, version.version, population.waiting, population.buffer.sums)
    records.put_sums(sums)
    records.drop_sums(population.name, OPEN_ROUND)
    if (version.ordinal or 0) % KEEP_STATE_EVERY == 0:
        records.keep_state(population.name, version.version, optimizer)
    made_of = step_lineage(population.registry.training, version.updates, version.examples, sums.members_sha256)
    announce(population, records, keys, "training", registry.training, now, lineage=made_of)
    population.registry, population.optimizer, population.file = registry, optimizer, file
    population.ordinals[version.version] = registry.training.ordinal or 0
    population.buffer, population.waiting = Accumulator.empty(population.layout.size), []
    population.staleness, population.opened_at = [0] * (MAXIMUM + 1), 0
    population.folded_since_checkpoint = population.examples = 0
    return version


def announce(
    population: Population,
    records: Records,
    keys: ServiceKeys,
    track: Track,
    version: Registered,
    now: int,
    undo_of: int = 0,
    *,
    lineage: Lineage | None,
    golden_vectors: tuple[GoldenVector, ...] = (),
) -> AnnouncementRecord:
    """Sign the manifest of `version` for a track and store it as what the track announces.

    A refresh is named by the signed repository too, where there is one. Raises `Refused` if that must not be.
    """
    record = make_announcement(
        population.manifest, keys, track, version, now, population.settings.manifest_days, undo_of=undo_of,
        lineage=lineage, golden_vectors=golden_vectors,
    )  # fmt: skip
    if track == "refresh":
        trust.publish_refresh(records, keys, population.record, record.signed_manifest, now)
    records.announce(record)
    return record


def make_announcement(
    manifest: Manifest, keys: ServiceKeys, track: Track, version: Registered, now: int, days: int, undo_of: int = 0,
    *, lineage: Lineage | None = None, golden_vectors: tuple[GoldenVector, ...] = (),
) -> AnnouncementRecord:  # fmt: skip
    """Return a track's announcement: the exporter's manifest with this version's number, hash, kind, URLs and dates.

    Lineage and golden vectors are of one version's weights: the exporter's go with its own version alone.
    """
    if (version.version, version.sha256) == (manifest.version, manifest.sha256):
        lineage, golden_vectors = manifest.lineage, manifest.golden_vectors
    body = msgspec.structs.replace(
        manifest,
        version=version.version,
        kind=track,
        sha256=version.sha256,
        created_at=now,
        expires_at=now + days * 86_400,
        url=f"/v1/models/{version.sha256}",
        vocabulary_url=f"/v1/vocabularies/{manifest.vocabulary_sha256}" if manifest.vocabulary_sha256 else "",
        undo_of=undo_of,
        lineage=lineage,
        golden_vectors=golden_vectors,
    )
    signed = envelope.sign(keys.signing, "manifest", encode_manifest(body))
    return AnnouncementRecord(manifest.population, track, version.version, version.sha256, signed, now)


def task_of(population: str) -> str:
    """Return the id of a population's training task."""
    return hashlib.sha256(b"edge-federation task v1\n" + population.encode() + b"\ntrain").hexdigest()[:16]
