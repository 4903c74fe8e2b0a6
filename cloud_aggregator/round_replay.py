"""A training version, made again from what is recorded, bit for bit: an audit that changes nothing.

From the newest version before it whose optimizer state is kept (or from the import, whose state is its own weights),
each step is done again as the service did it. What is compared, in this order, for each version on the way:
- its members: each row is there, was accepted and is used by this version; their hash is the recorded one;
- each member's sealed bytes hash to what the device signed; the same verdict, staleness, weight and norm come out;
- the exact sums hash to the recorded ones;
- the step's file hashes to the version's, and the optimizer's state is the kept one where one is kept.
The first difference ends the replay and is named. Sealed bytes that were deleted by age are no difference: the replay
is refused, unless it may take the recorded sums in their place.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from cloud_aggregator.buffer import Accumulator
from cloud_aggregator.config import PopulationSettings
from cloud_aggregator.errors import NotFound, Refused, StorageFailed
from cloud_aggregator.keys import ServiceKeys
from cloud_aggregator.leases import Lease
from cloud_aggregator.named_basis import read_basis
from cloud_aggregator.named_sets import read_names
from cloud_aggregator.partial_sums import Member, members_hash, sums_hash, unpack_members, unpack_sums
from cloud_aggregator.population import judge, rules_of
from cloud_aggregator.ports import Blobs
from cloud_aggregator.records import PartialSums, PopulationRecord, Records, UpdateRecord, VersionRecord
from cloud_aggregator.server_optimizer import OptimizerState
from cloud_aggregator.training_step import take_step
from wire_contract import envelope
from wire_contract.errors import ContractError
from wire_contract.layout import Layout
from wire_contract.manifest import Manifest, decode_manifest
from wire_contract.patch import read_tensors

# Sealed bytes in memory at a time.
AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Replay:
    """What came of a replay. `differs` is empty if the version came out identical; `updates` were checked one by one,
    `from_sums` lists versions on the way whose recorded sums had to do."""

    population: str
    version: int
    sha256: str
    started_from: int
    steps: int
    updates: int
    from_sums: tuple[int, ...] = ()
    differs: str = ""

    @property
    def identical(self) -> bool:
        """Whether every byte came out as recorded."""
        return not self.differs


class _Differs(Exception):  # noqa: N818 - it ends a replay, and its text is the finding
    """Something does not come out as it is recorded."""


@dataclass(frozen=True, slots=True)
class _Base:
    """A version on the way: its record, file and optimizer state."""

    record: VersionRecord
    file: bytes
    state: OptimizerState


class _Audit:
    """One population's replay: what stays the same over its steps."""

    def __init__(
        self, records: Records, blobs: Blobs, keys: ServiceKeys, population: PopulationRecord, *, sums_may_do: bool
    ) -> None:
        self._records = records
        self._blobs = blobs
        self._keys = keys
        self._population = population
        self._sums_may_do = sums_may_do
        self._settings = msgspec.json.decode(population.settings, type=PopulationSettings)
        self._manifest: Manifest = decode_manifest(
            envelope.verify(population.signed_template, "manifest", population.manifest_key)
        )
        self._layout = Layout.of(self._manifest)
        sets = read_names(records, blobs, population.population)
        self._basis = read_basis(records, blobs, population.population)
        self._rules = rules_of(population, self._settings, self._manifest, self._layout, sets, self._basis)
        versions = records.versions(population.population)
        self._history = sorted((v for v in versions if v.ordinal is not None), key=lambda v: v.ordinal or 0)
        self._ordinals = {v.version: v.ordinal or 0 for v in self._history}
        self.updates = 0
        self.from_sums: list[int] = []

    def run(self, target: VersionRecord) -> Replay:
        """Replay up to `target`, a training version."""
        base = self._start(target)
        started, steps = base.record.version, 0
        result = Replay(self._population.population, target.version, target.sha256, started, 0, 0)
        try:
            for version in self._history:
                if self._ordinals[base.record.version] < (version.ordinal or 0) <= (target.ordinal or 0):
                    base = self._checked_step(base, version)
                    steps += 1
        except _Differs as e:
            result = replace(result, differs=str(e))
        return replace(result, steps=steps, updates=self.updates, from_sums=tuple(self.from_sums))

    def _start(self, target: VersionRecord) -> _Base:
        """Return the newest version before `target` whose file and optimizer state there still are."""
        name = self._population.population
        before = [v for v in reversed(self._history) if (v.ordinal or 0) < max(1, target.ordinal or 0)]
        for version in before:
            state = self._records.kept_state(name, version.version) if version.ordinal else None
            if state is None and version.ordinal:
                continue
            try:
                file = self._blobs.get(version.sha256)
            except NotFound:
                continue
            except StorageFailed as e:
                raise StorageFailed(f"the file of version {version.version}, from which to set out: {e}") from e
            if state is None:
                state = OptimizerState.start(self._layout.flatten(read_tensors(file, self._manifest)))
            return _Base(version, file, state)
        raise Refused(
            f"no version before {target.version} has its file and optimizer state still",
            "later versions can be replayed; see round list",
        )

    def _checked_step(self, base: _Base, version: VersionRecord) -> _Base:
        try:
            return self._step(base, version)
        except (ContractError, ValueError) as e:
            # A row or a blob that cannot even be read is a finding as well.
            raise _Differs(f"version {version.version}: what is recorded cannot be read: {e}") from e

    def _step(self, base: _Base, version: VersionRecord) -> _Base:
        kept = self._records.sums(version.population, version.version)
        if kept is None:
            raise Refused(
                f"the members of version {version.version} are no longer recorded", "later versions can be replayed"
            )
        rows = self._members(version, kept)
        buffer = self._fold(version, kept, rows)
        if sums_hash(buffer.sums) != kept.sums_sha256:
            found = sums_hash(buffer.sums)
            raise _Differs(f"version {version.version}: the sums hash to {found}, {kept.sums_sha256} is recorded")
        # When the updates are gone these are all that is left of the round.
        self._recorded_sums(version, kept)
        step = take_step(
            base.file, base.state, buffer, manifest=self._manifest, layout=self._layout, settings=self._settings,
            basis=self._basis,
        )  # fmt: skip
        sha256 = hashlib.sha256(step.file).hexdigest()
        if sha256 != version.sha256:
            raise _Differs(f"version {version.version}: its file hashes to {sha256}, {version.sha256} is recorded")
        state = self._records.kept_state(version.population, version.version)
        if state is not None:
            for name in ("step", "master", "m", "v"):
                if _bytes_of(getattr(state, name)) != _bytes_of(getattr(step.optimizer, name)):
                    raise _Differs(f"version {version.version}: the optimizer's {name} is not the one that is kept")
        return _Base(version, step.file, step.optimizer)

    def _members(self, version: VersionRecord, kept: PartialSums) -> list[UpdateRecord]:
        number = version.version
        try:
            ids = unpack_members(kept)
        except StorageFailed as e:
            raise _Differs(f"version {number}: the record of its members is damaged: {e}") from e
        if len(ids) != version.updates:
            raise _Differs(f"version {number}: {version.updates} updates are recorded, its members are {len(ids)}")
        found = self._records.updates_by_id(ids)
        for row_id in ids:
            row = found.get(row_id)
            if row is None:
                raise _Differs(f"version {number}: the row {row_id} of one of its updates is missing")
            if row.verdict != "accepted" or row.used_by != number:
                raise _Differs(
                    f"version {number}: update {row.update_id} is recorded as {row.verdict} and used by {row.used_by}"
                )
        rows = [found[row_id] for row_id in ids]
        others = len(self._records.updates_of_version(self._population.task, number)) - len(rows)
        if others:
            raise _Differs(f"version {number}: {others} more updates say that it used them")
        hashed = members_hash(Member(row.id, row.sha256, row.weight) for row in rows)
        if hashed != kept.members_sha256:
            raise _Differs(f"version {number}: its members hash to {hashed}, {kept.members_sha256} is recorded")
        return rows

    def _fold(self, version: VersionRecord, kept: PartialSums, rows: list[UpdateRecord]) -> Accumulator:
        buffer = Accumulator.empty(self._layout.size)
        leases = self._records.leases_of({row.lease or "" for row in rows})
        missing = 0
        for start in range(0, len(rows), AT_ONCE):
            part = rows[start : start + AT_ONCE]
            sealed = self._records.sealed_of([row.id for row in part])
            missing += len(part) - len(sealed)
            for row in part:
                if row.id in sealed:
                    self._fold_one(version, row, sealed[row.id], leases, buffer)
        if not missing:
            return buffer
        if not self._sums_may_do:
            raise Refused(
                f"the sealed bytes of {missing} of {len(rows)} updates of version {version.version} were deleted by "
                f"age: only its partial sums are left",
                "replay it from the sums with --from-sums; see keep_updates_days and keep_updates_refreshes",
            )
        self.from_sums.append(version.version)
        return self._recorded_sums(version, kept)

    def _recorded_sums(self, version: VersionRecord, kept: PartialSums) -> Accumulator:
        try:
            return Accumulator(unpack_sums(kept, self._layout.size), kept.count)
        except StorageFailed as e:
            raise _Differs(f"version {version.version}: the record of its sums is damaged: {e}") from e

    def _fold_one(
        self, version: VersionRecord, row: UpdateRecord, sealed: bytes, leases: Mapping[str, Lease], buffer: Accumulator
    ) -> None:
        where = f"version {version.version}, update {row.update_id}"
        hashed = hashlib.sha256(sealed).hexdigest()
        if hashed != row.sha256:
            raise _Differs(f"{where}: its sealed bytes hash to {hashed}, {row.sha256} is recorded")
        verdict, vector = judge(
            row, sealed, leases.get(row.lease or ""), self._rules, self._staleness_before(version), self._keys,
            row.judged_at or 0,
        )  # fmt: skip
        if vector is None:
            raise _Differs(f"{where}: accepted is recorded, the verdict is {verdict.name} ({verdict.reason})")
        again = (verdict.staleness, verdict.weight, vector.norm())
        recorded = (row.staleness, row.weight, row.norm)
        for name, one, other in zip(("staleness", "weight", "norm"), again, recorded, strict=True):
            if one != other:
                raise _Differs(f"{where}: its {name} is {one!r}, {other!r} is recorded")
        buffer.fold(vector, verdict.weight)
        self.updates += 1

    def _staleness_before(self, version: VersionRecord) -> Callable[[int], int | None]:
        """Staleness as it was while the round of `version` was open: the training version was the one before it."""
        current = (version.ordinal or 0) - 1

        def staleness_of(base_version: int) -> int | None:
            ordinal = self._ordinals.get(base_version)
            return None if ordinal is None else current - ordinal

        return staleness_of


def replay(
    records: Records,
    blobs: Blobs,
    keys: ServiceKeys,
    population: PopulationRecord,
    version: int,
    *,
    sums_may_do: bool = False,
) -> Replay:
    """Make `version` again from what is recorded and say whether it came out identical; writes nothing.

    Raises `NotFound` (no such version), `Refused` (what it was made of was deleted by age), `StorageFailed`.
    """
    target = records.version(population.population, version)
    if target is None:
        raise NotFound(f"population {population.population} has no version {version}")
    if target.ordinal is None:
        # An undo has an earlier version's weights under a number of its own.
        source = records.version(population.population, target.weights_of or 0)
        if source is None:
            raise NotFound(f"version {version} has the weights of {target.weights_of}, which is not recorded")
        if source.version >= version:
            found = f"version {version}: it has the weights of version {source.version}, which came later"
            return Replay(population.population, version, target.sha256, source.version, 0, 0, differs=found)
        if source.sha256 != target.sha256:
            found = f"version {version}: its file is {target.sha256}, version {source.version}'s is {source.sha256}"
            return Replay(population.population, version, target.sha256, source.version, 0, 0, differs=found)
        again = replay(records, blobs, keys, population, source.version, sums_may_do=sums_may_do)
        return replace(again, version=version, sha256=target.sha256)
    try:
        return _Audit(records, blobs, keys, population, sums_may_do=sums_may_do).run(target)
    except (ContractError, ValueError, msgspec.DecodeError) as e:
        # The steps name what they cannot read; this is the population's own row, or the state to set out from.
        found = f"what is recorded of population {population.population} cannot be read: {e}"
        return Replay(population.population, version, target.sha256, 0, 0, 0, differs=found)


def find_version(records: Records, population: PopulationRecord, name: str) -> int:
    """Return the version that an operator names by its number (`13`, `v-0013`) or its round (`r-0012`)."""
    kind, _, digits = name.rpartition("-")
    if not digits.isdecimal() or kind not in ("", "v", "r") or len(digits) > 10:
        raise NotFound(f"a version is named like 13 or v-0013, or by its round like r-0012, got {name[:80]!r}")
    if kind != "r":
        return int(digits)
    for version in records.versions(population.population):
        if version.ordinal == int(digits):
            return version.version
    raise NotFound(f"population {population.population} has no closed round {name[:80]!r}")


def _bytes_of(value: Any) -> bytes:
    return value.tobytes() if hasattr(value, "tobytes") else str(value).encode()
