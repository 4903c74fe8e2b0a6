"""The cloud's repository and the device's reading of it meet: metadata carried by announcements, and over HTTP."""

import pytest

from cloud_aggregator.web.server import start_http
from edge_runtime.adapters.downloads import HttpDownloads
from edge_runtime.adapters.tuf_client import TufRepository
from edge_runtime.ports import Unreachable
from edge_runtime.trust import ManifestRefused
from tests.cloud_aggregator.fleet import NOW, POPULATION, Aggregator, Phone, make_bundle, phones, run_step
from tests.cloud_aggregator.holders import bring, protect
from wire_contract import trust_roles as roles
from wire_contract.messages import ModelAnnouncement, decode_message

DAY = 86_400


class NoNetwork:
    """A device on the broker alone."""

    def fetch(self, url, start, limit_bytes):
        raise Unreachable(f"{url}: no route")


@pytest.fixture
def aggregator(tmp_path):
    return Aggregator(tmp_path / "data").found()


@pytest.fixture
def holders(aggregator, tmp_path):
    return protect(aggregator, tmp_path / "ceremony")


@pytest.fixture
def site(aggregator):
    handle = start_http(aggregator.service, "127.0.0.1", 0, operator_token="the-token")
    yield handle.url
    handle.stop()


def release(aggregator):
    """Train a step, release it, and return what was announced to keyboards."""
    run_step(aggregator, phones(aggregator, 4))
    aggregator.turn()
    aggregator.service.release(POPULATION, aggregator.clock.now())
    return announced(aggregator)


def announced(aggregator):
    payloads = [payload for topic, payload, _ in aggregator.wire.sent if topic.endswith("refresh")]
    return decode_message(payloads[-1], ModelAnnouncement)


def carried(message):
    return {file.name: file.data for file in message.trust}


def device(tmp_path, root, url="http://127.0.0.1:9", downloads=None):
    return TufRepository(tmp_path / "home", root, url, downloads or NoNetwork())


def test_an_announcement_alone_admits_a_release_on_a_device_without_http(aggregator, holders, tmp_path):
    repository = device(tmp_path, Phone(9, aggregator).enrol().root)
    for message in (release(aggregator), undo(aggregator)):
        listing = repository.listing(POPULATION, NOW + 60, carried(message))
        assert listing.current.is_of(message.signed_manifest)
        template = listing.templates[
            roles.template_target(make_bundle().manifest.population, make_bundle().manifest.template_sha256)
        ]
        assert template.is_of(make_bundle().signed_manifest)


def undo(aggregator):
    aggregator.service.undo(POPULATION, aggregator.clock.now())
    return announced(aggregator)


def test_over_http_a_device_follows_every_root_that_came_since_it_was_enrolled(aggregator, holders, site, tmp_path):
    repository = device(tmp_path, Phone(9, aggregator).enrol().root, site, HttpDownloads())
    for holder in (1, 2, 3):
        holders.rotate("root", holder)
        holders.rotate("targets", holder)
    bring(aggregator, holders)
    message = release(aggregator)
    assert repository.listing(POPULATION, NOW + 60, {}).current.is_of(message.signed_manifest)
    # The newest root is carried, those between are not: without HTTP the chain has a gap.
    away = TufRepository(tmp_path / "other", holders.bring().roots[1], "http://127.0.0.1:9", NoNetwork())
    with pytest.raises((ManifestRefused, Unreachable)):
        away.listing(POPULATION, NOW + 60, carried(message))


def test_an_old_announcement_replayed_is_a_rollback_and_in_time_expired(aggregator, holders, tmp_path):
    repository = device(tmp_path, Phone(9, aggregator).enrol().root)
    before = release(aggregator)
    after = undo(aggregator)
    repository.listing(POPULATION, NOW + 60, carried(after))
    with pytest.raises(ManifestRefused) as refused:
        repository.listing(POPULATION, NOW + 60, carried(before))
    assert refused.value.reason == "metadata_rolled_back"
    # Frozen: whoever holds the broker shows a device the same for ever.
    with pytest.raises(ManifestRefused) as refused:
        repository.listing(POPULATION, NOW + 15 * DAY, carried(after))
    assert refused.value.reason == "metadata_expired"


@pytest.mark.parametrize("role", ["snapshot", "refreshes"])
def test_metadata_of_two_moments_do_not_mix(aggregator, holders, tmp_path, role):
    root = Phone(9, aggregator).enrol().root
    before, after = carried(release(aggregator)), carried(undo(aggregator))
    old, new = (next(name for name in files if role in name) for files in (before, after))
    assert old != new
    # Check for a mix-and-match attack: yesterday's file under today's name.
    with pytest.raises(ManifestRefused) as refused:
        device(tmp_path, root).listing(POPULATION, NOW + 60, {**after, new: before[old]})
    assert refused.value.reason == "metadata_mixed"
