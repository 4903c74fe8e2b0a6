"""Makes deltas when a version is new or a device asks, on one thread of its own.

The rules:
- neither the pass nor the HTTP side's loop ever makes a delta: one worker thread does, one after another, with zstd and
  numpy, which let the others run meanwhile;
- what neighbours need is made when a version is announced, anything else at the first request; every answer is kept,
  also that a pair has no delta worth sending;
- nobody who asks is kept waiting: a pair that is not here is begun, and whoever asked looks again. Few pairs may be
  begun at once; for another there is no delta, and the device takes the file;
- a delta is stored only if applying it gives the target byte for byte;
- what `deltas` says is unneeded is deleted whenever a version is announced.
"""

import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import msgspec

from cloud_aggregator.config import PopulationSettings
from cloud_aggregator.deltas import History, Pair, choose, history_of, hops_between, unneeded, worth_a_chain
from cloud_aggregator.errors import NotFound
from cloud_aggregator.ports import Blobs, Database, DeltaCache
from cloud_aggregator.records import PopulationRecord, Records
from wire_contract import delta, envelope
from wire_contract.manifest import Manifest, decode_manifest

MAX_WAITING: Final = 32
MAX_TROUBLES: Final = 16


class NoDeltas:
    """`ports.Deltas` of a service without any: devices take whole files."""

    def prepare(self, population: str) -> None:
        """Make nothing."""

    def path(self, pair: Pair) -> Path | None:
        return None

    def begin(self, population: str, pair: Pair) -> None:
        """Make nothing."""

    def makes(self, pair: Pair) -> bool:
        return False

    def troubles(self) -> list[str]:
        return []

    def close(self) -> None:
        """Nothing runs."""


NO_DELTAS: Final = NoDeltas()


class DeltaPublisher:
    """`ports.Deltas` over the service's database and blobs. Safe to call from several threads."""

    def __init__(self, database: Database, blobs: Blobs, cache: DeltaCache) -> None:
        self._database = database
        self._blobs = blobs
        self._cache = cache
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="deltas")
        self._lock = threading.Lock()
        self._making: set[Pair] = set()
        self._preparing: set[str] = set()
        self._troubles: deque[str] = deque(maxlen=MAX_TROUBLES)
        self._closed = False

    def prepare(self, population: str) -> None:
        with self._lock:
            # Steps may come faster than deltas: one that waits does for all versions until it begins.
            if not self._closed and population not in self._preparing:
                self._preparing.add(population)
                self._pool.submit(self._prepare, population)

    def path(self, pair: Pair) -> Path | None:
        cached = self._cache.path(pair)
        try:
            return cached if cached is not None and cached.stat().st_size else None
        except FileNotFoundError:
            # Its target went out of date in this moment.
            return None

    def begin(self, population: str, pair: Pair) -> None:
        # Strangers may ask for anything; only what a device can need is made.
        if self.makes(pair) or self._cache.path(pair) is not None:
            return
        if not (self._held(pair.base) and self._held(pair.target)):
            return
        with self._database.reading() as records:
            offered = self._history(records, population).offers(pair)
        if offered:
            self._submit(population, pair)

    def makes(self, pair: Pair) -> bool:
        with self._lock:
            return pair in self._making

    def troubles(self) -> list[str]:
        found = []
        while self._troubles:
            found.append(self._troubles.popleft())
        return found

    def close(self) -> None:
        with self._lock:
            self._closed = True
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _held(self, sha256: str) -> bool:
        try:
            self._blobs.path(sha256)
        except NotFound:
            return False
        return True

    def _submit(self, population: str, pair: Pair) -> None:
        with self._lock:
            if self._closed or pair in self._making or len(self._making) >= MAX_WAITING:
                return
            self._making.add(pair)
            self._pool.submit(self._make_begun, population, pair)

    def _make_begun(self, population: str, pair: Pair) -> None:
        try:
            self._make(population, pair)
        finally:
            with self._lock:
                self._making.discard(pair)

    def _prepare(self, population: str) -> None:
        with self._lock:
            self._preparing.discard(population)
        try:
            with self._database.reading() as records:
                names = [record.population for record in records.populations()]
                histories = {name: self._history(records, name) for name in names}
            for pair in unneeded(self._cache.pairs(), histories.values()):
                self._cache.drop(pair)
            history = histories.get(population)
        except Exception as e:  # noqa: BLE001 - nobody waits for this one, and a later version prepares again
            self._troubles.append(f"deltas of {population}: {type(e).__name__}: {e}")
            return
        for track in (history.training, history.refresh) if history else ():
            if len(track) > 1:
                self._make(population, Pair(track[1], track[0]))

    def _make(self, population: str, pair: Pair) -> None:
        """Make the pair's delta if need be; `troubles` tells a failure."""
        try:
            if self._cache.path(pair) is not None:
                return
            with self._database.reading() as records:
                history = self._history(records, population)
                record = _population(records, population)
            if record is None:
                return
            manifest = decode_manifest(envelope.read_envelope(record.signed_template).body)
            direct = self._encoded(pair, manifest)
            candidates = [direct]
            if worth_a_chain(len(direct), manifest.size_bytes) and (hops := hops_between(history, pair)):
                candidates.append(delta.chain([self._hop(hop, manifest) for hop in hops]))
            self._cache.put(pair, choose(candidates, manifest.size_bytes) or b"")
        except NotFound:
            # The base is so old that housekeeping has deleted it.
            return
        except Exception as e:  # noqa: BLE001 - whatever stops a delta stops nothing else: the file is there
            self._troubles.append(f"the delta {pair.base[:12]} to {pair.target[:12]}: {type(e).__name__}: {e}")

    def _hop(self, pair: Pair, manifest: Manifest) -> bytes:
        cached = self._cache.path(pair)
        known = cached.read_bytes() if cached is not None else b""
        if known:
            return known
        made = self._encoded(pair, manifest)
        self._cache.put(pair, choose([made], manifest.size_bytes) or b"")
        return made

    def _encoded(self, pair: Pair, manifest: Manifest) -> bytes:
        base, target = self._blobs.get(pair.base), self._blobs.get(pair.target)
        made = delta.encode(base, target, manifest)
        delta.apply(base, made, msgspec.structs.replace(manifest, sha256=pair.target))
        return made

    def _history(self, records: Records, population: str) -> History:
        record = _population(records, population)
        if record is None:
            return History((), ())
        settings = msgspec.json.decode(record.settings, type=PopulationSettings)
        steps = [version.sha256 for version in records.versions(population) if version.ordinal is not None]
        released = [release.sha256 for release in records.releases(population) if release.outcome != "held"]
        announced = {track: records.announcement(population, track) for track in ("training", "refresh")}
        training, refresh = announced["training"], announced["refresh"]
        # What is announced comes first, whatever the order of rows says.
        return history_of(
            ([training.sha256] if training else []) + steps,
            ([refresh.sha256] if refresh else []) + released,
            settings.downlink.delta_versions,
        )


def _population(records: Records, name: str) -> PopulationRecord | None:
    return next((record for record in records.populations() if record.population == name), None)
