"""The rows of the example store that are arrays: inserted, read, ended and sealed again as sentences are.

The rules:
- a record is opaque bytes here (`array_examples`), sealed under its day's key and bound to its number and this table;
- numbers rise and are never given again: a checkpoint names its examples by them;
- retention: 30 days, the last 20,000 examples and the last 32 MB, whichever is least.
The functions work in the store's open transaction.
"""

import sqlite3
from collections.abc import Iterable
from typing import Final

from edge_runtime.day_keys import NONCE_BYTES, DayKey, DoesNotOpen
from edge_runtime.ports import Entropy

SCHEMA: Final = """
CREATE TABLE array_example (
    id INTEGER PRIMARY KEY AUTOINCREMENT, day_key INTEGER NOT NULL, size INTEGER NOT NULL, sealed BLOB NOT NULL
);
"""
# A piece of them: all at once would be in memory twice, sealed and open. Each piece has its days' keys of one moment.
QUERY: Final = (
    "SELECT id, number, wrapped, sealed FROM array_example JOIN day_key ON number = day_key"
    " WHERE array_example.id > ? ORDER BY array_example.id LIMIT 256"
)
KEPT_EXAMPLES: Final = 20_000
KEPT_BYTES: Final = 32 * 1024 * 1024


def insert(connection: sqlite3.Connection, day_key: DayKey, records: Iterable[bytes], entropy: Entropy) -> int:
    """Insert records under a day's key; return how many."""
    newest = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'array_example'").fetchone()
    first = 1 if newest is None else newest[0] + 1
    count = 0
    for count, record in enumerate(records, start=1):
        number = first + count - 1
        sealed = day_key.seal(_name(number), record, entropy(NONCE_BYTES))
        connection.execute(
            "INSERT INTO array_example VALUES (?, ?, ?, ?)", (number, day_key.number, len(sealed), sealed)
        )
    return count


def retain(connection: sqlite3.Connection) -> None:
    """Delete the oldest beyond what is kept."""
    count, size = connection.execute("SELECT COUNT(*), COALESCE(SUM(size), 0) FROM array_example").fetchone()
    if count > KEPT_EXAMPLES or size > KEPT_BYTES:
        connection.execute(
            "DELETE FROM array_example WHERE id <= (SELECT id FROM"
            " (SELECT id, SUM(size) OVER (ORDER BY id DESC) AS sum, ROW_NUMBER() OVER (ORDER BY id DESC) AS place"
            " FROM array_example) WHERE sum > ? OR place > ?"
            " ORDER BY id DESC LIMIT 1)",
            (KEPT_BYTES, KEPT_EXAMPLES),
        )


def end_days(connection: sqlite3.Connection) -> None:
    """Delete the records whose day's key is gone."""
    connection.execute("DELETE FROM array_example WHERE day_key NOT IN (SELECT number FROM day_key)")


def seal_again(connection: sqlite3.Connection, old: DayKey, new: DayKey, entropy: Entropy) -> None:
    """Seal what is under one key under another; what does not open goes."""
    rows = connection.execute("SELECT id, sealed FROM array_example WHERE day_key = ?", (old.number,)).fetchall()
    for number, sealed in rows:
        record = open_record(old, number, sealed)
        if record is None:
            connection.execute("DELETE FROM array_example WHERE id = ?", (number,))
        else:
            again = new.seal(_name(number), record, entropy(NONCE_BYTES))
            connection.execute(
                "UPDATE array_example SET day_key = ?, sealed = ? WHERE id = ?", (new.number, again, number)
            )


def open_record(day_key: DayKey, number: int, sealed: bytes) -> bytes | None:
    """Return a record's bytes; None if it has rotted or was moved here from another place."""
    try:
        return day_key.open(_name(number), sealed)
    except DoesNotOpen:
        return None


def _name(number: int) -> bytes:
    return b"array|%d" % number
