"""What an agent does, and does not, while a trainer in a process of its own works: here one that is played."""

import msgspec
import pytest

from edge_runtime.agent import Agent, Ports
from edge_runtime.jobs import CheckVersion, Died, Personalize, Personalized, Stopped, Train, UsedUp
from tests.edge_runtime.fakes import FakeTransport, World


class LongTrainer:
    """Works on a long job until `result` is set (with `trains`, a training is done at once); short ones are done by
    `inner`, and by nobody while it is busy."""

    def __init__(self, inner):
        self.inner, self.job, self.result, self.stopped = inner, None, None, False
        self.dies = self.trains = False

    runtime = "played"

    @property
    def busy(self):
        return self.job is not None

    def begin(self, job, may_go_on):
        self.job, self.stopped = job, False
        if self.trains and isinstance(job, Train):
            self.inner.begin(job, may_go_on)
            self.result = self.inner.poll()

    def poll(self):
        result, self.result = self.result, None
        if result is not None:
            self.job = None
        return result

    def stop(self):
        self.stopped = True

    def do(self, job):
        if self.busy or (self.dies and isinstance(job, CheckVersion)):
            return Died(reason="played")
        return self.inner.do(job)

    def take_used(self):
        return UsedUp()

    def close(self):
        self.inner.close()


class CountingTransport(FakeTransport):
    tried = waited = 0

    def connect(self, will, subscriptions):
        self.tried += 1
        super().connect(will, subscriptions)

    def receive(self, timeout_s):
        self.waited += 1
        return super().receive(timeout_s)


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path / "home")
    made.type_text()
    made.settings = msgspec.structs.replace(made.settings, personal=True)
    made.agent.abandon()
    made.trainer_port = LongTrainer(made.trainer())
    made.transport = CountingTransport(made.broker, "device", made.fuse)
    ports = Ports(made.clock, made.sensors, made.transport, made.downloads, made.trainer_port, made.entropy)
    made.agent = Agent(made.home, made.settings, ports)
    yield made
    made.agent.abandon()


def make_a_copy(world):
    """Let the agent be turned away, so that it begins a personal copy."""
    world.aggregator.turn_away = "enough"
    world.night()
    assert isinstance(world.trainer_port.job, Personalize)
    world.aggregator.turn_away = ""
    world.clock.time += 1300


def end(world):
    world.trainer_port.result = Personalized(accepted=False, reason="not better")


def test_while_a_personal_copy_is_in_the_making_no_work_is_asked_for(world):
    make_a_copy(world)
    asked = len(world.aggregator.check_ins)
    world.night()
    assert len(world.aggregator.check_ins) == asked and world.agent.works
    end(world)
    world.night()
    assert len(world.aggregator.check_ins) == asked + 1 and isinstance(world.trainer_port.job, Train)


def test_a_refresh_that_is_announced_while_the_trainer_works_is_installed_when_it_is_done(world):
    make_a_copy(world)
    world.aggregator.move_on(tracks=("refresh",), kind="refresh")
    fetched = len(world.downloads.requests)
    reports = world.night()
    assert len(world.downloads.requests) == fetched
    assert [name for report in reports for name in report.refused] == []
    end(world)
    world.night()
    assert world.agent.slots.slot("refresh").version == world.aggregator.manifest.version


def test_a_receipt_that_comes_while_the_trainer_works_is_heard_when_it_is_done(world):
    world.trainer_port.trains = world.aggregator.mute_receipts = True
    world.night()
    assert isinstance(world.trainer_port.job, Personalize) and world.agent.state.phase.value == "sending"
    (update,) = world.aggregator.updates
    world.aggregator.send_receipt(world.agent.identity.device, update, "accepted")
    waited = world.transport.waited
    assert world.agent.turn().connected and world.transport.waited == waited
    assert world.agent.state.phase.value == "sending"
    end(world)
    assert world.agent.turn().receipts == ("accepted",)


def test_while_the_trainer_works_no_connection_is_opened_and_a_condition_that_falls_stops_it(world):
    make_a_copy(world)
    world.transport.drop()
    # News of versions are due, too.
    world.clock.time += 7 * 3600
    tried = world.transport.tried
    world.night()
    assert world.transport.tried == tried and not world.trainer_port.stopped
    world.sensors.good_reads = 0
    world.agent.watch()
    assert world.trainer_port.stopped
    world.trainer_port.result = Stopped()
    world.sensors.good_reads = None
    world.night()
    assert world.transport.tried == tried + 1


def test_a_trainer_that_dies_at_a_check_costs_neither_the_version_nor_the_lease(world):
    world.aggregator.move_on()
    world.trainer_port.dies = True
    reports = world.night()
    assert "trainer_died" in [name for report in reports for name in report.refused]
    state = world.agent.state
    assert state.phase.value == "fetching" and state.offer is not None
    world.trainer_port.dies = False
    world.clock.time += 700
    world.night()
    assert isinstance(world.trainer_port.job, Train) and world.agent.state.offer == state.offer
    assert world.agent.slots.slot("training").version == world.aggregator.manifest.version


def test_a_refresh_that_could_not_be_checked_is_tried_again_and_not_forgotten(world):
    world.aggregator.turn_away = "enough"
    world.aggregator.move_on(tracks=("refresh",), kind="refresh")
    world.trainer_port.dies = True
    world.agent.turn()
    world.trainer_port.dies = False
    world.clock.time += 60
    world.agent.turn()
    assert world.agent.slots.slot("refresh").version == world.aggregator.manifest.version
