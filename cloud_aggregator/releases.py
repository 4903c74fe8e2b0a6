"""Refreshes: what keyboards get, when, and how one is taken back.

The rules:
- a release is the training version of that moment, a patch of the exporter's template, through the gate; a held one is
  recorded with its reason;
- an undo names a version that was a refresh before (the last other one by default) and gives its weights a new number.
"""

from dataclasses import dataclass
from functools import partial
from typing import Final

from cloud_aggregator import registry as registries
from cloud_aggregator.errors import NotFound, Refused
from cloud_aggregator.keys import ServiceKeys
from cloud_aggregator.lineages import refresh_lineage, undo_lineage
from cloud_aggregator.population import Population, announce
from cloud_aggregator.ports import Blobs, VersionFile
from cloud_aggregator.records import Records, ReleaseRecord, VersionRecord
from cloud_aggregator.registry import Registered, Registry
from cloud_aggregator.release_gate import Hold, Release
from wire_contract import envelope
from wire_contract.manifest import GoldenVector, decode_manifest, template_hash

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
    if template_hash(blobs.get(training.sha256), population.manifest) != population.manifest.template_sha256:
        raise Refused(f"a refresh is a patch of its template, and version {training.version} is none")
    named = population.manifest.vocabulary_sha256
    vocabulary = blobs.path(named) if named else None
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
    signed = b""
    if isinstance(outcome, Release):
        lineage = refresh_lineage(
            records.versions(population.name), previous, training.version, outcome.evaluation,
            partial(_members, records, population.name),
        )  # fmt: skip
        signed = announce(
            population, records, keys, "refresh", training, now, lineage=lineage, golden_vectors=outcome.golden_vectors
        ).signed_manifest
        population.registry = Registry(population.registry.training, training, population.registry.highest)
    return _store(
        records,
        ReleaseRecord(
            id=0,
            population=population.name,
            version=training.version,
            previous=previous.version,
            sha256=training.sha256,
            outcome="released" if signed else "held",
            cause=cause,
            reason=outcome.reason[:400],
            at=now,
            signed_manifest=signed,
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
) -> ReleaseRecord:
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
    announced = announce(
        population, records, keys, "refresh", registry.refresh, now, undo_of=previous.version,
        lineage=undo_lineage(previous, target), golden_vectors=_golden_vectors(records, population.name, target),
    )  # fmt: skip
    population.registry = registry
    return _store(
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
            signed_manifest=announced.signed_manifest,
        ),
    )


def _members(records: Records, population: str, version: int) -> str:
    sums = records.sums(population, version)
    return "" if sums is None else sums.members_sha256


def _golden_vectors(records: Records, population: str, target: Registered) -> tuple[GoldenVector, ...]:
    """Return the golden vectors that went out with these weights before: they are the weights', not the number's."""
    for release in records.releases(population):
        if release.sha256 == target.sha256 and release.signed_manifest:
            return decode_manifest(envelope.read_envelope(release.signed_manifest).body).golden_vectors
    return ()


def _store(records: Records, release: ReleaseRecord) -> ReleaseRecord:
    records.add_release(release)
    return records.releases(release.population)[0]
