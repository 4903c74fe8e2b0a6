import hashlib

import msgspec
import pytest

from edge_runtime import activation
from edge_runtime.model_slots import ModelSlots, VersionRefused
from edge_runtime.ports import NotThere, Unreachable
from edge_runtime.trust import Keys, ManifestRefused
from tests.edge_runtime.fakes import FakeBroker, FakeClock, FakeDownloads, ToyAggregator
from wire_contract import envelope
from wire_contract.manifest import GoldenVector, encode_manifest


class Device:
    """Slots over a folder, an aggregator that serves them, and a check that can be told to refuse."""

    def __init__(self, home):
        self.home, self.clock, self.downloads = home, FakeClock(), FakeDownloads()
        self.aggregator = ToyAggregator(FakeBroker(), self.downloads, self.clock)
        self.refuse = ""
        self.slots = self.open()

    def open(self):
        keys = Keys(self.aggregator.manifest_key, envelope.public_bytes(self.aggregator.key))
        return ModelSlots(self.home, keys, "keyboard", "http://toy/", self.downloads, self.check)

    def check(self, data, manifest):
        if self.refuse:
            raise VersionRefused(self.refuse, "the check says no")

    def install(self, track="training"):
        return self.slots.install(self.aggregator.signed, track, self.clock.now())

    def confirm(self):
        """Boot until the refresh on trial is confirmed."""
        while self.slots.slot("refresh").on_trial and not self.slots.slot("refresh").ready:
            assert self.slots.begin_boot() is not None
            self.slots.came_up()
        if self.slots.slot("refresh").ready:
            self.slots.change("refresh", activation.Healthy("by this test"))

    def models(self):
        return sorted(path.name for path in (self.home / "models").glob("*"))

    def url(self):
        return f"/v1/models/{self.aggregator.manifest.sha256}"


@pytest.fixture
def device(tmp_path):
    return Device(tmp_path)


def test_a_version_is_downloaded_checked_and_switched_to(device):
    manifest = device.install()
    held = device.open().current("training")
    assert held.data == device.aggregator.model and held.manifest == manifest
    assert device.models() == [f"{manifest.sha256}.tflite"]
    assert len(device.slots.vocabulary(manifest.vocabulary_sha256)) == 600


def test_a_broken_link_leaves_a_part_that_the_next_attempt_resumes(device):
    device.downloads.cut_after = 120_000
    with pytest.raises(Unreachable):
        device.install()
    part = device.home / "models" / f"{device.aggregator.manifest.sha256}.part"
    assert part.stat().st_size == 100_000 and device.slots.current("training") is None
    device.slots = device.open()
    device.install()
    assert device.downloads.requests[-1] == (device.url(), 100_000)
    assert device.slots.current("training").data == device.aggregator.model


def test_a_server_that_cannot_resume_is_read_from_the_start(device):
    device.downloads.cut_after, device.downloads.resumes = 120_000, False
    with pytest.raises(Unreachable):
        device.install()
    device.install()
    assert device.slots.current("training").data == device.aggregator.model


@pytest.mark.parametrize("position", [0, 150_000, -1])
def test_one_flipped_bit_is_refused_the_slot_stays_and_the_file_is_gone(device, position):
    first = device.install()
    device.aggregator.move_on()
    broken = bytearray(device.aggregator.model)
    broken[position] ^= 4
    device.downloads.files[device.url()] = bytes(broken)
    with pytest.raises(VersionRefused) as caught:
        device.install()
    assert caught.value.reason == "wrong_hash"
    assert device.open().current("training").manifest == first
    assert device.models() == [f"{first.sha256}.tflite"]


def test_bytes_changed_outside_the_weights_are_refused_even_if_the_manifest_hashes_them(device):
    first = device.install()
    _, _, model = device.aggregator.next_version()
    broken = bytearray(model)
    broken[40] ^= 1
    digest = hashlib.sha256(broken).hexdigest()
    signed, _, _ = device.aggregator.next_version(sha256=digest)
    device.downloads.files[f"/v1/models/{digest}"] = bytes(broken)
    with pytest.raises(VersionRefused) as caught:
        device.slots.install(signed, "training", device.clock.now())
    assert caught.value.reason == "wrong_template"
    assert device.models() == [f"{first.sha256}.tflite"]


def test_a_file_that_is_longer_or_shorter_than_announced_is_refused(device):
    for data in (device.aggregator.model + b"x", device.aggregator.model[:-1]):
        device.downloads.files[device.url()] = data
        with pytest.raises(VersionRefused) as caught:
            device.install()
        assert caught.value.reason == "wrong_size" and device.models() == []


def test_a_version_that_fails_its_golden_check_never_becomes_current(device):
    first = device.install()
    device.aggregator.move_on()
    device.refuse = "template_loss"
    with pytest.raises(VersionRefused) as caught:
        device.install()
    assert caught.value.reason == "template_loss"
    assert device.open().current("training").manifest == first and len(device.models()) == 1


def test_a_file_that_is_here_is_checked_again_where_another_manifest_promises_more_of_it(device):
    """The release is a training version's bytes under a manifest with golden vectors: those must be asked, too."""
    device.install("training")
    asked = []
    device.slots._check = lambda data, manifest: asked.append((data, len(manifest.golden_vectors)))
    told = GoldenVector(context=(1, 5), ids=(7, 6, 5))
    model = device.aggregator.model
    signed, manifest, _ = device.aggregator.next_version(
        "refresh", golden_vectors=(told,), sha256=device.aggregator.manifest.sha256
    )
    device.slots.install(signed, "refresh", device.clock.now())
    assert asked == [(model, 1)] and manifest.sha256 == device.slots.slot("refresh").current


def test_a_second_manifest_of_a_file_that_lies_about_it_is_refused_and_the_first_stays(device):
    first = device.install("training")
    entry = next(entry for entry in first.tensors if entry.kind == "int8")
    moved = msgspec.structs.replace(entry, offsets=(entry.offsets[0] - 4, *entry.offsets[1:]))
    tensors = tuple(moved if each is entry else each for each in first.tensors)
    lie = msgspec.structs.replace(first, version=first.version + 1, tensors=tensors)
    # The exporter's own key lies: here the aggregator's, as if it were that.
    device.slots._keys = Keys(envelope.public_bytes(device.aggregator.key), bytes(32))
    signed = envelope.sign(device.aggregator.key, "manifest", encode_manifest(lie))
    with pytest.raises(VersionRefused) as caught:
        device.slots.install(signed, "training", device.clock.now())
    assert caught.value.reason == "wrong_template"
    assert device.open().current("training").manifest == first


def test_a_lower_version_and_an_expired_one_are_refused_and_nothing_is_fetched(device):
    old = device.aggregator.signed
    device.aggregator.move_on()
    current = device.install()
    asked = len(device.downloads.requests)
    with pytest.raises(ManifestRefused) as caught:
        device.slots.install(old, "training", device.clock.now())
    assert caught.value.reason == "lower_version"
    device.aggregator.move_on()
    with pytest.raises(ManifestRefused) as caught:
        device.slots.install(device.aggregator.signed, "training", device.clock.now() + 86_400 * 31)
    assert caught.value.reason == "expired"
    assert len(device.downloads.requests) == asked
    assert device.open().current("training").manifest == current


def test_the_previous_version_stays_and_older_ones_go(device):
    hashes = []
    for _ in range(3):
        device.aggregator.move_on()
        hashes.append(device.install().sha256)
    assert device.models() == sorted(f"{sha256}.tflite" for sha256 in hashes[1:])
    assert device.slots.slot("training").previous == hashes[1]


def test_a_version_that_both_tracks_hold_is_fetched_once_and_stays_while_one_names_it(device):
    shared = device.install("training")
    device.install("refresh")
    assert [path for path, _ in device.downloads.requests].count(device.url()) == 1
    for _ in range(2):
        device.aggregator.move_on()
        device.install("training")
    assert f"{shared.sha256}.tflite" in device.models()


def test_rolling_back_returns_to_the_previous_version_and_still_refuses_lower_ones(device):
    first = device.install("refresh")
    device.confirm()
    device.aggregator.move_on(("training", "refresh"), "refresh")
    second = device.install("refresh")
    device.confirm()
    device.slots.roll_back("refresh")
    reopened = device.open()
    assert reopened.current("refresh").manifest == first
    assert (reopened.slot("refresh").version, reopened.slot("refresh").floor) == (second.version, second.version)
    with pytest.raises(VersionRefused) as caught:
        device.install("refresh")
    assert caught.value.reason == "rolled_back"


def test_a_file_that_rotted_on_the_disk_counts_as_not_held_and_is_fetched_again(device):
    manifest = device.install()
    path = device.home / "models" / f"{manifest.sha256}.tflite"
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    device.slots = device.open()
    assert device.slots.held(manifest.sha256) is None and not path.exists()
    device.install()
    assert device.slots.current("training").data == device.aggregator.model


def test_a_model_that_the_server_does_not_have_is_said_to_be_missing(device):
    del device.downloads.files[device.url()]
    with pytest.raises(NotThere):
        device.install()


def test_a_wrong_vocabulary_stops_the_version(device):
    path = f"/v1/vocabularies/{device.aggregator.manifest.vocabulary_sha256}"
    device.downloads.files[path] += b"intruder\n"
    with pytest.raises(VersionRefused) as caught:
        device.install()
    assert caught.value.reason == "vocabulary_hash" and device.slots.current("training") is None


def test_a_kill_between_download_and_switch_leaves_the_old_slot(device):
    first = device.install()
    device.aggregator.move_on()

    class Killed(BaseException):
        pass

    def die(data, manifest):
        raise Killed

    device.check = die
    device.slots = device.open()
    with pytest.raises(Killed):
        device.install()
    assert device.open().current("training").manifest == first


def undo(device, manifest, version):
    """Return the signed manifest of a version that has the bytes of an older one."""
    changed = msgspec.structs.replace(manifest, version=version, kind="refresh", undo_of=version - 1)
    return envelope.sign(device.aggregator.key, "manifest", encode_manifest(changed))


def test_a_device_that_skipped_a_bad_version_refuses_it_after_the_undo(device):
    first = device.install("refresh")
    bad, manifest, model = device.aggregator.next_version("refresh")
    device.aggregator.announce(bad, manifest, model, ("refresh",))
    undone = device.slots.install(undo(device, first, manifest.version + 1), "refresh", device.clock.now())
    assert undone.sha256 == first.sha256
    for slots in (device.slots, device.open()):
        slot = slots.slot("refresh")
        assert (slot.version, slot.current, slot.previous) == (manifest.version + 1, first.sha256, "")
        with pytest.raises(ManifestRefused) as caught:
            slots.install(bad, "refresh", device.clock.now())
        assert caught.value.reason == "lower_version"
        assert slots.current("refresh").manifest.version == manifest.version + 1


def test_a_template_that_rotted_on_the_disk_is_fetched_again(device):
    device.install("refresh")
    device.aggregator.move_on(("refresh",), "refresh")
    device.install("refresh")
    (path,) = (device.home / "templates").glob("*.bin")
    whole = path.read_bytes()
    for rotten in (whole[:200] + bytes([whole[200] ^ 1]) + whole[201:], whole[:50], b""):
        path.write_bytes(rotten)
        device.aggregator.move_on(("refresh",), "refresh")
        device.install("refresh")
        assert path.read_bytes() == whole


def test_a_vocabulary_that_rotted_on_the_disk_is_fetched_again_with_the_version_that_is_here(device):
    manifest = device.install("refresh")
    path = device.home / "vocabularies" / f"{manifest.vocabulary_sha256}.txt"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert device.slots.vocabulary(manifest.vocabulary_sha256) is None
    device.install("refresh")
    assert path.read_bytes() == device.aggregator.vocabulary


@pytest.mark.parametrize("server", ["http://[x/", "http://h:port/", "http://t\u00f6y/"])
def test_an_address_that_is_none_is_refused_by_name(device, server):
    keys = Keys(device.aggregator.manifest_key, envelope.public_bytes(device.aggregator.key))
    slots = ModelSlots(device.home, keys, "keyboard", server, device.downloads, device.check)
    with pytest.raises(VersionRefused) as caught:
        slots.install(device.aggregator.signed, "training", device.clock.now())
    assert caught.value.reason == "wrong_address" and slots.current("training") is None
