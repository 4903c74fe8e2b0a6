"""A refresh on trial, as the keeper and the processes that use it live through it."""

import errno

import pytest

from edge_runtime.activation import BOOTS, Stage
from edge_runtime.adapters.files import write_atomically
from edge_runtime.model_health import Health
from edge_runtime.ports import RuntimeFailed
from edge_runtime.trust import Keys
from edge_runtime.turn_report import Notes
from edge_runtime.version_keeper import VersionKeeper
from tests.edge_runtime.disk_faults import NEEDS_ROOM
from tests.edge_runtime.fakes import FakeBroker, FakeClock, FakeDownloads, ToyAggregator
from tests.edge_runtime.recorded_disk import recording
from tests.edge_runtime.signed_repository import SignedRepository
from wire_contract import envelope
from wire_contract.messages import Enrolled


class Device:
    """A keeper with a trainer that says what the test wants; `asked` is what it was to try out."""

    def __init__(self, home):
        self.home, self.clock, self.downloads = home, FakeClock(), FakeDownloads()
        self.toy = ToyAggregator(FakeBroker(), self.downloads, self.clock)
        self.asked = []
        self.health = Health(said="1.00 times the latency")
        self.dies = False
        self.open()

    def open(self):
        enrolled = Enrolled(
            device="0" * 32, population="keyboard", aggregator_key=envelope.public_bytes(self.toy.key),
            manifest_key=self.toy.manifest_key, broker_url="mqtt://127.0.0.1:1", model_url="http://toy/", shard=0,
            issued_at=0,
        )  # fmt: skip
        assert Keys(enrolled.manifest_key, enrolled.aggregator_key)
        self.keeper = VersionKeeper(
            self.home, enrolled, self.downloads, self.clock, lambda data, manifest: None,
            lambda *arguments: (_ for _ in ()).throw(AssertionError("no delta here")), try_out=self.try_out,
        )  # fmt: skip
        self.slots = self.keeper.slots

    def try_out(self, sha256, before):
        self.asked.append((sha256, before))
        # The start is on the disk before anything is opened.
        assert self.slots.slot("refresh").begun > self.slots.slot("refresh").came_up
        if self.dies:
            raise RuntimeFailed("the trainer was ended by signal 11")
        return self.health

    def turn(self):
        self.keeper.notes = Notes()
        self.keeper.install_refresh(lambda: 0.5)
        return self.keeper.notes

    def release(self):
        signed, self.toy.manifest, self.toy.model = self.toy.next_version("refresh")
        self.toy.announce(signed, self.toy.manifest, self.toy.model, ("refresh",))
        self.keeper.announce("refresh", signed)

    @property
    def slot(self):
        return self.slots.slot("refresh")


@pytest.fixture
def device(tmp_path):
    made = Device(tmp_path)
    made.keeper.announce("refresh", made.toy.signed)
    made.turn()
    made.asked.clear()
    return made


def test_the_first_version_is_confirmed_in_the_turn_that_brought_it(device):
    assert device.slot.stage is Stage.SETTLED and device.slot.floor == 1


def test_a_refresh_is_started_once_a_turn_and_judged_after_the_third_start(device):
    first = device.slot.current
    device.release()
    assert device.turn().versions == [("refresh", 2)] and device.asked == []
    for _ in range(BOOTS):
        assert (device.slot.stage, device.slot.floor, device.keeper.versions[1]) == (Stage.TRIAL, 1, 2)
        device.turn()
    assert [before for _, before in device.asked] == ["", "", first]
    assert (device.slot.stage, device.slot.floor) == (Stage.SETTLED, 2) and "latency" in device.slot.said
    device.turn()
    assert len(device.asked) == BOOTS, "a confirmed version is left alone"


def test_an_unhealthy_refresh_goes_back_by_itself_is_told_and_never_comes_again(device):
    first = device.slot.current
    device.release()
    device.turn()
    device.health = Health("worse_on_your_text", "1.2 times")
    notes = device.turn()
    assert notes.refused == ["rolled_back: worse_on_your_text"] and notes.versions == [("refresh", 1)]
    assert (device.slot.current, device.slot.floor) == (first, 1)
    assert "version 2 rolled back: worse_on_your_text" in device.keeper.trial_said
    device.keeper.announce("refresh", device.downloads.files["/v1/populations/keyboard/refresh"])
    assert device.turn().refused == ["rolled_back"] and device.slot.current == first
    assert [path.stem for path in (device.home / "models").glob("*.tflite")] == [first]


def test_a_refresh_that_kills_its_process_three_times_is_gone_at_the_fourth_start(device):
    first = device.slot.current
    device.release()
    device.turn()
    device.dies = True
    for _ in range(BOOTS):
        assert device.turn().refused == ["trainer_died"] and device.slot.current != first
    device.open()
    # Its announcement, which is fetched again after the restart, is refused before anything of it is fetched.
    assert device.turn().refused == ["rolled_back: did_not_come_up", "rolled_back"] and device.slot.current == first
    assert len(device.asked) == BOOTS


def test_starts_of_other_processes_count_and_a_crash_loop_there_ends_in_a_too(device):
    first = device.slot.current
    device.release()
    device.turn()
    for _ in range(BOOTS):
        keyboard = Device(device.home)
        assert keyboard.slots.begin_boot().manifest.version == 2
    keyboard = Device(device.home)
    assert keyboard.slots.begin_boot().manifest.version == 1
    assert device.slot.current == first, "the agent sees what the other process wrote"
    assert keyboard.slots.begin_boot().manifest.version == 1 and keyboard.slots.came_up().floor == 1


def test_a_file_that_is_lost_on_trial_goes_back_and_is_fetched_again(device):
    device.release()
    device.turn()
    (device.home / "models" / f"{device.slot.current}.tflite").unlink()
    assert device.turn().refused == ["rolled_back: file_lost"] and device.slot.version == 1
    device.keeper.announce("refresh", device.downloads.files["/v1/populations/keyboard/refresh"])
    device.turn()
    assert device.slot.version == 2 and device.slot.on_trial


def test_a_newer_refresh_takes_the_place_of_one_on_trial(device):
    first = device.slot.current
    for _ in range(2):
        device.release()
        device.turn()
    assert (device.slot.version, device.slot.previous, device.slot.floor) == (3, first, 1)
    for _ in range(BOOTS):
        device.turn()
    assert (device.slot.stage, device.slot.floor) == (Stage.SETTLED, 3)
    assert len(list((device.home / "models").glob("*.tflite"))) == 2


def test_a_slot_file_of_an_older_release_counts_as_confirmed(device):
    path = device.home / "slots" / "refresh.json"
    slot = device.slot
    path.write_text(f'{{"current": "{slot.current}", "previous": "", "version": 1, "sha256": "{slot.sha256}"}}')
    device.open()
    assert (device.slot.stage, device.slot.floor, device.slot.floor_sha256) == (Stage.SETTLED, 1, slot.sha256)


def test_on_a_full_disk_a_version_on_trial_is_not_started_and_the_one_before_is_used(device):
    confirmed = device.slot.current
    device.release()
    device.turn()
    before, asked = device.slot, len(device.asked)
    with recording(device.home, lambda operation: errno.ENOSPC if operation.kind in NEEDS_ROOM else 0):
        assert device.slots.begin_boot().manifest.sha256 == confirmed
        assert device.slots.came_up(sha256=confirmed) == before
        assert "storage_full" in device.turn().refused
    assert (device.slot, len(device.asked)) == (before, asked)
    assert device.slots.begin_boot().manifest.sha256 == before.current and device.slot.begun == before.begun + 1


def test_where_a_root_is_pinned_a_training_version_never_reaches_the_keyboard(tmp_path):
    device = Device(tmp_path / "free")
    device.slots.install(device.toy.signed, "training", device.clock.now())
    assert device.keeper.current().manifest.version == 1
    pinned = Device(tmp_path / "pinned")
    write_atomically(tmp_path / "pinned" / "trust" / "pinned.json", SignedRepository().files["1.root.json"])
    pinned.open()
    pinned.slots.install(pinned.toy.signed, "training", pinned.clock.now())
    assert pinned.slots.current("training") is not None and pinned.keeper.current() is None


def test_without_anything_to_try_it_out_a_version_waits_for_who_uses_it(tmp_path):
    device = Device(tmp_path)
    device.keeper._try_out = None
    device.keeper.announce("refresh", device.toy.signed)
    device.turn()
    assert device.slot.on_trial and device.slots.begin_boot().manifest.version == 1
    assert device.slots.came_up().stage is Stage.SETTLED


@pytest.mark.parametrize("verdict", [Health(said="1.00 times the latency"), Health("too_slow", "4 times")])
def test_a_verdict_on_one_version_neither_confirms_nor_blames_one_that_was_installed_meanwhile(device, verdict):
    device.release()
    for _ in range(BOOTS - 1):
        device.turn()
    judged = device.slot.current
    signed, device.toy.manifest, device.toy.model = device.toy.next_version("refresh")
    device.toy.announce(signed, device.toy.manifest, device.toy.model, ("refresh",))

    def try_out(sha256, before):
        # The other process: `edge-runtime models install-offline`, while this one measures.
        device.slots.install(signed, "refresh", device.clock.now())
        return verdict

    device.keeper._try_out = try_out
    assert "another_version" in device.turn().refused
    assert device.slot.on_trial and device.slot.current == device.toy.manifest.sha256 != judged
    assert (device.slot.floor, device.slot.came_up, device.slot.bad) == (1, 0, ())
    assert device.slots.came_up(sha256=judged).came_up == 0
