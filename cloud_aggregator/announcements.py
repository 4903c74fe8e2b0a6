"""What goes out retained on a population's model topics: announcements, for new populations and before they expire."""

from collections.abc import Iterable
from typing import Final

from cloud_aggregator.answers import Outgoing
from cloud_aggregator.keys import ServiceKeys
from cloud_aggregator.population import Population, announce
from cloud_aggregator.records import AnnouncementRecord, Records
from cloud_aggregator.registry import Registered
from wire_contract import envelope
from wire_contract.manifest import decode_manifest
from wire_contract.messages import ModelAnnouncement, encode_message
from wire_contract.topics import ModelTopic, Track, build_topic

# Share of a manifest's days after which it is signed again.
RENEW_AFTER: Final = 0.5
TRACKS: Final[tuple[Track, ...]] = ("training", "refresh")


def announcement_message(announced: AnnouncementRecord) -> Outgoing:
    """Return what a track announces as the broker's message."""
    topic = build_topic(ModelTopic(announced.population, announced.track))
    payload = encode_message(ModelAnnouncement(signed_manifest=announced.signed_manifest))
    return Outgoing(topic, payload, retain=True, announces=announced.population)


def current_announcements(records: Records, populations: Iterable[str]) -> list[Outgoing]:
    """Return what these populations announce now, on both tracks."""
    found = [records.announcement(population, track) for population in populations for track in TRACKS]
    return [announcement_message(announced) for announced in found if announced is not None]


def renew(population: Population, records: Records, keys: ServiceKeys, now: int) -> list[Outgoing]:
    """Sign announcements with fresh dates before they expire: new devices refuse an expired manifest."""
    outgoing = []
    lasts_s = population.settings.manifest_days * 86_400
    for track in TRACKS:
        before = records.announcement(population.name, track)
        if before is None or now < before.announced_at + RENEW_AFTER * lasts_s:
            continue
        undo_of = decode_manifest(envelope.read_envelope(before.signed_manifest).body).undo_of
        version = Registered(before.version, before.sha256, None)
        outgoing.append(announcement_message(announce(population, records, keys, track, version, now, undo_of)))
    return outgoing
