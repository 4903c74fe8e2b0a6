"""A version over USB: what a bundle must hold, and every way to lie with one."""

import hashlib

import msgspec
import pytest

from edge_runtime import offline_install
from edge_runtime.activation import Stage
from edge_runtime.model_slots import VersionRefused
from edge_runtime.ports import NotThere
from edge_runtime.repository_trust import pinned_root
from edge_runtime.trust import ManifestRefused
from tests.edge_runtime.fakes import FakeBroker, FakeClock, FakeDownloads, ToyAggregator
from tests.edge_runtime.signed_repository import DAY, SignedRepository, signers
from wire_contract import envelope
from wire_contract.messages import Enrolled
from wire_contract.offline_bundle import OfflineBundle, encode_offline_bundle
from wire_contract.trust_roles import OFFLINE, offline_target, template_target


class Device:
    def __init__(self, home):
        self.home, self.clock = home, FakeClock()
        self.toy = ToyAggregator(FakeBroker(), FakeDownloads(), self.clock)
        self.repository = SignedRepository()
        self.template = self.toy.signed
        self.repository.list_template(self.toy.manifest.population, self.toy.manifest.template_sha256, self.template)
        self.repository.list_offline("keyboard", self.toy.signed)
        self.repository.publish()
        self.enrolled = Enrolled(
            device="0" * 32, population="keyboard", aggregator_key=envelope.public_bytes(self.toy.key),
            manifest_key=self.toy.manifest_key, broker_url="mqtt://127.0.0.1:1", model_url="http://toy/", shard=0,
            issued_at=0, root=self.repository.files["1.root.json"],
        )  # fmt: skip

    def release(self, listed_for="keyboard", **changes):
        signed, self.toy.manifest, self.toy.model = self.toy.next_version("refresh", **changes)
        self.toy.signed = signed
        self.repository.list_offline(listed_for, signed)
        self.repository.publish(OFFLINE)

    def bundle(self, **changes):
        files, repository = self.repository.files, self.repository
        bundle = OfflineBundle(
            roots=tuple(files[f"{number}.root.json"] for number in range(1, repository.root.version + 1)),
            targets=files[f"{repository.targets.version}.targets.json"],
            offline=files[f"{repository.offline.version}.{OFFLINE}.json"], signed_manifest=self.toy.signed,
            signed_template=self.template, vocabulary=self.toy.vocabulary, model=self.toy.model,
        )  # fmt: skip
        return encode_offline_bundle(msgspec.structs.replace(bundle, **changes))

    def install(self, data=b"", enrolled=None):
        return offline_install.install(
            data or self.bundle(), self.home, enrolled or self.enrolled, lambda model, manifest: None, self.clock.now()
        )

    def refusal(self, data=b"", **named):
        before = sorted(path.name for path in self.home.rglob("*.tflite"))
        with pytest.raises((ManifestRefused, VersionRefused)) as caught:
            self.install(data, **named)
        assert sorted(path.name for path in self.home.rglob("*.tflite")) == before
        return caught.value.reason

    def slot(self):
        from edge_runtime.model_slots import ModelSlots
        from edge_runtime.trust import Keys

        keys = Keys(self.enrolled.manifest_key, self.enrolled.aggregator_key)
        return ModelSlots(self.home, keys, "keyboard", "http://toy/", FakeDownloads(), lambda *a: None).slot("refresh")


@pytest.fixture
def device(tmp_path):
    return Device(tmp_path)


def test_a_bundle_brings_a_version_without_a_network_and_it_is_on_trial(device):
    assert device.install().version == 1
    device.release()
    assert device.install().version == 2
    assert device.slot().stage is Stage.TRIAL
    assert sorted(path.name for path in (device.home / "trust").iterdir()) == [
        "offline.json", "pinned.json", "targets.json"
    ]  # fmt: skip


def test_a_chain_of_roots_leads_from_the_pinned_one_to_new_keys(device):
    pinned_root(device.home, device.enrolled.root)
    device.repository.rotate("root")
    device.repository.rotate("targets")
    device.repository.publish()
    assert device.install().version == 1
    assert (device.home / "trust" / "3.root.json").read_bytes() == device.repository.files["3.root.json"]


def test_a_device_that_pinned_a_later_root_takes_the_chain_from_there(device):
    device.repository.rotate("targets")
    device.repository.publish()
    later = msgspec.structs.replace(device.enrolled, root=device.repository.files["2.root.json"])
    assert device.install(enrolled=later).version == 1


def test_without_a_pinned_root_no_file_is_trusted(device):
    assert device.refusal(enrolled=msgspec.structs.replace(device.enrolled, root=b"")) == "no_pinned_root"


def test_a_lower_version_than_the_confirmed_one_is_refused(device):
    from edge_runtime.activation import Slot
    from edge_runtime.adapters.files import write_atomically

    slot = Slot("a" * 64, "", 5, "a" * 64, 5, "a" * 64)
    write_atomically(
        device.home / "slots" / "refresh.json", msgspec.json.encode({n: getattr(slot, n) for n in Slot.__slots__})
    )
    assert device.refusal() == "lower_version"


def test_another_populations_bundle_is_refused(device):
    device.release("cameras", population="cameras")
    assert device.refusal() == "wrong_population"
    device.release(population="cameras")
    assert device.refusal() == "wrong_population"
    del device.repository.offline.targets[offline_target("keyboard")]
    device.release("cameras", population="keyboard")
    assert device.refusal() == "not_a_target"


@pytest.mark.parametrize("role", ["targets", OFFLINE])
def test_one_key_of_two_is_not_enough(device, role):
    device.repository.keys[role] = [device.repository.keys[role][0], *signers(2)]
    device.repository.publish()
    assert device.refusal() == "metadata_unsigned"


def test_the_online_roles_keys_sign_no_bundle(device):
    device.repository.keys[OFFLINE] = device.repository.keys["refreshes"]
    device.repository.publish()
    assert device.refusal() == "metadata_unsigned"


@pytest.mark.parametrize("role", ["root", "targets", OFFLINE])
def test_expired_metadata_are_refused_by_the_devices_clock(device, role):
    device.repository.days[role] = 1
    if role == "root":
        device.repository.new_root()
    device.repository.publish()
    device.clock.time += 2 * DAY
    assert device.refusal() == "metadata_expired"


def test_metadata_older_than_what_was_used_are_refused(device):
    old = device.bundle()
    device.release()
    device.install()
    assert device.refusal(old) == "metadata_rolled_back"


def test_roots_that_leave_one_out_or_were_not_signed_by_the_one_before_are_refused(device):
    for _ in range(2):
        device.repository.rotate("root")
    device.repository.publish()
    files = device.repository.files
    assert device.refusal(device.bundle(roots=(files["1.root.json"], files["3.root.json"]))) == "metadata_mixed"
    device.repository.keys["root"] = signers(3)
    device.repository.new_root()
    assert device.refusal() == "metadata_unsigned"


def test_another_repositorys_chain_is_refused(device):
    other = SignedRepository()
    assert device.refusal(device.bundle(roots=(other.files["1.root.json"],))) == "another_root"


def test_a_template_that_targets_do_not_list_is_refused(device):
    del device.repository.targets.targets[
        template_target(device.toy.manifest.population, device.toy.manifest.template_sha256)
    ]
    device.repository.publish()
    assert device.refusal() == "template_not_a_target"


def test_roles_in_each_others_place_are_refused(device):
    data = device.repository.files
    timestamp, snapshot = data["timestamp.json"], data[f"{device.repository.snapshot.version}.snapshot.json"]
    for changes in ({"targets": timestamp}, {"offline": snapshot}, {"roots": (timestamp,)}):
        assert device.refusal(device.bundle(**changes)) in {"metadata_mixed", "metadata_unsigned"}
    swapped = {"targets": data[f"{device.repository.offline.version}.{OFFLINE}.json"],
               "offline": data[f"{device.repository.targets.version}.targets.json"]}  # fmt: skip
    assert device.refusal(device.bundle(**swapped)) in {"metadata_unsigned", "metadata_mixed"}


def test_wrong_bytes_in_a_bundle_are_refused_by_what_is_wrong_with_them(device):
    broken = bytearray(device.toy.model)
    broken[1000] ^= 1
    assert device.refusal(device.bundle(vocabulary=device.toy.vocabulary + b"intruder\n")) == "vocabulary_hash"
    with pytest.raises(NotThere):
        device.install(device.bundle(vocabulary=b""))
    assert device.refusal(device.bundle(model=bytes(broken))) == "wrong_hash"
    assert device.refusal(device.bundle(model=device.toy.model[:-1])) == "wrong_size"
    device.release()
    assert device.refusal(device.bundle(signed_template=b"another")) in {"malformed", "template_missing"}


def test_a_flood_of_roots_is_refused_before_any_is_verified(device):
    root = device.repository.files["1.root.json"]
    assert device.refusal(device.bundle(roots=(root,) * 300)) == "malformed"


def test_cut_and_flipped_bundles_are_refused_or_change_nothing(device):
    data = device.bundle()
    edge = len(data) - len(device.toy.model)
    for cut in range(0, len(data), len(data) // 64):
        assert device.refusal(data[:cut]) == "malformed" if cut else True
    taken = 0
    for position in range(0, edge, max(1, edge // 60)):
        broken = bytearray(data)
        broken[position] ^= 1 << position % 8
        other = Device.__new__(Device)
        other.__dict__.update(device.__dict__ | {"home": device.home / str(position)})
        try:
            taken += other.install(bytes(broken)).version
            held = (other.home / "models" / f"{device.toy.manifest.sha256}.tflite").read_bytes()
            assert hashlib.sha256(held).hexdigest() == device.toy.manifest.sha256
        except (ManifestRefused, VersionRefused, NotThere):
            assert not list(other.home.rglob("*.tflite"))
    assert taken < 40


def test_a_bundle_that_ends_at_a_root_whose_keys_were_taken_away_is_refused(device):
    """The old targets keys leaked, and root 2 replaced them; the thief's bundle simply stops at root 1."""
    stolen = device.repository.keys["targets"]
    first = device.repository.files["1.root.json"]
    device.repository.rotate("targets")
    device.repository.publish()
    assert device.install().version == 1
    device.release()
    forged = device.repository.sign("targets", device.repository.targets, stolen)
    assert device.refusal(device.bundle(roots=(first,), targets=forged)) == "metadata_unsigned"
    # Nor with a second root of the old holders' own, which the device would have followed before.
    device.repository.root.version, device.repository.keys["targets"] = 1, stolen
    other = device.repository.new_root()
    assert device.refusal(device.bundle(roots=(first, other), targets=forged)) == "another_root"
    assert device.slot().version == 1


def test_numbers_that_stolen_keys_ran_up_are_forgotten_with_the_keys(device):
    device.repository.targets.version += 1_000_000
    device.repository.publish()
    assert device.install().version == 1
    device.repository.targets.version = 1
    device.repository.rotate("targets")
    device.release()
    device.repository.publish()
    assert device.install().version == 2
