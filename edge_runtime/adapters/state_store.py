"""The agent's memory, HOME/state.db (`adapters.database`), one connection, one thread.

The rules:
- a change that belongs together is one transaction (`with store.transaction()`), or it never happened;
- a new column or table is a new schema version and a migration that leads to it;
- values are bytes under a name; what they mean is the caller's;
- the store counts how often it was told to forget: whoever began before writes nothing after (`Forgotten`), even if
  the forgetting was done by another process.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path

from edge_runtime.adapters.database import Migration
from edge_runtime.adapters.database import open_database as open_database
from edge_runtime.adapters.database import transaction as transaction
from edge_runtime.adapters.database import translate as translate
from edge_runtime.eligibility import Usage
from edge_runtime.ports import Forgotten

SCHEMA_VERSION = 3
_SCHEMA = """
CREATE TABLE memory (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE usage (
    night TEXT PRIMARY KEY, training_s REAL NOT NULL, sent_bytes INTEGER NOT NULL, cpu_s REAL NOT NULL DEFAULT 0,
    written_bytes INTEGER NOT NULL DEFAULT 0, starts INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE participation (
    lease TEXT PRIMARY KEY, population TEXT NOT NULL, task TEXT NOT NULL, kind TEXT NOT NULL,
    base_version INTEGER NOT NULL, at REAL NOT NULL, examples INTEGER NOT NULL DEFAULT 0,
    steps INTEGER NOT NULL DEFAULT 0, update_id TEXT NOT NULL DEFAULT '', bytes INTEGER NOT NULL DEFAULT 0,
    verdict TEXT NOT NULL DEFAULT '', verdict_at REAL NOT NULL DEFAULT 0, sent_at REAL NOT NULL DEFAULT 0
) WITHOUT ROWID;
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
# In order, without a gap, the last leading to SCHEMA_VERSION; a fresh file and a migrated one must not differ (tested).
MIGRATIONS = (
    Migration(
        3,
        """
ALTER TABLE usage ADD COLUMN cpu_s REAL NOT NULL DEFAULT 0;
ALTER TABLE usage ADD COLUMN written_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage ADD COLUMN starts INTEGER NOT NULL DEFAULT 0;
CREATE TABLE participation (
    lease TEXT PRIMARY KEY, population TEXT NOT NULL, task TEXT NOT NULL, kind TEXT NOT NULL,
    base_version INTEGER NOT NULL, at REAL NOT NULL, examples INTEGER NOT NULL DEFAULT 0,
    steps INTEGER NOT NULL DEFAULT 0, update_id TEXT NOT NULL DEFAULT '', bytes INTEGER NOT NULL DEFAULT 0,
    verdict TEXT NOT NULL DEFAULT '', verdict_at REAL NOT NULL DEFAULT 0, sent_at REAL NOT NULL DEFAULT 0
) WITHOUT ROWID;
""",
    ),
)
KEPT_NIGHTS = 400
_TIMES_FORGOTTEN = "SELECT COALESCE((SELECT CAST(value AS INTEGER) FROM memory WHERE name = 'times_forgotten'), 0)"


class StateStore:
    """Named values, what each night has used, and the connection that the outbox and the vectors share."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.connection = open_database(path, _SCHEMA, SCHEMA_VERSION, MIGRATIONS)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One transaction over everything in this file."""
        with transaction(self.connection, str(self.path)) as connection:
            yield connection

    def get(self, name: str) -> bytes | None:
        """Return a value, or None."""
        try:
            row = self.connection.execute("SELECT CAST(value AS BLOB) FROM memory WHERE name = ?", (name,)).fetchone()
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
        if not self.connection.in_transaction:
            self.connection.count_commit()
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
                # A cell of another type, on a disk that rots, counts as what it can be read as.
                "SELECT CAST(training_s AS REAL), CAST(sent_bytes AS INTEGER), CAST(cpu_s AS REAL),"
                " CAST(written_bytes AS INTEGER), CAST(starts AS INTEGER) FROM usage WHERE night = ?",
                (night,),
            ).fetchone()
        except sqlite3.Error as e:
            raise translate(e, str(self.path)) from e
        return Usage() if row is None else Usage(*row)

    def add_usage(self, connection: sqlite3.Connection, night: str, used: Usage) -> None:
        """Count what was used, in the caller's transaction; forget nights long gone."""
        connection.execute(
            "INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT(night) DO UPDATE SET"
            " training_s = training_s + excluded.training_s, sent_bytes = sent_bytes + excluded.sent_bytes,"
            " cpu_s = cpu_s + excluded.cpu_s, written_bytes = written_bytes + excluded.written_bytes,"
            " starts = starts + excluded.starts",
            (night, *astuple(used)),
        )
        connection.execute(
            "DELETE FROM usage WHERE night NOT IN (SELECT night FROM usage ORDER BY night DESC LIMIT ?)",
            (KEPT_NIGHTS,),
        )

    def close(self) -> None:
        """Close the file; a store is not used after."""
        self.connection.close()
