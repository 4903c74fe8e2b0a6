"""The index sets that a population's plans have named: files among the blobs, their hashes in one row of `meta`.

The rules:
- the newest is the plan's; a population whose plan is not `shared` has none;
- a set is made at the import and again at each release, from files that are published (`index_sets`); leases that are
  out keep their own plan's set, so an update is decoded with the set that it names, whichever of these it is;
- none is ever deleted: a replay needs them (some 20 kB a release).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from cloud_aggregator import index_sets
from cloud_aggregator.config import PopulationSettings
from cloud_aggregator.errors import InvalidSetting, NotFound, StorageFailed
from cloud_aggregator.ports import Blobs
from cloud_aggregator.records import Records, VersionRecord
from wire_contract import codec
from wire_contract.errors import Malformed
from wire_contract.index_set import IndexSet, decode_index_set, encode_index_set, set_id
from wire_contract.layout import Layout, Vector
from wire_contract.manifest import Manifest
from wire_contract.messages import MAX_UPDATE_BYTES
from wire_contract.patch import read_tensors

# An update's own header and its seal.
UPDATE_SLACK_BYTES: Final = 1024


@dataclass(frozen=True, slots=True)
class NamedSets:
    """SHA-256 of the sets, oldest first. `find` reads a set's file once."""

    blobs: Blobs
    names: tuple[str, ...] = ()
    _read: dict[str, IndexSet] = field(default_factory=dict, compare=False)

    @property
    def current(self) -> str:
        """The set that the plan names; empty for none."""
        return self.names[-1] if self.names else ""

    def find(self, wanted: bytes) -> IndexSet | None:
        """Return the set of these first 8 bytes of a hash, or None. Raises `StorageFailed` if its file is damaged."""
        name = next((each for each in reversed(self.names) if set_id(each) == wanted), None)
        if name is None:
            return None
        if name not in self._read:
            try:
                self._read[name] = decode_index_set(self.blobs.get(name))
            except NotFound as e:
                raise StorageFailed(f"the index set {name} is gone: {e}") from e
        return self._read[name]


def names_of(records: Records, population: str) -> tuple[str, ...]:
    """Return the SHA-256 of a population's sets, oldest first."""
    row = records.meta(_key(population))
    return tuple(json.loads(row)) if row else ()


def read_names(records: Records, blobs: Blobs, population: str) -> NamedSets:
    """Return a population's sets as the committed row says. Raises `StorageFailed` if the newest's file is damaged.

    Rather now than when updates come, which would be refused for it.
    """
    named = NamedSets(blobs, names_of(records, population))
    if named.names:
        named.find(set_id(named.current))
    return named


def _key(population: str) -> str:
    return f"index sets of {population}"


def name_first(records: Records, blobs: Blobs, manifest: Manifest, settings: PopulationSettings) -> None:
    """Name the set of a new population, if its plan is `shared`.

    Raises `InvalidSetting` where the plan keeps more values than a set or an update can hold.
    """
    plan = settings.plan.codec
    if plan.mode != "shared":
        return
    layout = Layout.of(manifest)
    count = codec.kept_count(plan, layout.size)
    size_bytes = codec.ring_of(plan).size_bytes(count)
    if size_bytes > MAX_UPDATE_BYTES - UPDATE_SLACK_BYTES:
        raise InvalidSetting(f"plan.codec.kept: {count} values take {size_bytes} bytes, more than an update may have")
    indices = index_sets.choose_first(
        layout,
        words=manifest.vocabulary_words,
        count=count,
        seed=index_sets.seed_of(manifest.population, manifest.version),
    )
    try:
        data = encode_index_set(layout.size, indices)
    except Malformed as e:
        raise InvalidSetting(f"plan.codec.kept: {e}") from e
    _add(records, blobs, manifest.population, data)


def renew(records: Records, blobs: Blobs, manifest: Manifest, settings: PopulationSettings, version: int) -> NamedSets:
    """Name a set made of what the steps have moved, and return all; `version` is the one just released.

    With fewer than two versions there is nothing to see yet, and the set stays.
    """
    population = manifest.population
    known = read_names(records, blobs, population)
    steps = [each for each in records.versions(population) if each.ordinal is not None]
    steps = steps[: settings.index_set.versions + 1]
    if settings.plan.codec.mode != "shared" or len(steps) < 2:
        return known
    layout = Layout.of(manifest)
    count = codec.kept_count(settings.plan.codec, layout.size)
    share, seed = settings.index_set.explore_share, index_sets.seed_of(population, version)
    state = records.optimizer(population)
    if state is not None and state.v.any():
        indices = index_sets.choose_scored(state.v, count=count, explore_share=share, seed=seed)
    else:
        history = _vectors(blobs, manifest, layout, steps[::-1])
        indices = index_sets.choose(history, size=layout.size, count=count, explore_share=share, seed=seed)
    return _add(records, blobs, population, encode_index_set(layout.size, indices))


def _vectors(blobs: Blobs, manifest: Manifest, layout: Layout, steps: list[VersionRecord]) -> Iterator[Vector]:
    for step in steps:
        try:
            data = blobs.get(step.sha256)
        except NotFound:
            # Housekeeping deletes old training versions; the movement from before it counts as none.
            continue
        yield layout.flatten(read_tensors(data, manifest))


def _add(records: Records, blobs: Blobs, population: str, data: bytes) -> NamedSets:
    name = blobs.put(data)
    # A set that comes again is the newest once more.
    names = (*(each for each in names_of(records, population) if each != name), name)
    records.set_meta(_key(population), json.dumps(names).encode())
    return NamedSets(blobs, names)
