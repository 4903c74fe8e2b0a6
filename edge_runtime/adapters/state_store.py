"""The agent's memory, HOME/state.db: SQLite, WAL, synchronous=FULL, one connection, one thread.

The rules:
- a change that belongs together is one transaction (`with store.transaction()`), or it never happened;
- `sqlite3` errors leave as `StorageFull` or `StorageFailed`, and nothing is half-written;
- values are bytes under a name; what they mean is the caller's;
- the store counts how often it was told to forget: whoever began before writes nothing after (`Forgotten`), even if
  the forgetting was done by another process.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edge_runtime.eligibility import Usage
from edge_runtime.ports import Forgotten, StorageFailed, StorageFull

SCHEMA_VERSION = 2
_SCHEMA = """
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
"""
KEPT_NIGHTS = 14
_TIMES_FORGOTTEN = "SELECT COALESCE((SELECT CAST(value AS INTEGER) FROM memory WHERE name = 'times_forgotten'), 0)"


def translate(error: sqlite3.Error, what: str) -> StorageFull | StorageFailed:
    """Return the port's error for an SQLite error."""
    if "full" in str(error):
        return StorageFull(f"no room on the disk for {what}: {error}")
    return StorageFailed(f"{what}: {error}")


def open_database(path: Path, schema: str, version: int) -> sqlite3.Connection:
    """Open or make a database with WAL, synchronous=FULL and deletions that overwrite. Raises the port's errors."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        made = not path.exists()
        connection = sqlite3.connect(path, isolation_level=None)
        if made:
            path.chmod(0o600)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA secure_delete=ON")
        found = connection.execute("PRAGMA user_version").fetchone()[0]
        if found == 0:
            connection.executescript(f"BEGIN;{schema}PRAGMA user_version={version};COMMIT;")
        elif found != version:
            connection.close()
            raise StorageFailed(f"{path} has schema version {found}, this program reads {version}")
    except sqlite3.Error as e:
        raise translate(e, str(path)) from e
    except OSError as e:
        raise StorageFailed(f"{path} cannot be opened: {e}") from e
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection, what: str) -> Iterator[sqlite3.Connection]:
    """Commit on leaving, roll back on any exception (a kill included)."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield connection
        connection.execute("COMMIT")
    except sqlite3.Error as e:
        _roll_back(connection)
        raise translate(e, what) from e
    except BaseException:
        _roll_back(connection)
        raise


def _roll_back(connection: sqlite3.Connection) -> None:
    # SQLite has rolled back by itself after some errors, and says so with another.
    with suppress(sqlite3.Error):
        connection.execute("ROLLBACK")


class StateStore:
    """Named values, what each night has used, and the connection that the outbox and the vectors share."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.connection = open_database(path, _SCHEMA, SCHEMA_VERSION)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One transaction over everything in this file."""
        with transaction(self.connection, str(self.path)) as connection:
            yield connection

    def get(self, name: str) -> bytes | None:
        """Return a value, or None."""
        try:
            row = self.connection.execute("SELECT value FROM memory WHERE name = ?", (name,)).fetchone()
        except sqlite3.Error as e:
            raise translate(e, str(self.path)) from e
        return None if row is None else bytes(row[0])

    def put(self, name: str, value: bytes, *, times_forgotten: int) -> None:
        """Set a value; its own transaction unless one is open. Raises `Forgotten` as `refuse_forgotten` does."""
        try:
            written = self.connection.execute(
                f"INSERT OR REPLACE INTO memory SELECT ?, ? WHERE ({_TIMES_FORGOTTEN}) = ?",
                (name, value, times_forgotten),
            ).rowcount
        except sqlite3.Error as e:
            raise translate(e, str(self.path)) from e
        if not written:
            raise Forgotten(f"{self.path} was told to forget: {name} is not written")

    def times_forgotten(self) -> int:
        """Return how often this store was told to forget."""
        try:
            return int(self.connection.execute(_TIMES_FORGOTTEN).fetchone()[0])
        except sqlite3.Error as e:
            raise translate(e, str(self.path)) from e

    def refuse_forgotten(self, times_forgotten: int) -> None:
        """Raise `Forgotten` if the count moved on; in a transaction, none can come between this and its commit."""
        if self.times_forgotten() != times_forgotten:
            raise Forgotten(f"{self.path} was told to forget")

    def forget(self, connection: sqlite3.Connection) -> int:
        """Delete updates, chunks and vectors' names, and count it, in the caller's transaction; return the count."""
        for table in ("outbox", "chunk", "vector"):
            connection.execute(f"DELETE FROM {table}")
        times = self.times_forgotten() + 1
        connection.execute("INSERT OR REPLACE INTO memory VALUES ('times_forgotten', ?)", (str(times).encode(),))
        return times

    def usage(self, night: str) -> Usage:
        """Return what a night has used so far."""
        try:
            row = self.connection.execute(
                "SELECT training_s, sent_bytes FROM usage WHERE night = ?", (night,)
            ).fetchone()
        except sqlite3.Error as e:
            raise translate(e, str(self.path)) from e
        return Usage() if row is None else Usage(row[0], row[1])

    def add_usage(self, connection: sqlite3.Connection, night: str, used: Usage) -> None:
        """Count what was used, in the caller's transaction; forget nights long gone."""
        connection.execute(
            "INSERT INTO usage VALUES (?, ?, ?) ON CONFLICT(night) DO UPDATE SET"
            " training_s = training_s + excluded.training_s, sent_bytes = sent_bytes + excluded.sent_bytes",
            (night, used.training_s, used.sent_bytes),
        )
        connection.execute(
            "DELETE FROM usage WHERE night NOT IN (SELECT night FROM usage ORDER BY night DESC LIMIT ?)",
            (KEPT_NIGHTS,),
        )

    def close(self) -> None:
        """Close the file; a store is not used after."""
        self.connection.close()
