"""Refreshes by the signed repository: what a device with a pinned root takes, and every way to lie to it."""

import hashlib

import msgspec
import pytest

from edge_runtime.adapters.tuf_client import MAX_ROOTS, TufRepository
from edge_runtime.model_slots import ModelSlots
from edge_runtime.ports import Unreachable
from edge_runtime.repository_trust import Listing, Target, check_listed, pinned_root
from edge_runtime.trust import Keys, ManifestRefused
from tests.edge_runtime.fakes import MIDNIGHT, FakeBroker, FakeClock, FakeDownloads, ToyAggregator
from tests.edge_runtime.signed_repository import DAY, SignedRepository, signers
from wire_contract import envelope
from wire_contract.manifest import encode_manifest
from wire_contract.trust_roles import METADATA_PATH, REFRESHES, refresh_target, template_target


class Device:
    """Slots over a folder with a pinned root, a server, and the repository behind it."""

    def __init__(self, home):
        self.home, self.clock, self.downloads = home, FakeClock(), FakeDownloads()
        self.toy = ToyAggregator(FakeBroker(), self.downloads, self.clock)
        self.repository = SignedRepository()
        self.pinned = self.repository.files["1.root.json"]
        self.template = self.toy.signed
        self.repository.list_template(self.toy.manifest.population, self.toy.manifest.template_sha256, self.template)
        self.repository.list_refresh("keyboard", self.toy.signed)
        self.publish()
        self.open()

    def open(self):
        root = pinned_root(self.home, self.pinned)
        self.client = TufRepository(self.home, root, "http://toy/", self.downloads)
        keys = Keys(self.toy.manifest_key, envelope.public_bytes(self.toy.key))
        self.slots = ModelSlots(
            self.home, keys, "keyboard", "http://toy/", self.downloads, lambda data, manifest: None,
            repository=self.client,
        )  # fmt: skip

    def publish(self, *roles):
        self.repository.publish(*roles)
        self.repository.serve(self.downloads.files)

    def release(self, **changes):
        """Make the next refresh and list it."""
        signed, manifest, model = self.toy.next_version("refresh", **changes)
        self.toy.announce(signed, manifest, model, ("refresh",))
        self.toy.manifest, self.toy.model, self.toy.signed = manifest, model, signed
        self.repository.list_refresh("keyboard", signed)
        self.publish(REFRESHES)

    def install(self, signed=b""):
        return self.slots.install(signed or self.toy.signed, "refresh", self.clock.now())

    def refusal(self, signed=b""):
        before, models = self.slots.slot("refresh"), sorted(path.name for path in (self.home / "models").glob("*"))
        with pytest.raises(ManifestRefused) as caught:
            self.install(signed)
        assert self.slots.slot("refresh") == before, "a refusal leaves the slot"
        assert sorted(path.name for path in (self.home / "models").glob("*")) == models, "nothing is fetched for it"
        return caught.value.reason

    def asked(self):
        return [path.removeprefix(METADATA_PATH + "/") for path, _ in self.downloads.requests if METADATA_PATH in path]


@pytest.fixture
def device(tmp_path):
    return Device(tmp_path)


def test_a_refresh_that_the_repository_lists_is_installed(device):
    assert device.install().version == 1
    device.release()
    assert device.install().version == 2
    assert device.slots.current("refresh").data == device.toy.model


def test_a_refresh_that_is_held_already_asks_nobody(device):
    device.install()
    device.downloads.requests.clear()
    device.install()
    assert device.downloads.requests == []


def test_metadata_that_an_announcement_carried_spare_the_server_all_but_the_next_root(device):
    device.client.carried = device.repository.current()
    device.install()
    assert device.asked() == ["2.root.json"]


def test_with_carried_metadata_a_refresh_is_checked_while_http_is_away(device):
    device.install()
    device.release()
    model = device.downloads.files.pop(f"/v1/models/{device.toy.manifest.sha256}")
    device.downloads.files[f"/v1/models/{device.toy.manifest.sha256}"] = model
    for path in [path for path in device.downloads.files if path.startswith(METADATA_PATH)]:
        del device.downloads.files[path]
    device.client.carried = device.repository.current()
    assert device.install().version == 2


def test_an_announcement_with_stale_metadata_does_not_keep_the_refresh_away(device):
    stale = device.repository.current()
    device.install()
    device.release()
    device.client.carried = stale | {"timestamp.json": stale["timestamp.json"]}
    assert device.install().version == 2


def test_a_server_that_does_not_answer_is_unreachable_and_nothing_is_refused(device):
    device.downloads.up = False
    with pytest.raises(Unreachable):
        device.slots.repository.listing("keyboard", device.clock.now(), {})


def test_a_refresh_that_nobody_listed_is_no_target_though_the_aggregator_signed_it(device):
    device.install()
    signed, manifest, model = device.toy.next_version("refresh")
    device.toy.announce(signed, manifest, model, ("refresh",))
    assert device.refusal(signed) == "wrong_target"
    del device.repository.refreshes.targets[refresh_target("keyboard")]
    device.publish(REFRESHES)
    assert device.refusal(signed) == "not_a_target"


def test_a_template_that_two_of_three_did_not_sign_is_refused_even_with_the_exporters_key(device):
    del device.repository.targets.targets[
        template_target(device.toy.manifest.population, device.toy.manifest.template_sha256)
    ]
    device.publish()
    assert device.refusal() == "template_not_a_target"


def test_a_template_in_a_delegated_role_does_not_count(device):
    path = template_target(device.toy.manifest.population, device.toy.manifest.template_sha256)
    device.repository.refreshes.targets[path] = device.repository.targets.targets.pop(path)
    device.publish()
    assert device.refusal() == "template_not_a_target"


def test_the_listed_template_is_the_very_manifest_that_the_exporter_signed(device):
    device.install()
    device.repository.list_template(
        device.toy.manifest.population, device.toy.manifest.template_sha256, b"another manifest"
    )
    device.publish()
    device.release()
    assert device.refusal() == "wrong_template_target"


def test_another_populations_listing_is_not_this_ones(device):
    device.repository.refreshes.targets.clear()
    device.repository.list_refresh("cameras", device.toy.signed)
    device.publish(REFRESHES)
    assert device.refusal() == "not_a_target"


def test_a_timestamp_of_yesterday_is_refused_as_rolled_back(device):
    device.install()
    old = device.repository.files["timestamp.json"]
    device.release()
    device.install()
    device.toy.move_on(("refresh",), "refresh")
    device.downloads.files[f"{METADATA_PATH}/timestamp.json"] = old
    assert device.refusal() == "metadata_rolled_back"
    device.open()
    assert device.refusal() == "metadata_rolled_back", "a restart remembers"


def test_a_snapshot_that_goes_back_under_a_new_timestamp_is_refused_as_rolled_back(device):
    device.install()
    device.release()
    device.install()
    device.repository.refreshes.version -= 1
    device.repository.publish("none")
    device.repository.serve(device.downloads.files)
    device.toy.move_on(("refresh",), "refresh")
    assert device.refusal() == "metadata_rolled_back"


def test_metadata_of_two_times_do_not_mix(device):
    device.install()
    old = dict(device.repository.files)
    device.release()
    name = f"{device.repository.refreshes.version}.{REFRESHES}.json"
    device.downloads.files[f"{METADATA_PATH}/{name}"] = old[
        f"{device.repository.refreshes.version - 1}.{REFRESHES}.json"
    ]
    assert device.refusal() == "metadata_mixed"
    device.repository.serve(device.downloads.files)
    assert device.install().version == 2


def test_a_frozen_repository_is_refused_when_its_timestamp_expires(device):
    device.install()
    device.release()
    device.clock.time += 15 * DAY
    assert device.refusal() == "metadata_expired"


def test_the_devices_own_clock_judges_expiry_whatever_the_systems_says(tmp_path):
    # Metadata of a simulated year 2001, expired for the system's clock: if tuf keeps its time elsewhere, this fails.
    device = Device(tmp_path)
    device.repository.now = 1_000_000_000.0
    device.publish()
    with pytest.raises(ManifestRefused) as caught:
        device.client.listing("keyboard", float(MIDNIGHT), {})
    assert caught.value.reason == "metadata_expired"
    device.repository.new_root(())
    fresh = Device(tmp_path / "other")
    fresh.repository = SignedRepository(1_000_000_000.0)
    fresh.pinned = fresh.repository.files["1.root.json"]
    fresh.home = tmp_path / "third"
    fresh.open()
    fresh.repository.serve(fresh.downloads.files)
    assert fresh.client.listing("keyboard", 1_000_000_000.0, {}).current is None


@pytest.mark.parametrize("role", ["targets", REFRESHES, "snapshot", "timestamp"])
def test_metadata_below_the_threshold_are_refused_as_unsigned(device, role):
    device.install()
    keys = device.repository.keys[role]
    device.repository.keys[role] = [keys[0], *signers(2)] if len(keys) > 1 else signers(1)
    signed, manifest, model = device.toy.next_version("refresh")
    device.toy.announce(signed, manifest, model, ("refresh",))
    device.repository.list_refresh("keyboard", signed)
    device.publish()
    assert device.refusal(signed) == "metadata_unsigned"


def test_one_key_that_signs_twice_is_still_one(device):
    device.install()
    keys = device.repository.keys["targets"]
    device.repository.keys["targets"] = [keys[0], keys[0]]
    device.release()
    device.publish("targets", REFRESHES)
    assert device.refusal() == "metadata_unsigned"


def test_the_online_role_that_lists_a_templates_path_is_not_asked(device):
    path = template_target("keyboard", "0" * 64)
    device.repository.list_refresh("keyboard", device.toy.signed)
    device.repository.refreshes.targets[path] = device.repository.targets.targets[
        template_target(device.toy.manifest.population, device.toy.manifest.template_sha256)
    ]
    device.publish(REFRESHES)
    assert path not in device.client.listing("keyboard", device.clock.now(), {}).templates


def test_keys_that_were_replaced_sign_nothing_any_more_and_the_new_ones_do(device):
    device.install()
    old = device.repository.keys["timestamp"]
    device.repository.rotate("timestamp")
    device.release()
    assert device.install().version == 2
    device.repository.keys["timestamp"] = old
    device.release()
    assert device.refusal() == "metadata_unsigned"


def test_a_chain_of_rotated_roots_is_followed_and_kept(device):
    device.install()
    for role in ("root", "targets", "root", "timestamp"):
        device.repository.rotate(role)
        device.publish()
    device.release()
    assert device.install().version == 2
    assert (device.home / "trust" / "5.root.json").read_bytes() == device.repository.files["5.root.json"]


def test_a_root_that_the_old_keys_did_not_sign_is_refused(device):
    device.install()
    device.repository.keys["root"] = signers(3)
    device.repository.new_root()
    device.release()
    assert device.refusal() == "metadata_unsigned"


def test_a_flood_of_roots_is_read_to_a_limit_and_the_rest_is_not_asked_for(device):
    device.install()
    for _ in range(300):
        device.repository.new_root()
    device.release()
    device.downloads.requests.clear()
    device.install()
    roots = [name for name in device.asked() if name.endswith("root.json")]
    assert len(roots) == MAX_ROOTS and max(int(name.partition(".")[0]) for name in roots) == MAX_ROOTS + 1


@pytest.mark.parametrize("name", ["timestamp.json", "2.root.json", "snapshot", "targets"])
def test_garbage_and_floods_in_place_of_metadata_are_refused_by_name(device, name):
    repository = device.repository
    full = {"snapshot": f"{repository.snapshot.version}.snapshot.json",
            "targets": f"{repository.targets.version}.targets.json"}.get(name, name)  # fmt: skip
    for garbage in (b"", b"{}", b"[" * 100_000, b"\x00" * 5000, b'{"signed": 1, "signatures": []}', b"x" * 300_000):
        device.downloads.files[f"{METADATA_PATH}/{full}"] = garbage
        assert device.refusal() in {"metadata_malformed", "metadata_mixed", "metadata_too_large"}
    device.downloads.files.pop(f"{METADATA_PATH}/{full}")
    if name != "2.root.json":
        assert device.refusal() == "metadata_missing"


def test_flipped_bits_in_metadata_list_the_same_or_are_refused(device):
    honest = device.client.listing("keyboard", device.clock.now(), {})
    taken = 0
    for name in device.repository.current():
        data = device.repository.files[name]
        for position in range(0, len(data), max(1, len(data) // 40)):
            broken = bytearray(data)
            broken[position] ^= 1 << position % 8
            device.downloads.files[f"{METADATA_PATH}/{name}"] = bytes(broken)
            client = TufRepository(
                device.home / "fresh" / f"{name}{position}", device.pinned, "http://toy/", device.downloads
            )
            try:
                assert client.listing("keyboard", device.clock.now(), {}) == honest
                taken += 1
            except ManifestRefused as e:
                assert e.reason.startswith("metadata_")
        device.downloads.files[f"{METADATA_PATH}/{name}"] = data
    assert taken, "a flip in a spare signature changes nothing"


def test_a_root_once_pinned_stays_whatever_a_later_enrolment_says(tmp_path):
    other = SignedRepository()
    assert pinned_root(tmp_path, b"") == b""
    first = pinned_root(tmp_path, other.files["1.root.json"])
    assert pinned_root(tmp_path, b"") == first and pinned_root(tmp_path, b"another") == first


def test_a_stolen_aggregator_key_cannot_bring_another_graph_with_the_online_roles(device):
    """The aggregator's key, the timestamp's, the snapshot's and the refreshes' are stolen: only weights can change."""
    device.install()
    changed = msgspec.structs.replace(device.toy.manifest.golden, logit_tolerance=100.0)
    device.release(golden=changed)
    assert device.refusal() == "outside_template"


def test_an_exporters_second_manifest_of_a_listed_template_may_only_patch_as_well(device):
    listed, second = device.template, encode_manifest(device.toy.manifest) + b"another"
    path = template_target(device.toy.manifest.population, device.toy.manifest.template_sha256)
    listing = Listing(target_of(second), {path: target_of(listed)})
    check_listed(second, device.toy.manifest, listing, lambda: listed)
    other = msgspec.structs.replace(device.toy.manifest, needs=("family:next-word",))
    with pytest.raises(ManifestRefused) as caught:
        check_listed(second, other, listing, lambda: listed)
    assert caught.value.reason == "outside_template"


def target_of(data):
    return Target(len(data), hashlib.sha256(data).hexdigest())


def test_a_root_that_was_seen_is_not_forgotten_when_a_server_hides_it(device):
    """Keys of root 1 were stolen, root 2 replaced them, and the thief's server ends at root 1 with newer metadata."""
    stolen = dict(device.repository.keys)
    for role in ("targets", "snapshot", "timestamp"):
        device.repository.rotate(role)
    device.publish()
    device.install()
    device.repository.keys |= {role: stolen[role] for role in ("targets", "snapshot", "timestamp")}
    device.release()
    for number in (2, 3, 4):
        del device.downloads.files[f"{METADATA_PATH}/{number}.root.json"]
    device.open()
    assert device.refusal() == "metadata_unsigned"


def test_an_announcement_of_thousands_of_files_is_looked_up_and_not_read_through(device):
    """What a broker carries is bytes by name; a name that nobody asks for costs nothing and leads nowhere."""
    device.client.carried = {f"../{number}.root.json": b"{" for number in range(5000)} | {"2.root.json": b"{"}
    device.install()
    assert sorted(path.name for path in (device.home / "trust").iterdir() if "root" in path.name) == ["1.root.json"]
