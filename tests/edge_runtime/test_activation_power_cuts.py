"""A power cut at every boundary of installing, switching, booting, confirming and going back leaves A or B, whole."""

import shutil
from pathlib import Path

import pytest

from edge_runtime import activation
from edge_runtime.activation import BOOTS, Healthy, Unhealthy
from edge_runtime.model_slots import ModelSlots
from edge_runtime.trust import Keys
from tests.edge_runtime.crash_states import Disk
from tests.edge_runtime.fakes import FakeBroker, FakeClock, FakeDownloads, ToyAggregator
from tests.edge_runtime.power_cuts import memory_folder
from tests.edge_runtime.recorded_disk import contents, recording
from wire_contract import envelope


class Story:
    """Two refreshes on one device: A confirmed, then B on trial and confirmed, or rolled back, or crashing."""

    def __init__(self, home: Path):
        self.home, self.downloads = home, FakeDownloads()
        self.clock = FakeClock()
        self.toy = ToyAggregator(FakeBroker(), self.downloads, self.clock)
        self.slots = self.open(home)

    def open(self, home: Path) -> ModelSlots:
        keys = Keys(self.toy.manifest_key, envelope.public_bytes(self.toy.key))
        return ModelSlots(home, keys, "keyboard", "http://toy/", self.downloads, lambda data, manifest: None)

    def install(self) -> str:
        return self.slots.install(self.toy.signed, "refresh", self.clock.now()).sha256

    def boot(self, times: int = 1) -> None:
        for _ in range(times):
            assert self.slots.begin_boot() is not None
            self.slots.came_up()

    def release(self) -> None:
        signed, manifest, model = self.toy.next_version("refresh")
        self.toy.announce(signed, manifest, model, ("refresh",))
        self.toy.signed, self.toy.manifest, self.toy.model = signed, manifest, model


def confirmed(story: Story) -> None:
    story.boot(BOOTS)
    story.slots.change("refresh", Healthy("by this test"))


def unhealthy(story: Story) -> None:
    story.boot()
    story.slots.change("refresh", Unhealthy("too_slow"))


def crashing(story: Story) -> None:
    for _ in range(BOOTS + 1):
        story.slots.begin_boot()


def by_hand(story: Story) -> None:
    confirmed(story)
    story.slots.roll_back("refresh")


@pytest.mark.parametrize("ending", [confirmed, unhealthy, crashing, by_hand])
def test_every_power_cut_leaves_exactly_a_or_b(ending):
    with memory_folder() as folder:
        home, laid = folder / "home", folder / "laid"
        home.mkdir()
        states, judged = [], 0
        # What was told to somebody, and when: no power cut after it may take it back.
        promises = [(0, 0)]
        with recording(home, lambda operation: states.append(len(disk.log)) or 0) as disk:
            story = Story(home)
            a = story.install()
            story.boot()
            promises.append((len(disk.log), story.slots.slot("refresh").floor))
            story.release()
            b = story.install()
            ending(story)
            final = story.slots.slot("refresh")
            promises.append((len(disk.log), final.floor))
        model, applied = Disk(), 0
        seen = set()
        for point in (*states, len(disk.log)):
            for operation in disk.log[applied:point]:
                model.apply(operation)
            applied = max(applied, point)
            for _, tree in model.states():
                key = frozenset((path, hash(data)) for path, data in tree.items())
                if key in seen:
                    continue
                seen.add(key)
                slot = judge(story, laid, tree, {"": 0, a: 1, b: 2})
                judged += 1
                promised = max(floor for at, floor in promises if at <= applied)
                assert slot.floor >= promised, "the floor never falls"
                assert not promised or slot.current in (a, b), "A was confirmed: A or B is in use"
        assert model.now() == contents(home), "something wrote past the layer"
        assert judge(story, laid, model.now(), {"": 0, a: 1, b: 2}) == final
        assert judged > 60 and promises[1:] == [
            (promises[1][0], 1),
            (promises[2][0], 2 if ending in (confirmed, by_hand) else 1),
        ]


def judge(story, laid, tree, versions) -> activation.Slot:
    """Lay a state out, start over it as a device does, and return the slot; it is whole, and swept."""
    for path, data in tree.items():
        (laid / path).parent.mkdir(parents=True, exist_ok=True)
        (laid / path).write_bytes(data)
    try:
        slots = story.open(laid)
        slot = slots.slot("refresh")
        assert slot.current in versions and slot.previous in versions and slot.current != (slot.previous or None)
        if slot.current:
            held = slots.held(slot.current)
            assert held is not None, "what the slot names is here and whole"
            assert held.manifest.version == versions[slot.current]
        assert slot.version >= slot.floor and slot.begun - slot.came_up <= BOOTS
        slots.sweep()
        left = {path.stem for path in (laid / "models").glob("*.tflite")}
        assert left <= {slot.current, slot.previous}, "no third file"
        # A new start counts on, and the device can always go on from here.
        if slot.current:
            assert slots.begin_boot() is not None or slots.slot("refresh").stage is activation.Stage.EMPTY
        return slot
    finally:
        shutil.rmtree(laid, ignore_errors=True)
