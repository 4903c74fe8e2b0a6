"""The signed repository in the service: every refresh is named by it in one transaction, in time, and devices can tell.

What devices see is judged by python-tuf's own client over a real socket.
"""

import http.client
import os
from contextlib import contextmanager
from dataclasses import replace
from urllib.parse import urlsplit

import pytest
from tuf.api.exceptions import DownloadHTTPError
from tuf.api.metadata import Metadata
from tuf.ngclient import FetcherInterface, Updater

from cloud_aggregator import trust
from cloud_aggregator.errors import NotFound, Refused, StorageFailed
from cloud_aggregator.population import found
from cloud_aggregator.web.server import start_http
from model_export import trust_metadata as meta
from tests.cloud_aggregator.fleet import NOW, POPULATION, Aggregator, Phone, make_bundle, phones, run_step, settings
from tests.cloud_aggregator.holders import Holders, bring, online_keys, protect, shelf
from wire_contract import trust_roles as roles
from wire_contract.messages import MAX_MESSAGE_BYTES, ModelAnnouncement, decode_message

DAY = 86_400


class Wire(FetcherInterface):
    """A device's fetcher: plain HTTP to one address."""

    def _fetch(self, url):
        parts = urlsplit(url)
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=10)
        try:
            connection.request("GET", parts.path)
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            raise DownloadHTTPError(f"{url}: {answer.status}", answer.status)
        return iter([data])


class Device:
    """python-tuf's client with a pinned root."""

    def __init__(self, folder, url, root):
        self.folder, self.url, self.root = folder, url, root
        folder.mkdir(exist_ok=True)

    def ask(self, path):
        """Return what the repository says now at `path`, None if it names nothing there."""
        updater = Updater(
            str(self.folder), self.url + roles.METADATA_PATH, str(self.folder), self.url + roles.TARGETS_PATH,
            fetcher=Wire(), bootstrap=self.root,
        )  # fmt: skip
        updater.refresh()
        target = updater.get_targetinfo(path)
        if target is None:
            return None
        updater.download_target(target, str(self.folder / "target"))
        return (self.folder / "target").read_bytes()


@pytest.fixture
def holders(aggregator, tmp_path):
    return protect(aggregator, tmp_path / "ceremony")


@pytest.fixture
def url(aggregator):
    handle = start_http(aggregator.service, "127.0.0.1", 0, operator_token="the-token")
    yield handle.url
    handle.stop()


def step(aggregator):
    """Four phones train, and a training version is made."""
    run_step(aggregator, phones(aggregator, 4))
    aggregator.turn()


def versions(aggregator):
    found_now = shelf(aggregator)
    return {role: Metadata.from_bytes(found_now.of(role)).signed.version for role in trust.ALL_ROLES}


def refreshed(aggregator):
    """What the role `refreshes` names for the population: version and SHA-256 of the content."""
    target = Metadata.from_bytes(shelf(aggregator).refreshes).signed.targets[roles.refresh_target(POPULATION)]
    return target.unrecognized_fields["custom"]["version"], target.hashes["sha256"]


def announced_trust(aggregator):
    """The metadata that the last refresh announcement carried, by name."""
    payloads = [payload for topic, payload, _ in aggregator.wire.sent if topic.endswith("refresh")]
    return {file.name: file.data for file in decode_message(payloads[-1], ModelAnnouncement).trust}


def test_without_a_repository_nothing_is_pinned_named_or_carried(aggregator, phone, url, tmp_path):
    step(aggregator)
    aggregator.service.release(POPULATION, NOW + 5)
    assert shelf(aggregator) is None and announced_trust(aggregator) == {}
    assert Phone(9, aggregator).enrol().root == b""
    with pytest.raises(DownloadHTTPError, match="404"):
        Wire().fetch(url + roles.METADATA_PATH + "/1.root.json")


def test_a_population_that_is_there_already_is_protected_from_the_import_on(aggregator, holders, url, tmp_path):
    root = Phone(9, aggregator).enrol().root
    assert root == holders.bring().roots[1]
    with aggregator.database.reading() as records:
        announced = records.announcement(POPULATION, "refresh").signed_manifest
    device = Device(tmp_path / "device", url, root)
    assert device.ask(roles.refresh_target(POPULATION)) == announced
    template = roles.template_target(make_bundle().manifest.population, make_bundle().manifest.template_sha256)
    assert device.ask(template) == make_bundle().signed_manifest
    assert device.ask(roles.refresh_target("nobody")) is None


def test_a_release_a_renewal_and_an_undo_reach_a_device_by_the_repository(aggregator, holders, url, tmp_path):
    device = Device(tmp_path / "device", url, Phone(9, aggregator).enrol().root)
    step(aggregator)
    aggregator.service.release(POPULATION, NOW + 5)
    assert refreshed(aggregator)[0] == 2
    first = device.ask(roles.refresh_target(POPULATION))
    undone = aggregator.service.undo(POPULATION, NOW + 10)
    assert refreshed(aggregator)[0] == undone.version == 3
    second = device.ask(roles.refresh_target(POPULATION))
    aggregator.turn(190 * DAY)
    with aggregator.database.reading() as records:
        renewed = records.announcement(POPULATION, "refresh").signed_manifest
    assert device.ask(roles.refresh_target(POPULATION)) == renewed and len({first, second, renewed}) == 3


def test_a_bundle_whose_template_nobody_signed_is_refused_with_the_command_that_adds_it(tmp_path):
    aggregator = Aggregator(tmp_path / "data")
    holders = protect(aggregator, tmp_path / "ceremony")
    other = make_bundle("elsewhere")
    assert other.manifest.template_sha256 == make_bundle().manifest.template_sha256
    # The same template in another exporter's words is not what was signed.
    with pytest.raises(Refused, match="not_a_target") as refused, aggregator.database.transaction() as records:
        found(records, aggregator.blobs, aggregator.keys, other, settings(), NOW)
    assert "model-export keys add-template" in refused.value.hint
    with aggregator.database.reading() as records:
        assert records.populations() == [] and records.announcements() == []
    holders.add_template(other)
    bring(aggregator, holders)
    with aggregator.database.transaction() as records:
        found(records, aggregator.blobs, aggregator.keys, other, settings(), NOW)
    target = Metadata.from_bytes(shelf(aggregator).refreshes).signed.targets[roles.refresh_target("elsewhere")]
    assert target.unrecognized_fields["custom"]["version"] == 1


def test_a_population_that_is_not_protected_stays_as_without_a_repository(aggregator, tmp_path):
    holders = Holders(tmp_path / "ceremony", online_keys(aggregator.folder)[1])
    holders.add_template(make_bundle("elsewhere"))
    bring(aggregator, holders)
    assert Phone(9, aggregator).enrol().root == b""
    step(aggregator)
    before = versions(aggregator)
    assert aggregator.service.release(POPULATION, NOW + 5).outcome == "released"
    assert versions(aggregator) == before and announced_trust(aggregator) == {}


def test_what_would_leave_a_protected_population_is_not_imported(aggregator, holders):
    before = shelf(aggregator)
    # The same template in the words of another export: devices of the toy population have pinned the root.
    holders.add_template(make_bundle(created_at=NOW - 50))
    with pytest.raises(Refused, match="no longer name the template of population toy"):
        bring(aggregator, holders)
    assert shelf(aggregator) == before


def test_two_populations_of_one_graph_are_both_protected(aggregator, holders):
    other = make_bundle("elsewhere")
    holders.add_template(other)
    bring(aggregator, holders)
    with aggregator.database.transaction() as records:
        found(records, aggregator.blobs, aggregator.keys, other, settings(), NOW)
    with aggregator.database.reading() as records:
        everybody = {each.population: each for each in records.populations()}
        assert set(everybody) == {POPULATION, "elsewhere"}
        assert len({each.template_sha256 for each in everybody.values()}) == 1
        for name, each in everybody.items():
            assert trust.is_protected(records, each)
            assert trust.root_for(records, each)
            signed = records.template(each.template_sha256, name)
            assert signed == each.signed_template
        assert everybody["elsewhere"].signed_template == other.signed_manifest


class ProcessEnded(BaseException):
    """Where the process of a test dies."""


class Dying:
    """A database whose process ends before so many more rows of a release are written."""

    WATCHED = ("put_metadata", "put_target", "announce", "add_release")

    def __init__(self, database, writes):
        self.database, self.writes = database, writes
        self.reading, self.room_bytes = database.reading, database.room_bytes

    @contextmanager
    def transaction(self):
        with self.database.transaction() as records:
            yield Watched(records, self)


class Watched:
    """Records that count what is written."""

    def __init__(self, records, watch):
        self.records, self.watch = records, watch

    def __getattr__(self, name):
        if name in Dying.WATCHED:
            if self.watch.writes == 0:
                raise ProcessEnded
            self.watch.writes -= 1
        return getattr(self.records, name)


def test_a_release_and_its_signatures_are_one_transaction(aggregator, holders):
    step(aggregator)
    before, manifest = shelf(aggregator), aggregator.manifest("refresh")
    sent = len(aggregator.wire.sent)

    ends = 0
    for writes in range(20):
        aggregator.service.database = Dying(aggregator.database, writes)
        try:
            aggregator.service.release(POPULATION, NOW + 5)
        except ProcessEnded:
            ends += 1
            # What is committed, and what was published, is the old set whole.
            assert shelf(aggregator) == before and aggregator.manifest("refresh") == manifest
            assert len(aggregator.wire.sent) == sent
            continue
        break
    # Three roles, the content, the announcement, the release.
    assert ends == 6
    aggregator.service.database = aggregator.database
    assert refreshed(aggregator)[0] == aggregator.manifest("refresh").version == 2
    aggregator.restart()
    assert refreshed(aggregator)[0] == 2


def test_metadata_are_signed_again_each_day_and_announced_with_it(aggregator, holders):
    aggregator.service.start()
    aggregator.turn()
    before = versions(aggregator)
    aggregator.turn(DAY - 60)
    assert versions(aggregator) == before
    sent = len(aggregator.wire.sent)
    aggregator.turn(3600)
    assert versions(aggregator) == {**before, "timestamp": before["timestamp"] + 1}
    assert len(aggregator.wire.sent) == sent + 1
    assert announced_trust(aggregator)["timestamp.json"] == shelf(aggregator).timestamp
    aggregator.turn(10 * DAY)
    after = versions(aggregator)
    assert (after["snapshot"], after["refreshes"]) == (before["snapshot"] + 1, before["refreshes"] + 1)
    assert (after["root"], after["targets"], after["offline"]) == (1, 2, 1)


def test_what_is_imported_beside_a_running_service_is_announced_within_the_hour(aggregator, tmp_path):
    aggregator.service.start()
    aggregator.turn()
    holders = protect(aggregator, tmp_path / "ceremony")
    sent = len(aggregator.wire.sent)
    aggregator.turn(60)
    assert len(aggregator.wire.sent) == sent
    aggregator.turn(3600)
    assert announced_trust(aggregator)["1.root.json"] == holders.bring().roots[1]
    sent = len(aggregator.wire.sent)
    aggregator.turn(3600)
    assert len(aggregator.wire.sent) == sent


def test_a_service_that_slept_for_a_year_says_what_to_do_and_trains_on(aggregator, holders):
    told = aggregator.turn(340 * DAY).troubles
    assert any("expire in 25 days: model-export keys renew --role root" in line for line in told)
    told = aggregator.turn(30 * DAY).troubles
    assert any("cannot be renewed: metadata_expired: root 1 expired" in line for line in told)
    step(aggregator)
    assert aggregator.manifest("training").version == 2
    with pytest.raises(Refused, match="metadata_expired"):
        aggregator.service.release(POPULATION, aggregator.clock.now())
    assert aggregator.manifest("refresh").version == 1
    holders.now = int(aggregator.clock.now())
    holders.renew()
    bring(aggregator, holders)
    assert aggregator.service.release(POPULATION, aggregator.clock.now()).outcome == "released"
    assert aggregator.turn(3601).troubles == ()


def test_a_stolen_online_key_is_replaced_without_a_restart(aggregator, holders, url, tmp_path):
    device = Device(tmp_path / "device", url, Phone(9, aggregator).enrol().root)
    device.ask(roles.refresh_target(POPULATION))
    files, _ = online_keys(aggregator.folder)
    thief = {role: files.newest(role) for role in roles.ONLINE_ROLES}
    for role in roles.ONLINE_ROLES:
        fresh = meta.PublicKey.of(files.make(role, os.urandom))
        holders.rotate(role, 0, fresh.data)
    bring(aggregator, holders)
    after = shelf(aggregator)
    for role, above in (("snapshot", after.root), ("timestamp", after.root), ("refreshes", after.targets)):
        named = {key.data for key in meta.quorum_of(above, role).keys}
        assert thief[role].public_key().public_bytes_raw() not in named
    assert versions(aggregator)["root"] == 3
    assert device.ask(roles.refresh_target(POPULATION)) is not None
    step(aggregator)
    aggregator.service.release(POPULATION, NOW + 5)
    assert device.ask(roles.refresh_target(POPULATION)) is not None


def test_a_device_that_pinned_the_first_root_follows_a_chain_of_rotations(aggregator, holders, url, tmp_path):
    device = Device(tmp_path / "device", url, Phone(9, aggregator).enrol().root)
    for holder in (1, 2, 3):
        holders.rotate("root", holder)
        holders.rotate("targets", holder)
        holders.rotate("offline", holder)
    bring(aggregator, holders)
    assert versions(aggregator)["root"] == 7
    assert device.ask(roles.refresh_target(POPULATION)) is not None
    assert Metadata.from_bytes((device.folder / "root.json").read_bytes()).signed.version == 7


def test_without_its_key_a_service_trains_on_and_releases_nothing(aggregator, holders):
    for path in (aggregator.folder / "trust").iterdir():
        path.rename(path.with_suffix(".lost"))
    step(aggregator)
    with pytest.raises(Refused, match="wrong_keys: this service has no key of the role refreshes"):
        aggregator.service.release(POPULATION, NOW + 5)
    assert aggregator.manifest("refresh").version == 1 and aggregator.manifest("training").version == 2
    assert any("wrong_keys" in line for line in aggregator.turn(DAY + 3600).troubles)


def test_a_damaged_row_is_refused_and_not_signed_again(aggregator, holders):
    with aggregator.database.transaction() as records:
        held = records.metadata("refreshes")
        damaged = held.data.replace(b'"length":', b'"length":1')
        assert damaged != held.data
        records.put_metadata(trust.MetadataRecord("refreshes", held.version, damaged, NOW))
    step(aggregator)
    with pytest.raises(Refused, match="metadata_unsigned: the stored refreshes"):
        aggregator.service.release(POPULATION, NOW + 5)


def test_an_announcement_carries_what_fits_the_most_urgent_first(aggregator, holders):
    with aggregator.database.reading() as records:
        every = trust.trust_files(records, POPULATION, MAX_MESSAGE_BYTES)
        names = [file.name for file in every]
        assert names == ["timestamp.json", "1.snapshot.json", "1.refreshes.json", "2.targets.json", "1.root.json"]
        sizes = [len(file.data) for file in every]
        for kept in range(5):
            room = sum(sizes[:kept])
            fitting = trust.trust_files(records, POPULATION, room)
            assert sum(len(file.data) for file in fitting) <= room and every[:kept] == fitting[:kept]
        assert trust.trust_files(records, "nobody", MAX_MESSAGE_BYTES) == ()
    assert trust.room_beside(bytes(70_000)) + 70_000 < MAX_MESSAGE_BYTES


def test_older_metadata_are_kept_for_a_while_and_every_root_for_ever(aggregator, holders):
    for day in range(1, 13):
        aggregator.turn(DAY + 60)
        if day % 4 == 0:
            holders.now = int(aggregator.clock.now())
            holders.renew("root", "targets")
            bring(aggregator, holders)
    with aggregator.database.reading() as records:
        assert records.metadata_versions("root") == [1, 2, 3, 4]
        assert len(records.metadata_versions("timestamp")) == trust.KEEP_METADATA
        assert trust.metadata_file(records, "timestamp.json") == records.metadata("timestamp").data


@pytest.mark.parametrize(
    "name",
    ["root.json", "0.root.json", "01.root.json", "1.root", "-1.root.json", "1.mirrors.json", "../1.root.json", "²."
     "root.json", "9999999999999999999999.root.json", ".timestamp.json", "1.root.json.json"],
)  # fmt: skip
def test_a_metadata_file_has_one_name(aggregator, holders, name):
    with aggregator.database.reading() as records, pytest.raises(NotFound):
        trust.metadata_file(records, name)


def test_a_target_is_served_under_its_hash_alone(aggregator, holders):
    sha256 = refreshed(aggregator)[1]
    with aggregator.database.reading() as records:
        content = trust.target_file(records, f"refreshes/{POPULATION}/{sha256}.current.bin")
        assert content == records.announcement(POPULATION, "refresh").signed_manifest
        for wrong in (f"refreshes/{POPULATION}/current.bin", f"refreshes/{POPULATION}/{'0' * 64}.current.bin",
                      f"refreshes/{sha256}.current.bin", f"templates/{sha256}.current.bin", "", "/"):  # fmt: skip
            with pytest.raises(NotFound):
                trust.target_file(records, wrong)


def test_an_import_that_fails_keeps_nothing(tmp_path):
    aggregator = Aggregator(tmp_path / "data")
    holders = protect(aggregator, tmp_path / "ceremony")
    files = holders.folder / "targets" / "templates" / POPULATION
    for file in files.iterdir():
        file.write_bytes(b"changed")
    holders.renew("targets")
    # The template is held already: its file need not come again.
    bring(aggregator, holders)
    assert versions(aggregator)["targets"] == 3
    before = shelf(aggregator)
    holders.add_template(make_bundle("elsewhere"))
    for file in (holders.folder / "targets").rglob("*.bin"):
        file.write_bytes(b"changed")
    with pytest.raises(Refused, match="wrong_target"):
        bring(aggregator, holders)
    assert shelf(aggregator) == before


def test_a_second_import_of_the_same_changes_nothing(aggregator, holders):
    before = shelf(aggregator)
    assert bring(aggregator, holders).populations == ()
    assert shelf(aggregator) == before


def test_storage_that_fails_leaves_the_old_set(aggregator, holders):
    before = shelf(aggregator)
    with pytest.raises(StorageFailed), aggregator.database.transaction() as records:
        trust.renew(records, aggregator.keys, NOW + 12 * DAY)
        raise StorageFailed("the disk went away")
    assert shelf(aggregator) == before


def test_a_version_that_is_no_patch_of_its_template_is_never_released(aggregator, holders):
    step(aggregator)
    with aggregator.database.reading() as records:
        announced = records.announcement(POPULATION, "training")
    other = bytearray(aggregator.blobs.get(announced.sha256))
    other[0] ^= 1
    with aggregator.database.transaction() as records:
        records.announce(replace(announced, sha256=aggregator.blobs.put(bytes(other))))
    before = shelf(aggregator)
    with pytest.raises(Refused, match="a patch of its template, and version 2 is none"):
        aggregator.service.release(POPULATION, NOW + 5)
    assert shelf(aggregator) == before and aggregator.manifest("refresh").version == 1
