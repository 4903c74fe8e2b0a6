"""The example store, HOME/examples.db: what the privacy filter let through, on this device only, encrypted.

The rules:
- text enters through `privacy_filter.filter_text` and no other way; raw text is never written;
- every record is sealed under its day's key (`edge_runtime.day_keys`); nothing readable is in the file, only how many
  words a record has, its day, and keyed hashes of new words;
- retention: 30 days and the last 20,000 words, whichever is less, kept at every `add`. What ends a day is the deletion
  of its wrapped key, overwritten and out of the log; the records go with it;
- a new word is remembered by a keyed hash when first seen and by name from the second time on; `new_words` is for the
  keyboard, and training has no way to read it;
- a share of the sentences, by a keyed hash of their words, is held out: training reads none of them, evaluation reads
  them only, and the same sentence is always on the same side;
- examples that are arrays lie beside the sentences (`example_store_arrays`), under the same days' keys and rules;
- `forget` deletes, gives a new key to what stays of the days that it touched, overwrites (secure_delete) and empties
  the log, so that the bytes are gone from the files, and what a disk keeps of its old blocks has no key;
- opened sentences are kept in memory until another process changes the file, which SQLite's data_version tells;
- a record that does not open (rot, or another place's) counts as none. If the day's key does not open, the file is
  another device's, and every call but `forget_everything` says so.
"""

import hashlib
import hmac
import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from edge_runtime.adapters import example_store_arrays as array_rows
from edge_runtime.adapters.database import Migration, open_database, scrub_file, transaction, translate
from edge_runtime.adapters.example_migration import SALT, to_sealed
from edge_runtime.day_keys import DAY_S, KEY_BYTES, NONCE_BYTES, DayKey, DoesNotOpen, StorageKey, seals_at
from edge_runtime.ports import Entropy, StorageFailed
from edge_runtime.privacy_filter import filter_text
from wire_contract.vocabulary import SPECIALS, Vocabulary, split_sentences

SCHEMA_VERSION = 3
KEPT_S = 30 * 86_400.0
KEPT_WORDS = 20_000
SEEN_BEFORE_NAMED = 2
HELD_OUT_SHARE = 0.1
TEXT_SCHEMA = """
CREATE TABLE wrapped (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE day_key (number INTEGER PRIMARY KEY AUTOINCREMENT, began REAL NOT NULL, wrapped BLOB NOT NULL);
CREATE TABLE sentence (id INTEGER PRIMARY KEY, day_key INTEGER NOT NULL, words INTEGER NOT NULL, sealed BLOB NOT NULL);
CREATE TABLE sighting (
    hash BLOB PRIMARY KEY, count INTEGER NOT NULL, seen_at REAL NOT NULL, day_key INTEGER, sealed BLOB
) WITHOUT ROWID;
"""
SCHEMA = TEXT_SCHEMA + array_rows.SCHEMA


class SqliteExampleStore:
    """The person's examples. `vocabulary` may be None until a model came: then nothing can be added.

    `entropy` makes the salt of the hashes; day keys and nonces come from `key_entropy`, the system's, even on a seeded
    device: nothing that is decided depends on them. `held_out_share` is 0 to 1. Raises `StorageFull`, `StorageFailed`.
    """

    def __init__(
        self,
        path: Path,
        vocabulary: Vocabulary | None,
        entropy: Entropy,
        key: StorageKey,
        *,
        held_out_share: float = HELD_OUT_SHARE,
        key_entropy: Entropy = os.urandom,
    ) -> None:
        if not 0.0 <= held_out_share <= 1.0:
            raise ValueError(f"the held-out share lies between 0 and 1, got {held_out_share}")
        self._path = path
        self.vocabulary = vocabulary
        self._key = key
        self._random = key_entropy
        self._held_out_below = int(held_out_share * 2**64)
        self._day_keys: dict[int, DayKey] = {}
        self._opened: dict[int, tuple[str, bool]] | None = None
        self._opened_at = 0
        # Whoever had this file before may have died between a deletion and emptying the log.
        self._unscrubbed = True
        migrations = (to_sealed(TEXT_SCHEMA, key, key_entropy), Migration(3, array_rows.SCHEMA))
        self._connection = open_database(path, SCHEMA, SCHEMA_VERSION, migrations)
        try:
            # Vacuum's scratch copy stays in memory: nothing of this file is written anywhere else.
            self._connection.execute("PRAGMA temp_store=MEMORY")
            self._salt = self._read_salt(entropy)
        except sqlite3.Error as e:
            self._connection.close()
            raise translate(e, str(path)) from e

    def _read_salt(self, entropy: Entropy) -> bytes | None:
        """Return the key of the hashes, made at the first opening; None if it is another device's."""
        found = self._connection.execute("SELECT value FROM wrapped WHERE name = 'salt'").fetchone()
        if found is None:
            salt = entropy(KEY_BYTES)
            self._put_salt(salt)
            return salt
        try:
            return self._key.unwrap(SALT, found[0])
        except DoesNotOpen:
            return None

    def _put_salt(self, salt: bytes) -> None:
        wrapped = self._key.wrap(SALT, salt, self._random(NONCE_BYTES))
        self._connection.execute("INSERT OR REPLACE INTO wrapped VALUES ('salt', ?)", (wrapped,))

    def add(self, text: str, now: float, *, learn: bool = True, trusted: bool = True) -> int:
        """Store what may be kept of `text`; nothing if `learn` is false (incognito, password fields).

        By a clock that is not `trusted` nothing is too old: one that jumped ahead would end everything.
        """
        return self.add_many([text], now, learn=learn, trusted=trusted)

    def add_many(self, texts: Sequence[str], now: float, *, learn: bool = True, trusted: bool = True) -> int:
        """Like `add` for several messages, in one transaction; return how many sentences were stored."""
        if not learn or self.vocabulary is None:
            return 0
        if self._salt is None:
            raise self._not_ours()
        sentences: list[str] = []
        new_words: Counter[str] = Counter()
        for text in texts:
            filtered = filter_text(text, self.vocabulary)
            sentences += [" ".join(tokens) for tokens in filtered.sentences]
            new_words.update(filtered.new_words)
        added: dict[int, str] = {}
        with transaction(self._connection, str(self._path)) as connection:
            if sentences or new_words:
                day_key = self._key_of(connection, now)
                added = self._insert(connection, day_key, sentences)
                for word, count in new_words.items():
                    self._sight(connection, day_key, word, count, now)
            deleted = self._retain(connection, now, trusted=trusted)
        if deleted:
            self._opened = None
        elif self._opened is not None:
            self._opened.update({number: (tokens, self._is_held_out(tokens)) for number, tokens in added.items()})
        self._finish_deletion()
        return len(sentences)

    def _insert(self, connection: sqlite3.Connection, day_key: DayKey, sentences: Sequence[str]) -> dict[int, str]:
        first = connection.execute("SELECT COALESCE(MAX(id), 0) + 1 FROM sentence").fetchone()[0]
        nonces = self._random(NONCE_BYTES * len(sentences))
        rows = []
        for place, tokens in enumerate(sentences):
            nonce = nonces[NONCE_BYTES * place : NONCE_BYTES * (place + 1)]
            sealed = day_key.seal(b"%d" % (first + place), tokens.encode(), nonce)
            rows.append((first + place, day_key.number, tokens.count(" ") + 1, sealed))
        connection.executemany("INSERT INTO sentence VALUES (?, ?, ?, ?)", rows)
        return dict(enumerate(sentences, first))

    def _key_of(self, connection: sqlite3.Connection, now: float) -> DayKey:
        """Return the key that seals now. Asked in each transaction: another process may have deleted the last one."""
        row = connection.execute(
            "SELECT number, CAST(began AS REAL), wrapped FROM day_key ORDER BY number DESC LIMIT 1"
        ).fetchone()
        if row is not None and seals_at(row[1], now):
            return self._open_day(row[0], row[2])
        return self._make_day(connection, now)

    def _make_day(self, connection: sqlite3.Connection, began: float) -> DayKey:
        secret = self._random(KEY_BYTES)
        number = connection.execute("INSERT INTO day_key (began, wrapped) VALUES (?, x'')", (began,)).lastrowid
        assert number is not None  # what sqlite3 returns after an INSERT
        wrapped = self._key.wrap_day(number, secret, self._random(NONCE_BYTES))
        connection.execute("UPDATE day_key SET wrapped = ? WHERE number = ?", (wrapped, number))
        # Not remembered before the commit: rolled back, the number would come again with another key.
        return DayKey(self._key.device, number, secret)

    def _open_day(self, number: int, wrapped: bytes) -> DayKey:
        known = self._day_keys.get(number)
        if known is None:
            try:
                known = self._day_keys[number] = self._key.unwrap_day(number, wrapped)
            except DoesNotOpen as e:
                raise self._not_ours() from e
        return known

    def _not_ours(self) -> StorageFailed:
        return StorageFailed(
            f"{self._path} was written under another device key: put that key back, or forget everything"
        )

    def add_arrays(self, records: Iterable[bytes], now: float, *, trusted: bool = True) -> int:
        """Store examples that are arrays (`array_examples.encode_records`), in one transaction; return how many.

        `trusted` as in `add`.
        """
        if self._salt is None:
            raise self._not_ours()
        with transaction(self._connection, str(self._path)) as connection:
            stored = array_rows.insert(connection, self._key_of(connection, now), records, self._random)
            if self._retain(connection, now, trusted=trusted):
                self._opened = None
        self._finish_deletion()
        return stored

    def arrays(self) -> Iterator[tuple[int, bytes]]:
        """Yield the number and the record of each array example that may be trained on, oldest first."""
        return ((number, record) for number, record in self._open_arrays() if not self._holds_out(record))

    def held_out_arrays(self) -> Iterator[tuple[int, bytes]]:
        """Yield those that are for evaluation alone, oldest first."""
        return ((number, record) for number, record in self._open_arrays() if self._holds_out(record))

    def _open_arrays(self) -> Iterator[tuple[int, bytes]]:
        self._day_keys.clear()
        rows = self._rows(array_rows.QUERY, (0,))
        while rows:
            for number, day, wrapped, sealed in rows:
                record = array_rows.open_record(self._open_day(day, wrapped), number, sealed)
                if record is not None:
                    yield number, record
            rows = self._rows(array_rows.QUERY, (rows[-1][0],))

    def _holds_out(self, record: bytes) -> bool:
        return bool(self._held_out_below) and self._is_below(b"held out array\n" + record)

    def count_arrays(self) -> int:
        """Return how many array examples are stored, those for evaluation included."""
        return int(self._rows("SELECT COUNT(*) FROM array_example")[0][0])

    def _sight(self, connection: sqlite3.Connection, day_key: DayKey, word: str, count: int, now: float) -> None:
        name = self._hash(word)
        connection.execute(
            "INSERT INTO sighting (hash, count, seen_at) VALUES (?, ?, ?) ON CONFLICT(hash) DO UPDATE SET"
            " count = count + excluded.count, seen_at = excluded.seen_at",
            (name, count, now),
        )
        seen = connection.execute("SELECT count FROM sighting WHERE hash = ?", (name,)).fetchone()[0]
        if seen >= SEEN_BEFORE_NAMED:
            sealed = day_key.seal(name, word.encode(), self._random(NONCE_BYTES))
            connection.execute(
                "UPDATE sighting SET day_key = ?, sealed = ? WHERE hash = ?", (day_key.number, sealed, name)
            )

    def _hash(self, what: str) -> bytes:
        return self._hash_bytes(what.encode())

    def _hash_bytes(self, what: bytes) -> bytes:
        if self._salt is None:
            raise self._not_ours()
        return hmac.digest(self._salt, what, hashlib.sha256)

    def _is_below(self, what: bytes) -> bool:
        return int.from_bytes(self._hash_bytes(what)[:8], "big") < self._held_out_below

    def expire(self, now: float) -> None:
        """End the days that are thirty days old; `add` does it, too."""
        with transaction(self._connection, str(self._path)) as connection:
            deleted = self._retain(connection, now)
        if deleted:
            self._opened = None
        self._finish_deletion()

    def _retain(self, connection: sqlite3.Connection, now: float, *, trusted: bool = True) -> bool:
        """End what is too old or too much; return whether a sentence went."""
        gone = self._end_days(connection, now) if trusted else 0
        if (connection.execute("SELECT SUM(words) FROM sentence").fetchone()[0] or 0) > KEPT_WORDS:
            gone += connection.execute(
                "DELETE FROM sentence WHERE id <= (SELECT id FROM (SELECT id, SUM(words) OVER (ORDER BY id DESC)"
                " AS sum FROM sentence) WHERE sum > ? ORDER BY id DESC LIMIT 1)",
                (KEPT_WORDS,),
            ).rowcount
        array_rows.retain(connection)
        return bool(gone)

    def _end_days(self, connection: sqlite3.Connection, now: float) -> int:
        # A day that a wrong clock put into the future would never end: it counts from now.
        connection.execute("UPDATE day_key SET began = ? WHERE began > ?", (now, now + DAY_S))
        ended = connection.execute("DELETE FROM day_key WHERE began < ?", (now - KEPT_S,)).rowcount
        gone = 0
        if ended:
            self._day_keys.clear()
            gone = connection.execute("DELETE FROM sentence WHERE day_key NOT IN (SELECT number FROM day_key)").rowcount
            array_rows.end_days(connection)
            connection.execute(
                "DELETE FROM sighting WHERE sealed IS NOT NULL AND day_key NOT IN (SELECT number FROM day_key)"
            )
        connection.execute("DELETE FROM sighting WHERE seen_at < ?", (now - KEPT_S,))
        self._unscrubbed = self._unscrubbed or bool(ended)
        return gone

    def _finish_deletion(self) -> None:
        """Empty the log after a day's end; where another process reads it just now, at the next call."""
        if not self._unscrubbed:
            return
        try:
            self._unscrubbed = bool(self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0])
        except sqlite3.Error as e:
            raise translate(e, str(self._path)) from e
        self._connection.count_commit()

    def sentences(self) -> list[str]:
        """Return the sentences that may be trained on, oldest first, tokens joined by spaces."""
        return [tokens for tokens, held_out in self._open_sentences() if not held_out]

    def held_out_sentences(self) -> list[str]:
        """Return the sentences that are for evaluation alone, oldest first."""
        return [tokens for tokens, held_out in self._open_sentences() if held_out]

    def all_sentences(self) -> list[str]:
        """Return both, oldest first: for what suggests on this device and is never sent."""
        return [tokens for tokens, _ in self._open_sentences()]

    def _is_held_out(self, tokens: str) -> bool:
        if not self._held_out_below:
            return False
        # No word has a line break in it, so this is no word's hash.
        return self._is_below(f"held out\n{tokens}".encode())

    def _open_sentences(self) -> Iterable[tuple[str, bool]]:
        version = self._rows("PRAGMA data_version")[0][0]
        if self._opened is None or version != self._opened_at:
            # The version is read before the rows: what changes in between is noticed at the next call.
            self._day_keys.clear()
            self._opened_at = version
            self._opened = {
                number: (tokens, self._is_held_out(tokens)) for number, tokens in self._read_sentences().items()
            }
        return self._opened.values()

    def _read_sentences(self) -> dict[int, str]:
        # One statement sees one moment: another process may be giving a day its new key.
        rows = self._rows(
            "SELECT id, number, wrapped, sealed FROM sentence JOIN day_key ON number = day_key ORDER BY id"
        )
        opened = ((row[0], _open(self._open_day(row[1], row[2]), b"%d" % row[0], row[3])) for row in rows)
        return {number: plain for number, plain in opened if plain is not None}

    def count_words(self) -> int:
        """Return how much there is to learn from: tokens of text, and examples of arrays, where a model takes those."""
        return int(self._rows("SELECT COALESCE(SUM(words), 0) FROM sentence")[0][0]) + self.count_arrays()

    def count_examples(self, tokens: int) -> int:
        """Return how many examples there are, where so many tokens of text make one."""
        arrays = self.count_arrays()
        return arrays - (arrays - self.count_words()) // tokens

    def last_record(self) -> int:
        """Return the number of the newest sentence, 0 if there is none; numbers rise."""
        return int(self._rows("SELECT COALESCE(MAX(id), 0) FROM sentence")[0][0])

    def count_words_after(self, record: int) -> int:
        """Return how many tokens were stored after the sentence of this number."""
        return int(self._rows(f"SELECT COALESCE(SUM(words), 0) FROM sentence WHERE id > {int(record)}")[0][0])

    def new_words(self) -> list[str]:
        """Return the person's own words, most used first, for the keyboard alone."""
        rows = self._rows("SELECT hash, count, number, wrapped, sealed FROM sighting JOIN day_key ON number = day_key")
        named = [(-row[1], _open(self._open_day(row[2], row[3]), row[0], row[4])) for row in rows]
        return [word for _, word in sorted((count, word) for count, word in named if word is not None)]

    def _rows(self, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(query, values).fetchall()
        except sqlite3.Error as e:
            raise translate(e, str(self._path)) from e

    def forget_word(self, word: str) -> int:
        """Delete every sentence with `word`, and the word itself; return how many sentences that was.

        `word` is read as typed text is, so its case and its kind of apostrophe do not matter; of several words, a
        sentence must hold all of them in a row. A word with a digit was never stored, and has no sentence to delete.
        """
        phrases = [tokens for tokens in split_sentences(word) if not set(tokens) & set(SPECIALS)]
        wanted = [f" {' '.join(tokens)} " for tokens in phrases]
        with transaction(self._connection, str(self._path)) as connection:
            self._opened = None
            opened = self._read_sentences()
            hit = [number for number, tokens in opened.items() if any(phrase in f" {tokens} " for phrase in wanted)]
            days = self._delete(connection, "sentence", "id", hit)
            days |= self._delete(connection, "sighting", "hash", [self._hash(t) for tokens in phrases for t in tokens])
            for number in sorted(days):
                self._give_new_key(connection, number)
        self._scrub()
        return len(hit)

    def _delete(self, connection: sqlite3.Connection, table: str, column: str, names: Iterable[object]) -> set[int]:
        """Delete rows by name; return the days that they were sealed under."""
        days = set()
        for name in names:
            row = connection.execute(f"SELECT day_key FROM {table} WHERE {column} = ?", (name,)).fetchone()
            if row is not None:
                days.add(row[0])
                connection.execute(f"DELETE FROM {table} WHERE {column} = ?", (name,))
        return days - {None}

    def _give_new_key(self, connection: sqlite3.Connection, number: int) -> None:
        """Seal what stays of a day under a new key, and delete the old one: what was deleted has none any more."""
        row = connection.execute("SELECT began, wrapped FROM day_key WHERE number = ?", (number,)).fetchone()
        if row is None:
            return
        old, new = self._open_day(number, row[1]), self._make_day(connection, row[0])
        for table, column in (("sentence", "id"), ("sighting", "hash")):
            rows = connection.execute(f"SELECT {column}, sealed FROM {table} WHERE day_key = ?", (number,)).fetchall()
            for name, sealed in rows:
                record = b"%d" % name if column == "id" else name
                plain = _open(old, record, sealed)
                again = None if plain is None else new.seal(record, plain.encode(), self._random(NONCE_BYTES))
                if again is None:
                    connection.execute(f"DELETE FROM {table} WHERE {column} = ?", (name,))
                else:
                    connection.execute(
                        f"UPDATE {table} SET day_key = ?, sealed = ? WHERE {column} = ?", (new.number, again, name)
                    )
        array_rows.seal_again(connection, old, new, self._random)
        connection.execute("DELETE FROM day_key WHERE number = ?", (number,))
        self._day_keys.pop(number, None)

    def forget_everything(self) -> None:
        """Delete every example, every word and every key; the file is this device's after it, whosever it was."""
        with transaction(self._connection, str(self._path)) as connection:
            self._opened = None
            self._day_keys.clear()
            for table in ("sentence", "sighting", "array_example", "day_key", "wrapped"):
                connection.execute(f"DELETE FROM {table}")
            salt = self._random(KEY_BYTES)
            self._put_salt(salt)
        self._salt = salt
        self._scrub()

    def _scrub(self) -> None:
        self._unscrubbed = True
        scrub_file(self._connection, str(self._path))
        self._connection.count_commit()
        self._unscrubbed = False

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def _open(day_key: DayKey, record: bytes, sealed: bytes) -> str | None:
    try:
        return day_key.open(record, sealed).decode()
    except (DoesNotOpen, UnicodeDecodeError):
        return None
