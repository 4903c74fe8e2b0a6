"""What goes out retained on a population's model topics: announcements, for new populations and before they expire."""

from collections.abc import Iterable
from typing import Final

from cloud_aggregator import trust
from cloud_aggregator.answers import Outgoing
from cloud_aggregator.errors import Refused
from cloud_aggregator.keys import ServiceKeys
from cloud_aggregator.population import Population, announce
from cloud_aggregator.records import AnnouncementRecord, Records
from cloud_aggregator.registry import Registered
from cloud_aggregator.trust import TrustTurns
from wire_contract import envelope
from wire_contract.manifest import decode_manifest
from wire_contract.messages import ModelAnnouncement, TrustFile, encode_message
from wire_contract.topics import ModelTopic, Track, build_topic

# Share of a manifest's days after which it is signed again.
RENEW_AFTER: Final = 0.5
TRACKS: Final[tuple[Track, ...]] = ("training", "refresh")


def announcement_message(announced: AnnouncementRecord, records: Records) -> Outgoing:
    """Return what a track announces as the broker's message: a refresh with the repository's metadata, as far as they
    fit."""
    topic = build_topic(ModelTopic(announced.population, announced.track))
    files: tuple[TrustFile, ...] = ()
    if announced.track == "refresh":
        files = trust.trust_files(records, announced.population, trust.room_beside(announced.signed_manifest))
    payload = encode_message(ModelAnnouncement(signed_manifest=announced.signed_manifest, trust=files))
    return Outgoing(topic, payload, retain=True, announces=announced.population)


def current_announcements(
    records: Records, populations: Iterable[str], tracks: Iterable[Track] = TRACKS
) -> list[Outgoing]:
    """Return what these populations announce now, by default on both tracks."""
    found = [records.announcement(population, track) for population in populations for track in tracks]
    return [announcement_message(announced, records) for announced in found if announced is not None]


def renew_trust(
    turns: TrustTurns, records: Records, populations: Iterable[str], keys: ServiceKeys, now: int
) -> tuple[list[Outgoing], tuple[str, ...]]:
    """Sign the repository's metadata again if due; return the refreshes to announce with them, and what hinders it."""
    fresh, troubles = turns.due(records, keys, now)
    return current_announcements(records, populations, ("refresh",)) if fresh else [], tuple(troubles)


def renew(population: Population, records: Records, keys: ServiceKeys, now: int) -> list[Outgoing]:
    """Sign announcements with fresh dates before they expire: new devices refuse an expired manifest."""
    outgoing = []
    lasts_s = population.settings.manifest_days * 86_400
    for track in TRACKS:
        before = records.announcement(population.name, track)
        if before is None or now < before.announced_at + RENEW_AFTER * lasts_s:
            continue
        manifest = decode_manifest(envelope.read_envelope(before.signed_manifest).body)
        version = Registered(before.version, before.sha256, None)
        try:
            announced = announce(
                population, records, keys, track, version, now, manifest.undo_of, lineage=manifest.lineage,
                golden_vectors=manifest.golden_vectors,
            )  # fmt: skip
        except Refused:
            # The repository's metadata cannot be signed: `trust.TrustTurns` tells why, once an hour.
            continue
        outgoing.append(announcement_message(announced, records))
    return outgoing
