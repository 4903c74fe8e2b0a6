"""From the example store's first schema, whose records could be read, to the second, whose records are sealed.

The rules:
- what was readable is taken out of the file's free pages and its log, too, before any program uses the file
  (`database.Migration.scrub`);
- each record gets the key that would have been sealing when it was typed, so that it ends on the same day;
- hashes of new words stay valid: their salt is kept, wrapped.
"""

import hashlib
import hmac
import sqlite3

from edge_runtime.adapters.database import Migration
from edge_runtime.day_keys import KEY_BYTES, NONCE_BYTES, DayKey, StorageKey, seals_at
from edge_runtime.ports import Entropy

SALT = b"salt"
_READABLE = ("sentence", "sighting", "new_word", "salt")


def to_sealed(schema: str, key: StorageKey, entropy: Entropy) -> Migration:
    """Return the step to version 2, whose tables `schema` makes."""

    def change(connection: sqlite3.Connection) -> None:
        for table in _READABLE:
            connection.execute(f"ALTER TABLE {table} RENAME TO old_{table}")
        for statement in schema.split(";"):
            connection.execute(statement)
        for (salt,) in connection.execute("SELECT value FROM old_salt").fetchall():
            wrapped = key.wrap(SALT, bytes(salt), entropy(NONCE_BYTES))
            connection.execute("INSERT INTO wrapped VALUES ('salt', ?)", (wrapped,))
        connection.execute("INSERT INTO sighting (hash, count, seen_at) SELECT hash, count, seen_at FROM old_sighting")
        _seal_records(connection, _Days(connection, key, entropy), entropy)
        for table in _READABLE:
            connection.execute(f"DROP TABLE old_{table}")

    return Migration(2, change, scrub=True)


class _Days:
    """The keys made so far: a record gets the one that was sealing when it was typed."""

    def __init__(self, connection: sqlite3.Connection, key: StorageKey, entropy: Entropy) -> None:
        self._connection = connection
        self._key = key
        self._entropy = entropy
        self._made: list[tuple[float, DayKey]] = []

    def at(self, when: float) -> DayKey:
        """Return the key of a moment (Unix seconds)."""
        for began, day in reversed(self._made):
            if seals_at(began, when):
                return day
        secret = self._entropy(KEY_BYTES)
        number = self._connection.execute("INSERT INTO day_key (began, wrapped) VALUES (?, x'')", (when,)).lastrowid
        assert number is not None  # what sqlite3 returns after an INSERT
        wrapped = self._key.wrap_day(number, secret, self._entropy(NONCE_BYTES))
        self._connection.execute("UPDATE day_key SET wrapped = ? WHERE number = ?", (wrapped, number))
        self._made.append((when, DayKey(self._key.device, number, secret)))
        return self._made[-1][1]


def _seal_records(connection: sqlite3.Connection, days: _Days, entropy: Entropy) -> None:
    rows = connection.execute("SELECT id, added_at, words, tokens FROM old_sentence ORDER BY id").fetchall()
    for number, added_at, words, tokens in rows:
        day = days.at(added_at)
        sealed = day.seal(b"%d" % number, tokens.encode(), entropy(NONCE_BYTES))
        connection.execute("INSERT INTO sentence VALUES (?, ?, ?, ?)", (number, day.number, words, sealed))
    salt = connection.execute("SELECT value FROM old_salt").fetchone()
    # A named word was seen, so its hash is there.
    for word, seen_at in connection.execute("SELECT word, seen_at FROM old_new_word ORDER BY seen_at").fetchall():
        day, name = days.at(seen_at), hmac.digest(bytes(salt[0]), word.encode(), hashlib.sha256)
        sealed = day.seal(name, word.encode(), entropy(NONCE_BYTES))
        connection.execute("UPDATE sighting SET day_key = ?, sealed = ? WHERE hash = ?", (day.number, sealed, name))
