"""A refresh on trial with the trainer as it is on a device: a process of its own, which a bad version may kill."""

import sys

import pytest

from edge_runtime.activation import BOOTS, Stage
from edge_runtime.adapters.child_trainer import PROGRAM, ChildTrainer, TrainerTerms
from edge_runtime.turn_report import Notes
from edge_runtime.version_keeper import VersionKeeper
from tests.edge_runtime.fakes import World

# The trainer, but where a version's health is judged the process dies as a native crash ends it.
CRASHING = """
import os, signal, sys
from edge_runtime import model_health_task, trainer
model_health_task.run = lambda *arguments: os.kill(os.getpid(), signal.SIGSEGV)
trainer.main()
"""


class ChildWorld(World):
    program = PROGRAM

    def trainer(self):
        return ChildTrainer(self.home, self.clock, TrainerTerms(gives_way=False), program=self.program)


class Device:
    """A keeper over a world's home, whose versions are checked and tried out by a child."""

    def __init__(self, folder):
        self.world = ChildWorld(folder)
        self.open()
        self.keeper.fetch_refresh()

    def open(self):
        self.world.kill()
        agent, world = self.world.agent, self.world
        bench = agent._bench
        self.keeper = VersionKeeper(
            world.home, agent.enrolled, world.downloads, world.clock, bench.check, bench.rebuild, try_out=bench.try_out
        )

    def turn(self):
        self.keeper.notes = Notes()
        self.keeper.install_refresh(lambda: 0.5)
        return self.keeper.notes.refused

    def release(self):
        aggregator = self.world.aggregator
        aggregator.move_on(("refresh",), "refresh")
        self.keeper.announce("refresh", aggregator.signed)
        self.turn()

    @property
    def slot(self):
        return self.keeper.slots.slot("refresh")


@pytest.fixture
def device(tmp_path):
    made = Device(tmp_path / "home")
    yield made
    made.world.agent.abandon()


def test_a_good_refresh_is_confirmed_after_three_starts_of_the_trainer(device):
    assert (device.slot.stage, device.slot.floor) == (Stage.SETTLED, 1)
    device.release()
    for _ in range(BOOTS):
        assert device.slot.stage is Stage.TRIAL
        assert device.turn() == []
    assert (device.slot.stage, device.slot.floor) == (Stage.SETTLED, 2)
    assert "times the latency" in device.slot.said and "perplexity not compared" in device.slot.said


def test_a_refresh_that_kills_the_trainer_three_times_ends_in_the_one_before(device):
    first = device.slot.current
    device.release()
    ChildWorld.program = (sys.executable, "-c", CRASHING)
    try:
        for started in range(1, BOOTS + 1):
            device.open()
            assert device.turn() == ["trainer_died"]
            assert (device.slot.stage, device.slot.begun) == (Stage.TRIAL, started)
        device.open()
        assert "rolled_back: did_not_come_up" in device.turn()
        assert device.slot.current == first and device.slot.floor == 1
    finally:
        ChildWorld.program = PROGRAM
