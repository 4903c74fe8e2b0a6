"""Forgetting while an agent runs in the same home: whenever it comes, nothing of the text goes out after it."""

import dataclasses
import sqlite3
from contextlib import closing

import msgspec
import pytest

from edge_runtime import personal_task
from edge_runtime.adapters import checkpoints, personal_records
from edge_runtime.adapters.personal_records import MixtureRecord
from edge_runtime.adapters.state_store import StateStore
from edge_runtime.eligibility import Reading
from edge_runtime.mixture import BUCKETS, COMPONENTS, Mixture
from edge_runtime.ports import Forgotten
from edge_runtime.session import Phase
from edge_runtime.session_row import SessionRow
from tests.edge_runtime.fakes import RUNTIME, Fuse, World


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
    assert list(world.home.glob("checkpoint*")) == []
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

    world.plugged = Sensors(world.sensors)
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
    for name in (*checkpoints.CHECKPOINT_FILES, checkpoints.EARLIER_FILE):
        (world.home / name).write_bytes(b"what a training left")
    world.kill()
    world.agent.turn()
    assert list(world.home.glob("checkpoint*")) == []
    world.agent.abandon()


SECRET_WORDS = ("zaphodius", "mirabella")
WINDOW = 32


def personalize(world):
    """Make the copy and remember learned weights, as trainer and keyboard do."""
    with closing(StateStore(world.home / "state.db")) as store:
        made = personal_task.run(
            world.home, world.agent.slots, RUNTIME, world.agent.examples, store,
            times_forgotten=store.times_forgotten(), seed=1, may_go_on=lambda: True,
        )  # fmt: skip
        assert made.accepted, made.reason
        mixture = Mixture()
        for number in range(200):
            mixture = mixture.learned(number % len(BUCKETS), (0.1, 0.5, 0.02 * (number % 7), 0.3))
        record = MixtureRecord(components=COMPONENTS, rows=mixture.rows)
        personal_records.write(world.home, store, store.times_forgotten(), record)


def live_a_while(world, *, queued):
    """Leave everything that is made of text on the disk: residual, copy, weights, and a checkpoint or an update."""
    world.type_text()
    world.agent.examples.add_many(
        [f"{SECRET_WORDS[0]} {SECRET_WORDS[0]} {SECRET_WORDS[1]} bababa {SECRET_WORDS[1]}"] * 3, world.clock.time
    )
    world.night()
    assert len(world.aggregator.updates) == 1 and list((world.home / "vectors").iterdir())
    personalize(world)
    world.clock.time += 5 * 86_400
    world.agent.turn()
    world.aggregator.work()
    if queued:
        world.sensors.good_reads = 1
        world.sensors.afterwards = dataclasses.replace(world.sensors.readings, metered=Reading(True))
    else:
        world.sensors.good_reads = 3
    world.agent.turn()
    assert bool(world.agent.updates_waiting()) == queued
    assert bool(list(world.home.glob("checkpoint*"))) != queued
    # A process that was killed while it wrote.
    for folder in ("", "personal", "vectors"):
        (world.home / folder / ".half-written.4194304.tmp").write_bytes(bytes(range(64)) * 4)


def artefacts(world):
    """Return the bytes of all that was made of text, by where they lie."""
    found = {}
    for pattern in ("checkpoint*", "vectors/*", "personal/*", ".*.tmp", "*/.*.tmp"):
        for path in world.home.glob(pattern):
            found[str(path.relative_to(world.home))] = path.read_bytes()
    with closing(sqlite3.connect(world.home / "state.db")) as connection:
        for table, column in (("outbox", "init"), ("outbox", "kept"), ("chunk", "data")):
            for number, (data,) in enumerate(connection.execute(f"SELECT {column} FROM {table}").fetchall()):
                found[f"{table} {column} {number}"] = data
    with closing(sqlite3.connect(world.home / "examples.db")) as connection:
        for table, column in (("sentence", "sealed"), ("day_key", "wrapped"), ("sighting", "sealed")):
            for number, (data,) in enumerate(connection.execute(f"SELECT {column} FROM {table}").fetchall()):
                if data is not None:
                    found[f"{table} {column} {number}"] = data
    return found


def windows_of(data, public):
    """Return each 32-byte piece of `data` that is its own: no filling, and in no file that everybody may read."""
    pieces = (data[i : i + WINDOW] for i in range(0, max(1, len(data) - WINDOW + 1), WINDOW))
    return [piece for piece in pieces if len(set(piece)) > 6 and piece not in public]


def home_bytes(world):
    return b"".join(path.read_bytes() for path in sorted(world.home.rglob("*")) if path.is_file())


def found_in(windows, data):
    return {where for where, pieces in windows.items() if any(piece in data for piece in pieces)}


@pytest.mark.parametrize("queued", [True, False], ids=["an update waits", "a training was interrupted"])
@pytest.mark.parametrize("word", [None, "zaphodius", "bababa"], ids=["everything", "an own word", "a known word"])
def test_what_was_made_of_text_is_in_no_byte_of_the_home_after_it_was_forgotten(tmp_path, queued, word):
    world = World(tmp_path / "home")
    live_a_while(world, queued=queued)
    stays = ("models", "manifests", "templates", "vocabularies", "slots")
    public = b"".join(path.read_bytes() for name in stays for path in sorted((world.home / name).rglob("*.*")))
    # Who the device is stays, and the history: that names leases and updates, and nothing of what they said.
    public += (world.home / "enrolled.bin").read_bytes()
    with closing(sqlite3.connect(world.home / "state.db")) as connection:
        public += repr(connection.execute("SELECT * FROM participation").fetchall()).encode()
    made = artefacts(world)
    kinds = {name.split("/")[0].split(" ")[0].split("-")[0] for name in made}
    assert {"vectors", "personal", "sentence", "day_key", "sighting"} <= kinds
    assert ("outbox" in kinds and "chunk" in kinds) == queued and ("checkpoint" in kinds) != queued
    windows = {where: windows_of(data, public) for where, data in made.items()}
    windows = {where: pieces for where, pieces in windows.items() if pieces}
    assert len(windows) > 20 and sum(map(len, windows.values())) > 500
    assert found_in(windows, home_bytes(world)) == set(windows), "the same search finds them before"
    forget(world, word)
    after = home_bytes(world)
    left = found_in(windows, after)
    if word is None:
        assert left == set()
    else:
        # Sentences without the word stay, sealed anew where their day had one with it; nothing else does.
        assert {where.split(" ")[0] for where in left} <= {"sentence", "day_key"}
        kept = [sentence.split(" ") for sentence in world.agent.examples.all_sentences()]
        assert kept and not any(word in sentence for sentence in kept)
        assert word not in world.agent.examples.new_words()
    for secret in SECRET_WORDS:
        for encoding in ("utf-8", "utf-16-le", "utf-16-be"):
            for form in (secret, secret.upper(), secret.capitalize()):
                assert form.encode(encoding) not in after
    nothing_is_left(world)
    assert list((world.home / "personal").iterdir()) == [] and list(world.home.rglob("*.tmp")) == []
    world.agent.abandon()


def test_a_home_that_was_told_to_forget_has_no_log_that_holds_what_was(tmp_path):
    world = World(tmp_path / "home")
    live_a_while(world, queued=True)
    assert (world.home / "state.db-wal").stat().st_size > 0
    world.agent.forget_everything()
    for name in ("state.db-wal", "examples.db-wal"):
        assert (world.home / name).stat().st_size == 0, name
    world.agent.abandon()


def test_a_keyboard_that_is_open_does_not_write_weights_after_another_process_forgot(tmp_path):
    world = World(tmp_path / "home")
    live_a_while(world, queued=False)
    with closing(StateStore(world.home / "state.db")) as store:
        before = store.times_forgotten()
        forget(world)
        record = MixtureRecord(components=COMPONENTS, rows=Mixture().rows)
        with pytest.raises(Forgotten):
            personal_records.write(world.home, store, before, record)
    assert list((world.home / "personal").iterdir()) == []
    world.agent.abandon()


def test_a_home_that_is_told_to_forget_between_two_pieces_of_an_update_sends_no_further_one(tmp_path):
    world = World(tmp_path / "home")
    world.settings = msgspec.structs.replace(world.settings, chunk_bytes=1024)
    world.kill()
    world.type_text()

    class Sensors:
        told = False

        def read(self, now):
            # The first piece is on its way, and it is asked whether the next may follow.
            if not self.told and any("/up/" in message.topic for message in world.agent._ports.transport.outgoing):
                self.told = True
                forget(world)
            return world.sensors.read(now)

    world.plugged = Sensors()
    reports = world.night()
    assert world.plugged.told and "forgotten" in [name for report in reports for name in report.refused]
    assert all(not update.chunks for update in world.aggregator.updates.values())
    nothing_is_left(world)
