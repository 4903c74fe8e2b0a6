"""Refreshes: what keyboards get, when, and how one is taken back.

The rules:
- a release is the training version of that moment, through the gate; a held one is recorded with its reason;
- an undo names a version that was a refresh before (the last other one by default) and gives its weights a new number.
"""

from dataclasses import dataclass
from typing import Final

from cloud_aggregator import registry as registries
from cloud_aggregator.errors import NotFound, Refused
from cloud_aggregator.keys import ServiceKeys
from cloud_aggregator.population import Population, announce
from cloud_aggregator.ports import Blobs, VersionFile
from cloud_aggregator.records import AnnouncementRecord, Records, ReleaseRecord, VersionRecord
from cloud_aggregator.registry import Registered, Registry
from cloud_aggregator.release_gate import Hold, Release

BY_OPERATOR: Final = "operator"
BY_SCHEDULE: Final = "schedule"


@dataclass(frozen=True, slots=True)
class Candidate:
    """What the gate is asked about: two versions' files, and how many devices it would reach."""

    population: str
    registry: Registry
    candidate: VersionFile
    current: VersionFile
    devices: int


def candidate_of(population: Population, records: Records, blobs: Blobs) -> Candidate:
    """Return what a release would bring. Raises `Refused` if the training version is no newer than the refresh."""
    registries.release(population.registry)
    signed = {track: records.announcement(population.name, track) for track in ("training", "refresh")}
    training, refresh = signed["training"], signed["refresh"]
    if training is None or refresh is None:
        raise NotFound(f"population {population.name} announces nothing")
    vocabulary = blobs.path(population.manifest.vocabulary_sha256)
    files = [
        VersionFile(announced.version, blobs.path(announced.sha256), vocabulary, announced.signed_manifest)
        for announced in (training, refresh)
    ]
    members = [d for d in records.devices() if d.population == population.name and d.revoked_at is None]
    return Candidate(population.name, population.registry, files[0], files[1], len(members))


def record_release(
    population: Population,
    records: Records,
    keys: ServiceKeys,
    judged: Candidate,
    verdict: Release | Hold,
    cause: str,
    now: int,
) -> ReleaseRecord:
    """Store the gate's verdict and, if it is `Release`, announce the judged version to keyboards.

    A step may have passed while the gate worked: what is released is what was judged.
    """
    training, previous = judged.registry.training, population.registry.refresh
    outcome: Release | Hold = verdict
    if isinstance(outcome, Release) and training.version <= previous.version:
        outcome = Hold(f"refresh {previous.version} went out meanwhile")
    released = isinstance(outcome, Release)
    if released:
        announce(population, records, keys, "refresh", training, now)
        population.registry = Registry(population.registry.training, training, population.registry.highest)
    return _store(
        records,
        ReleaseRecord(
            id=0,
            population=population.name,
            version=training.version,
            previous=previous.version,
            sha256=training.sha256,
            outcome="released" if released else "held",
            cause=cause,
            reason=outcome.reason[:400],
            at=now,
        ),
    )


def undo_target(population: Population, records: Records, version: int | None) -> Registered:
    """Return the version whose weights an undo brings back. Raises `NotFound` or `Refused`."""
    refresh = population.registry.refresh
    if version is None:
        for release in records.releases(population.name):
            if release.outcome != "held" and release.sha256 != refresh.sha256:
                return Registered(release.version, release.sha256, None)
        raise Refused("there is no earlier refresh to go back to", "see release list")
    if not any(r.version == version and r.outcome != "held" for r in records.releases(population.name)):
        raise NotFound(f"version {version} was never a refresh of {population.name}")
    found = records.version(population.name, version)
    if found is None:
        raise NotFound(f"population {population.name} has no version {version}")
    return Registered(found.version, found.sha256, found.ordinal)


def record_undo(
    population: Population, records: Records, keys: ServiceKeys, target: Registered, now: int
) -> tuple[ReleaseRecord, AnnouncementRecord]:
    """Give `target`'s weights a new number and announce it to keyboards. Raises `Refused`."""
    previous = population.registry.refresh
    registry = registries.undo(population.registry, target)
    records.add_version(
        VersionRecord(
            population=population.name,
            version=registry.refresh.version,
            sha256=target.sha256,
            ordinal=None,
            made_at=now,
            opened_at=now,
            cause="undo",
            updates=0,
            staleness=(),
            delta_norm=0.0,
            weights_of=target.version,
        )
    )
    announced = announce(population, records, keys, "refresh", registry.refresh, now, undo_of=previous.version)
    population.registry = registry
    release = _store(
        records,
        ReleaseRecord(
            id=0,
            population=population.name,
            version=registry.refresh.version,
            previous=previous.version,
            sha256=target.sha256,
            outcome="undone",
            cause=BY_OPERATOR,
            reason=f"weights of version {target.version} instead of {previous.version}",
            at=now,
        ),
    )
    return release, announced


def _store(records: Records, release: ReleaseRecord) -> ReleaseRecord:
    records.add_release(release)
    return records.releases(release.population)[0]
