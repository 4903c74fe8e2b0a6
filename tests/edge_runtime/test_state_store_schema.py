"""The device's databases from one release to the next: led on in one step, or refused by name and left as they are."""

import errno
import sqlite3

import pytest

from edge_runtime.adapters import files
from edge_runtime.adapters.database import LOG_BYTES, Migration, open_database, scrub_file, transaction
from edge_runtime.adapters.state_store import SCHEMA_VERSION, StateStore
from edge_runtime.eligibility import Usage
from edge_runtime.ports import StorageFailed, StorageFull
from tests.edge_runtime.crash_states import Disk
from tests.edge_runtime.crash_story import lay_out
from tests.edge_runtime.recorded_disk import contents, recording

# As the release before wrote it; kept as text, so that a change of the program's own schema cannot change it.
VERSION_2 = """
CREATE TABLE memory (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE usage (night TEXT PRIMARY KEY, training_s REAL NOT NULL, sent_bytes INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE outbox (
    update_id TEXT PRIMARY KEY, shard INTEGER NOT NULL, init BLOB NOT NULL, clip_norm REAL NOT NULL,
    layout TEXT NOT NULL, size INTEGER NOT NULL, basis BLOB NOT NULL, kept BLOB NOT NULL, queued_at REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE chunk (
    update_id TEXT NOT NULL REFERENCES outbox ON DELETE CASCADE, number INTEGER NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY (update_id, number)
);
CREATE TABLE vector (name TEXT PRIMARY KEY, file TEXT NOT NULL, layout TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO memory VALUES ('session', x'81');
INSERT INTO usage VALUES ('2027-01-19', 12.5, 1000);
INSERT INTO outbox VALUES ('u', 3, x'01', 10.0, 'l', 5, x'00', x'02', 7.0);
INSERT INTO chunk VALUES ('u', 0, x'03');
INSERT INTO vector VALUES ('residual', 'f', 'l');
"""
ONE = "CREATE TABLE word (text TEXT);"
TWO = "CREATE TABLE word (text TEXT, hidden BLOB);"
SECRET = "pronounceable" * 40


def write_version_2(path):
    connection = sqlite3.connect(path)
    connection.executescript(f"{VERSION_2}PRAGMA user_version=2;")
    connection.close()


def shape(path):
    connection = sqlite3.connect(path)
    tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
    found = {table: connection.execute(f"PRAGMA table_info({table})").fetchall() for table in tables}
    found["version"] = connection.execute("PRAGMA user_version").fetchall()
    connection.close()
    return found


def test_a_state_of_version_2_is_led_on_and_keeps_every_row(tmp_path):
    write_version_2(tmp_path / "state.db")
    store = StateStore(tmp_path / "state.db")
    assert store.get("session") == b"\x81"
    assert store.usage("2027-01-19") == Usage(training_s=12.5, sent_bytes=1000)
    for table, expected in (("outbox", ("u", 3, b"\x01")), ("chunk", ("u", 0, b"\x03")), ("vector", ("residual", "f"))):
        assert store.connection.execute(f"SELECT * FROM {table}").fetchone()[: len(expected)] == expected
    assert store.connection.execute("SELECT COUNT(*) FROM participation").fetchone() == (0,)
    store.close()


def test_a_file_that_was_led_on_is_like_a_fresh_one(tmp_path):
    write_version_2(tmp_path / "old.db")
    for name in ("old.db", "fresh.db"):
        StateStore(tmp_path / name).close()
    assert shape(tmp_path / "old.db") == shape(tmp_path / "fresh.db")
    assert shape(tmp_path / "old.db")["version"] == [(SCHEMA_VERSION,)]


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, 1, -SCHEMA_VERSION - 1])
def test_a_schema_that_nothing_leads_on_from_is_refused_by_name_and_left_alone(tmp_path, version):
    path = tmp_path / "state.db"
    write_version_2(path)
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version={version}")
    connection.close()
    before = shape(path)
    with pytest.raises(StorageFailed, match=f"schema version {abs(version)}, "):
        StateStore(path)
    assert shape(path) == before


def test_a_power_cut_while_it_is_led_on_leaves_one_of_the_two_schemas_and_every_row(tmp_path):
    root = tmp_path / "recorded"
    root.mkdir()
    with recording(root) as disk:
        open_database(root / "state.db", VERSION_2, 2).close()
        old = len(disk.log)
        StateStore(root / "state.db").close()
    model, states = Disk(), 0
    for number, operation in enumerate(disk.log):
        model.apply(operation)
        if number < old:
            continue
        for _, tree in model.states():
            folder = tmp_path / f"cut {states}"
            lay_out(tree, folder)
            store = StateStore(folder / "state.db")
            assert store.get("session") == b"\x81"
            assert store.usage("2027-01-19").sent_bytes == 1000
            store.close()
            states += 1
    assert states > 50


@pytest.mark.parametrize(("kind", "code"), [("write", errno.ENOSPC), ("write", errno.EIO), ("sync", errno.EIO)])
def test_a_migration_that_finds_no_room_leaves_the_old_file(tmp_path, kind, code):
    path = tmp_path / "state.db"
    write_version_2(path)
    # The log is there, and its first write is the migration's.
    sqlite3.connect(path).execute("PRAGMA journal_mode=WAL").connection.close()
    before = shape(path)

    def refuse(operation):
        return code if operation.kind == kind and operation.path.endswith("-wal") else 0

    with recording(tmp_path, refuse), pytest.raises((StorageFull, StorageFailed)):
        StateStore(path)
    assert shape(path) == before
    store = StateStore(path)
    assert store.get("session") == b"\x81"
    store.close()


def hide(connection):
    connection.execute("ALTER TABLE word ADD COLUMN hidden BLOB")
    connection.execute("UPDATE word SET hidden = zeroblob(length(text)), text = NULL")


def write_secret(path):
    connection = open_database(path, ONE, 1)
    with transaction(connection, "words"):
        connection.executemany("INSERT INTO word VALUES (?)", [(f"{SECRET}{i}",) for i in range(50)])
    connection.close()


def secret_in(tree):
    return [name for name, data in tree.items() if SECRET.encode() in data]


def test_what_a_scrubbing_migration_takes_out_is_in_no_file_after_it(tmp_path):
    write_secret(tmp_path / "words.db")
    assert secret_in(contents(tmp_path)) == ["words.db"], "the search finds it where it is"
    connection = open_database(tmp_path / "words.db", TWO, 2, (Migration(2, hide, scrub=True),))
    assert secret_in(contents(tmp_path)) == []
    assert connection.execute("SELECT COUNT(hidden), COUNT(text) FROM word").fetchone() == (50, 0)
    connection.close()


def test_a_scrubbing_that_a_power_cut_ended_is_done_by_the_next_that_opens(tmp_path):
    root = tmp_path / "recorded"
    root.mkdir()
    with recording(root) as disk:
        write_secret(root / "words.db")
        old = len(disk.log)
        open_database(root / "words.db", TWO, 2, (Migration(2, hide, scrub=True),)).close()
    model, half_done = Disk(), 0
    for number, operation in enumerate(disk.log):
        model.apply(operation)
        if number < old:
            continue
        for place, (_, tree) in enumerate(model.states()):
            if place > 3:
                break
            folder = tmp_path / "cut" / f"{number} {place}"
            lay_out(tree, folder)
            half_done += bool(secret_in(tree))
            connection = open_database(folder / "words.db", TWO, 2, (Migration(2, hide, scrub=True),))
            assert secret_in(contents(folder)) == []
            assert connection.execute("SELECT COUNT(hidden), COUNT(text) FROM word").fetchone() == (50, 0)
            connection.close()
    assert half_done > 5


def test_an_older_program_does_not_read_what_is_not_scrubbed_yet(tmp_path):
    write_secret(tmp_path / "words.db")
    connection = sqlite3.connect(tmp_path / "words.db")
    connection.execute("PRAGMA user_version=-2")
    connection.close()
    with pytest.raises(StorageFailed, match="schema version 2, this program reads up to 1"):
        open_database(tmp_path / "words.db", ONE, 1)


def test_a_log_that_another_process_reads_is_told_and_not_taken_for_scrubbed(tmp_path):
    write_secret(tmp_path / "words.db")
    connection = open_database(tmp_path / "words.db", ONE, 1)
    connection.execute("PRAGMA busy_timeout=0")
    with transaction(connection, "words"):
        connection.execute("DELETE FROM word")
    reader = sqlite3.connect(tmp_path / "words.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM word").fetchall()
    with transaction(connection, "words"):
        connection.execute("INSERT INTO word VALUES ('later')")
    with pytest.raises(StorageFailed):
        scrub_file(connection, "words")
    reader.close()
    scrub_file(connection, "words")
    connection.close()


@pytest.mark.parametrize("versions", [(3,), (2, 2), (1, 3), (3, 2)])
def test_migrations_with_a_gap_are_a_mistake_of_ours(tmp_path, versions):
    steps = tuple(Migration(version, "SELECT 1;") for version in versions)
    with pytest.raises(ValueError, match="without a gap"):
        open_database(tmp_path / "x.db", ONE, 2, steps)
    assert list(tmp_path.iterdir()) == []


def test_a_database_is_private_from_its_first_byte(tmp_path):
    with recording(tmp_path) as disk:
        open_database(tmp_path / "x.db", ONE, 1).close()
    assert [operation.kind for operation in disk.log][:2] == ["create", "sync_directory"]
    assert (tmp_path / "x.db").stat().st_mode & 0o777 == 0o600


def test_what_is_written_is_counted_about_as_the_log_and_the_file_take_it(tmp_path):
    with recording(tmp_path) as disk:
        connection = open_database(tmp_path / "x.db", ONE, 1)
        files.take_written_bytes()
        begun = len(disk.log)
        for _ in range(300):
            with transaction(connection, "words"):
                connection.execute("INSERT INTO word VALUES (?)", (SECRET * 20,))
        counted, done = files.take_written_bytes(), disk.log[begun:]
        connection.close()
    really = sum(len(operation.data) for operation in done if operation.kind == "write")
    assert 0.9 * really <= counted <= 1.3 * really


def test_the_log_is_emptied_when_it_is_long(tmp_path):
    connection = open_database(tmp_path / "x.db", ONE, 1)
    longest = 0
    for _ in range(600):
        with transaction(connection, "words"):
            connection.execute("INSERT INTO word VALUES (?)", (SECRET * 20,))
        longest = max(longest, (tmp_path / "x.db-wal").stat().st_size)
    connection.close()
    assert longest <= LOG_BYTES + 64 * 1024


def test_a_log_that_cannot_be_emptied_does_not_undo_the_commit(tmp_path):
    def refuse(operation):
        return errno.EIO if operation.path == "x.db" and operation.kind == "write" and armed else 0

    armed = False
    with recording(tmp_path, refuse):
        connection = open_database(tmp_path / "x.db", ONE, 1)
        armed = True
        for _ in range(400):
            with transaction(connection, "words"):
                connection.execute("INSERT INTO word VALUES (?)", (SECRET * 20,))
        armed = False
        assert (tmp_path / "x.db-wal").stat().st_size > LOG_BYTES
        with transaction(connection, "words"):
            connection.execute("INSERT INTO word VALUES ('last')")
        assert (tmp_path / "x.db-wal").stat().st_size == 0
        assert connection.execute("SELECT COUNT(*) FROM word").fetchone() == (401,)
        connection.close()
