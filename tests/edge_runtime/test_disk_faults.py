"""A disk that fails in the middle of a night: memory follows the disk, and no part of an update is lost or doubled."""

import errno
import sqlite3

import numpy as np
import pytest

from edge_runtime.adapters import checkpoints
from edge_runtime.adapters.outbox import Outbox
from edge_runtime.adapters.state_store import StateStore
from edge_runtime.adapters.vectors import Vectors, unpack_kept
from edge_runtime.session import Phase
from edge_runtime.session_row import SessionRow, differ
from tests.edge_runtime.crash_story import Verdict
from tests.edge_runtime.disk_faults import run_faults
from tests.edge_runtime.fakes import World
from tests.edge_runtime.power_cuts import memory_folder
from tests.edge_runtime.recorded_disk import recording


def on_disk(world):
    """Return (session, residual + kept of all that waits, what waits) as another process reads them."""
    store = StateStore(world.home / "state.db")
    manifest = world.aggregator.manifest
    total = np.zeros(manifest.parameters, np.float64)
    residual = Vectors(world.home / "vectors", store).residual(manifest.layout_fingerprint, manifest.parameters)
    if residual is not None:
        total += residual.vector
    waiting = Outbox(store).waiting()
    for update_id in waiting:
        total += unpack_kept(Outbox(store).get(update_id).kept, manifest.parameters).dense()
    session = SessionRow(store).load()
    store.close()
    return session, total, waiting


@pytest.fixture
def memory():
    with memory_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a night without a fault queues: residual + kept."""
    world = World(tmp_path_factory.mktemp("calm") / "home")
    world.type_text()
    world.agent.turn()
    world.aggregator.work()
    world.aggregator.mute_receipts = True
    world.agent.turn()
    _, total, waiting = on_disk(world)
    assert len(waiting) == 1 and np.linalg.norm(total) > 0
    world.agent.abandon()
    return total


class FullDisk:
    """Has no room for what the functions in `sites` want written; `struck` says whether it was asked."""

    def __init__(self):
        self.sites = set()
        self.struck = []

    def before(self, operation):
        if operation.site in self.sites and operation.kind in ("create", "write"):
            self.struck.append(operation.site)
            return errno.ENOSPC
        return 0


@pytest.fixture
def full_disk(tmp_path):
    disk = FullDisk()
    with recording(tmp_path, disk.before):
        yield disk


# Who writes what: the session's row, the night's usage, and in the training's transaction all of it with the outbox.
SITES = {
    "session_journal.put": {0, 1, 2},
    "night_budget.record": {0, 1},
    "vectors.write": {1},
    "training_task.run": {1},
}


@pytest.mark.parametrize(("site", "turn"), [(site, turn) for site, turns in SITES.items() for turn in sorted(turns)])
def test_a_write_that_finds_no_room_is_done_again_and_the_delta_is_conserved(tmp_path, full_disk, whole, site, turn):
    world = World(tmp_path / "home")
    world.type_text()
    world.aggregator.mute_receipts = True
    for number in range(3):
        full_disk.sites = {site} if number == turn else set()
        report = world.agent.turn()
        if number == turn:
            assert full_disk.struck and set(report.refused) == {"storage_full"}
            session, _, _ = on_disk(world)
            assert not differ(session, world.agent.state), "memory is what the disk says"
        world.aggregator.work()
        world.clock.time += 10
    for _ in range(6):
        if not world.aggregator.updates:
            world.clock.time += 700
            world.agent.turn()
            world.aggregator.work()
    session, total, waiting = on_disk(world)
    assert session.phase is Phase.SENDING and len(waiting) == 1
    np.testing.assert_allclose(total, whole, atol=1e-7)
    (update,) = world.aggregator.updates.values()
    assert update.plain is not None
    world.agent.abandon()


def test_a_night_that_cannot_be_counted_on_the_disk_counts_all_the_same(tmp_path):
    world = World(tmp_path / "home")
    world.type_text()
    connection = world.agent._store.connection
    connection.execute(
        "CREATE TEMP TRIGGER full BEFORE INSERT ON usage BEGIN SELECT RAISE(FAIL, 'database or disk is full'); END"
    )
    report = world.agent.turn()
    assert report.bytes_up > 0 and "storage_full" in report.refused
    assert world.agent.usage(world.clock.time).sent_bytes == report.bytes_up
    connection.execute("DROP TRIGGER full")
    more = world.agent.turn().bytes_up
    store = StateStore(world.home / "state.db")
    rows = store.connection.execute("SELECT SUM(sent_bytes) FROM usage").fetchone()
    assert rows[0] == report.bytes_up + more
    store.close()
    world.agent.abandon()


@pytest.mark.parametrize("litter", ["checkpoint.npz", "vectors/old.npy"])
def test_a_file_that_cannot_be_deleted_after_queueing_does_not_undo_it(tmp_path, whole, litter):
    world = World(tmp_path / "home")
    world.type_text()
    world.agent.turn()
    world.aggregator.work()
    # A folder in its place cannot be unlinked, whoever asks.
    (world.home / litter).mkdir(parents=True)
    report = world.agent.turn()
    assert report.update_queued and report.phase == "sending"
    session, total, waiting = on_disk(world)
    assert waiting == (report.update_queued,) and session == world.agent.state
    np.testing.assert_allclose(total, whole, atol=1e-7)
    world.aggregator.work()
    assert world.agent.turn().receipts == ("accepted",)
    assert on_disk(world)[2] == ()
    world.agent.abandon()


def test_a_broken_example_store_stops_training_by_name_and_not_the_agent(tmp_path):
    world = World(tmp_path / "home")
    world.type_text()
    world.agent.close()
    for path in world.home.glob("examples.db*"):
        path.unlink()
    (world.home / "examples.db").write_bytes(b"x" * 8192)
    world.open()
    for _ in range(2):
        report = world.agent.turn()
        assert "storage_failed" in report.refused and report.phase == "resting"
        assert "disk" in report.reason
    world.agent.abandon()


def test_a_table_that_is_gone_from_the_example_store_is_a_failure_of_the_disk(tmp_path):
    world = World(tmp_path / "home")
    world.type_text()
    world.agent.close()
    connection = sqlite3.connect(world.home / "examples.db")
    connection.execute("DROP TABLE sentence")
    connection.commit()
    connection.close()
    world.open()
    assert "storage_failed" in world.agent.turn().refused
    world.agent.abandon()


def test_an_unreadable_session_row_does_not_end_the_agent(tmp_path):
    world = World(tmp_path / "home")
    world.type_text()
    store = StateStore(world.home / "state.db")
    store.put("session", b"\xc1", times_forgotten=0)
    assert "storage_failed" in world.agent.turn().refused
    store.close()
    assert not (world.home / checkpoints.CHECKPOINT_FILE).exists()
    world.agent.abandon()


def fill(world, *tables):
    for table in tables:
        world.agent._store.connection.execute(
            f"CREATE TEMP TRIGGER full_{table} BEFORE INSERT ON {table}"
            " BEGIN SELECT RAISE(FAIL, 'database or disk is full'); END"
        )


def make_room(world, *tables):
    for table in tables:
        world.agent._store.connection.execute(f"DROP TRIGGER full_{table}")


def test_what_could_not_be_written_is_not_true_in_memory_either(tmp_path):
    world = World(tmp_path / "home")
    world.type_text()
    world.aggregator.turn_away = "enough"
    world.agent.turn()
    world.aggregator.work()
    fill(world, "memory")
    assert "storage_full" in world.agent.turn().refused
    session, _, _ = on_disk(world)
    assert session.phase is world.agent.state.phase is Phase.CHECKING_IN
    make_room(world, "memory")
    world.kill()
    assert world.agent.turn().turned_away == "enough", "the reply was not acknowledged, so it came again"
    world.agent.abandon()


def test_a_full_disk_is_not_tried_again_at_once(tmp_path, full_disk):
    world = World(tmp_path / "home")
    world.type_text()
    world.agent.turn()
    world.aggregator.work()
    world.sensors.good_reads = 3
    assert world.agent.turn().interrupted
    world.sensors.good_reads = None
    full_disk.sites = {"training_task.run"}
    report = world.agent.turn()
    assert report.refused == ("storage_full",) and report.update_queued == ""
    full_disk.sites = set()
    assert world.agent.state.not_before > world.clock.time
    assert world.agent.turn().update_queued == ""
    world.clock.time += 600
    assert world.agent.turn().update_queued
    world.agent.abandon()


@pytest.mark.system
def test_an_operation_that_the_disk_refuses_is_said_by_name_and_done_again_whichever_it_is(memory):
    # `python -m benchmarks.crash_device --full` refuses every one of them.
    report = run_faults(memory, every=41)
    assert report.verdict == Verdict(), report.verdict.problems
    assert report.faults >= 60 and set(report.by_name) == {
        "ENOSPC once",
        "EIO once",
        "ENOSPC until there is room",
    }
    # What tidies up after a commit is not said: it is done again at the next start.
    assert report.said >= 0.8 * report.faults
