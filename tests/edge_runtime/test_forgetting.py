"""Forgetting while an agent runs in the same home: whenever it comes, nothing of the text goes out after it."""

import dataclasses

import numpy as np
import pytest

from edge_runtime.adapters import checkpoints
from edge_runtime.adapters.state_store import StateStore
from edge_runtime.eligibility import Reading
from edge_runtime.ports import Forgotten
from edge_runtime.session import Phase
from edge_runtime.session_row import SessionRow
from tests.edge_runtime.fakes import Fuse, World


class Interruption(Fuse):
    """Does `act` at the `at`-th call of any port, as another process does something in between."""

    def __init__(self):
        super().__init__()
        self.at, self.act = None, None

    def burn(self):
        self.calls += 1
        if self.calls == self.at:
            self.act()


def session_on_disk(world):
    store = StateStore(world.home / "state.db")
    try:
        return SessionRow(store).load()
    finally:
        store.close()


def forget(world, word=None):
    other = world.another_process()
    if word is None:
        other.forget_everything()
    else:
        other.forget_word(word)
    other.abandon()


def nothing_is_left(world):
    assert world.agent.updates_waiting() == ()
    assert not (world.home / checkpoints.CHECKPOINT_FILE).exists()
    folder = world.home / "vectors"
    assert not folder.exists() or list(folder.iterdir()) == []
    store = StateStore(world.home / "state.db")
    assert store.connection.execute("SELECT COUNT(*) FROM vector").fetchone()[0] == 0
    store.close()


def night_with_a_cable_pulled(world):
    """A night whose training is interrupted after the second step and goes on: every kind of write happens."""
    world.agent.turn()
    world.aggregator.work()
    world.sensors.good_reads = 4
    world.agent.turn()
    world.sensors.good_reads = None
    world.night()


def test_forgetting_everything_at_any_call_of_any_port_leaves_nothing_to_be_sent(tmp_path):
    calm = World(tmp_path / "calm")
    calm.type_text(20)
    before = calm.fuse.calls
    night_with_a_cable_pulled(calm)
    assert len(calm.aggregator.updates) == 1
    calls = calm.fuse.calls - before
    calm.agent.abandon()
    unsent = 0
    for n in range(1, calls):
        world = World(tmp_path / str(n), fuse=Interruption())
        world.type_text(20)
        begun = []

        def act(world=world, begun=begun):
            state = session_on_disk(world)
            begun.append((state.phase is Phase.SENDING and state.attempts > 0) or bool(world.aggregator.updates))
            forget(world)

        world.fuse.act, world.fuse.at = act, world.fuse.calls + n
        night_with_a_cable_pulled(world)
        assert len(begun) == 1
        if not begun[0]:
            unsent += 1
            assert world.aggregator.updates == {}, f"forgotten at call {n}"
        assert world.agent.examples.count_words() == 0
        nothing_is_left(world)
        assert session_on_disk(world).offer is None and world.agent.state == session_on_disk(world)
        world.agent.abandon()
    assert unsent > 20


def test_a_training_in_memory_is_not_queued_after_another_process_forgot(tmp_path):
    world = World(tmp_path / "home")
    world.type_text()
    world.agent.turn()
    world.aggregator.work()

    class Sensors:
        def __init__(self, inner):
            self.inner, self.reads = inner, 0

        def read(self, now):
            self.reads += 1
            if self.reads == 4:
                forget(world)
            return self.inner.read(now)

    world.agent._ports = dataclasses.replace(world.agent._ports, sensors=Sensors(world.sensors))
    report = world.agent.turn()
    assert "forgotten" in report.refused and report.update_queued == ""
    assert report.phase == "resting"
    nothing_is_left(world)
    world.night()
    assert world.aggregator.updates == {}
    world.agent.abandon()


def test_a_running_agent_does_not_write_its_session_over_a_forgotten_one(tmp_path):
    store, other = StateStore(tmp_path / "state.db"), StateStore(tmp_path / "state.db")
    running, command = SessionRow(store), SessionRow(other)
    state = running.load()
    forgetful = command.forget()
    with pytest.raises(Forgotten):
        running.put(state)
    assert running.was_forgotten() and running.load() == forgetful
    running.put(state)
    store.close()
    other.close()


@pytest.mark.parametrize("in_vocabulary", [True, False])
def test_forgetting_a_word_takes_residual_lease_and_the_update_that_waits(tmp_path, in_vocabulary):
    world = World(tmp_path / "home")
    world.type_text()
    world.agent.turn()
    world.aggregator.work()
    world.sensors.good_reads = 1
    world.sensors.afterwards = dataclasses.replace(world.sensors.readings, metered=Reading(True))
    assert world.agent.turn().update_queued
    assert list((world.home / "vectors").iterdir()) != []
    word = world.agent.examples.sentences()[0].split()[0] if in_vocabulary else "zaphod"
    forget(world, word)
    nothing_is_left(world)
    world.sensors.good_reads = None
    first = world.agent.turn()
    assert first.phase == "checking_in" and not first.update_sent
    world.aggregator.work()
    world.night()
    (update,) = world.aggregator.updates.values()
    assert update.plain is not None, "another training, of the sentences that stay"
    world.agent.abandon()


def test_an_answer_about_a_forgotten_update_changes_nothing(tmp_path):
    world = World(tmp_path / "home")
    world.type_text()
    world.aggregator.verdict = "stale"
    world.agent.turn()
    world.aggregator.work()
    world.agent.turn()
    forget(world)
    world.aggregator.work()
    report = world.agent.turn()
    assert report.receipts == ()
    nothing_is_left(world)
    world.agent.abandon()


def test_a_checkpoint_that_a_killed_agent_left_behind_is_deleted_by_the_next(tmp_path):
    world = World(tmp_path / "home")
    world.type_text()
    from edge_runtime.local_training import Checkpoint

    rows = np.zeros((1, 3), np.int32)
    checkpoints.save(world.home, "1" * 32, Checkpoint({}, rows, 1, 0.0, 0.0))
    world.kill()
    world.agent.turn()
    assert not (world.home / checkpoints.CHECKPOINT_FILE).exists()
    world.agent.abandon()
