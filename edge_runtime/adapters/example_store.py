"""The example store, HOME/examples.db: what the privacy filter let through, on this device only.

The rules:
- text enters through `privacy_filter.filter_text` and no other way; raw text is never written;
- retention: 30 days and the last 20,000 words, whichever is less, kept at every `add`;
- a new word is remembered by a keyed hash when first seen and by name from the second time on; `new_words` is for the
  keyboard, and training has no way to read it;
- `forget` deletes, overwrites (secure_delete) and checkpoints the log, so that the bytes are gone from the files.
"""

import hashlib
import hmac
import sqlite3
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_runtime.adapters.state_store import open_database, transaction, translate
from edge_runtime.ports import Entropy
from edge_runtime.privacy_filter import filter_text
from wire_contract.vocabulary import SPECIALS, Vocabulary, split_sentences

SCHEMA_VERSION = 1
KEPT_S = 30 * 86_400.0
KEPT_WORDS = 20_000
SEEN_BEFORE_NAMED = 2
_SCHEMA = """
CREATE TABLE sentence (id INTEGER PRIMARY KEY, added_at REAL NOT NULL, words INTEGER NOT NULL, tokens TEXT NOT NULL);
CREATE TABLE sighting (hash BLOB PRIMARY KEY, count INTEGER NOT NULL, seen_at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE new_word (word TEXT PRIMARY KEY, count INTEGER NOT NULL, seen_at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE salt (value BLOB NOT NULL);
"""


class SqliteExampleStore:
    """The person's examples. `vocabulary` may be None until a model came: then nothing can be added."""

    def __init__(self, path: Path, vocabulary: Vocabulary | None, entropy: Entropy) -> None:
        self._path = path
        self.vocabulary = vocabulary
        self._connection = open_database(path, _SCHEMA, SCHEMA_VERSION)
        try:
            salt = self._connection.execute("SELECT value FROM salt").fetchone()
            if salt is None:
                salt = (entropy(32),)
                self._connection.execute("INSERT INTO salt VALUES (?)", salt)
        except sqlite3.Error as e:
            self._connection.close()
            raise translate(e, str(path)) from e
        self._salt = bytes(salt[0])

    def add(self, text: str, now: float, *, learn: bool = True) -> int:
        """Store what may be kept of `text`; nothing if `learn` is false (incognito, password fields)."""
        return self.add_many([text], now, learn=learn)

    def add_many(self, texts: Sequence[str], now: float, *, learn: bool = True) -> int:
        """Like `add` for several messages, in one transaction."""
        if not learn or self.vocabulary is None:
            return 0
        sentences: list[tuple[str, ...]] = []
        new_words: Counter[str] = Counter()
        for text in texts:
            filtered = filter_text(text, self.vocabulary)
            sentences += filtered.sentences
            new_words.update(filtered.new_words)
        with transaction(self._connection, str(self._path)) as connection:
            connection.executemany(
                "INSERT INTO sentence (added_at, words, tokens) VALUES (?, ?, ?)",
                [(now, len(tokens), " ".join(tokens)) for tokens in sentences],
            )
            for word, count in new_words.items():
                self._sight(connection, word, count, now)
            self._retain(connection, now)
        return len(sentences)

    def _sight(self, connection: sqlite3.Connection, word: str, count: int, now: float) -> None:
        connection.execute(
            "INSERT INTO sighting VALUES (?, ?, ?) ON CONFLICT(hash) DO UPDATE SET"
            " count = count + excluded.count, seen_at = excluded.seen_at",
            (self._hash(word), count, now),
        )
        seen = connection.execute("SELECT count FROM sighting WHERE hash = ?", (self._hash(word),)).fetchone()[0]
        if seen >= SEEN_BEFORE_NAMED:
            connection.execute("INSERT OR REPLACE INTO new_word VALUES (?, ?, ?)", (word, seen, now))

    def _hash(self, word: str) -> bytes:
        return hmac.digest(self._salt, word.encode(), hashlib.sha256)

    def expire(self, now: float) -> None:
        """Delete what is older than thirty days; `add` does it, too."""
        with transaction(self._connection, str(self._path)) as connection:
            self._retain(connection, now)

    def _retain(self, connection: sqlite3.Connection, now: float) -> None:
        for table, column in (("sentence", "added_at"), ("sighting", "seen_at"), ("new_word", "seen_at")):
            connection.execute(f"DELETE FROM {table} WHERE {column} < ?", (now - KEPT_S,))
        connection.execute(
            "DELETE FROM sentence WHERE id <= (SELECT id FROM (SELECT id, SUM(words) OVER (ORDER BY id DESC) AS sum"
            " FROM sentence) WHERE sum > ? ORDER BY id DESC LIMIT 1)",
            (KEPT_WORDS,),
        )

    def sentences(self) -> list[str]:
        """Return the stored sentences, oldest first, tokens joined by spaces."""
        return [row[0] for row in self._rows("SELECT tokens FROM sentence ORDER BY id")]

    def count_words(self) -> int:
        """Return how many tokens are stored."""
        return int(self._rows("SELECT COALESCE(SUM(words), 0) FROM sentence")[0][0])

    def new_words(self) -> list[str]:
        """Return the person's own words, most used first, for the keyboard alone."""
        return [row[0] for row in self._rows("SELECT word FROM new_word ORDER BY count DESC, word")]

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(query).fetchall()
        except sqlite3.Error as e:
            raise translate(e, str(self._path)) from e

    def forget_word(self, word: str) -> int:
        """Delete every sentence with `word`, and the word itself; return how many sentences that was.

        `word` is read as typed text is, so its case and its kind of apostrophe do not matter; of several words, a
        sentence must hold all of them in a row. A word with a digit was never stored, and has no sentence to delete.
        """
        phrases = [tokens for tokens in split_sentences(word) if not set(tokens) & set(SPECIALS)]
        deleted = 0
        with transaction(self._connection, str(self._path)) as connection:
            for tokens in phrases:
                deleted += connection.execute(
                    "DELETE FROM sentence WHERE instr(' ' || tokens || ' ', ?) > 0", (f" {' '.join(tokens)} ",)
                ).rowcount
                for token in tokens:
                    connection.execute("DELETE FROM new_word WHERE word = ?", (token,))
                    connection.execute("DELETE FROM sighting WHERE hash = ?", (self._hash(token),))
        self._scrub()
        return deleted

    def forget_everything(self) -> None:
        """Delete every example and every word."""
        with transaction(self._connection, str(self._path)) as connection:
            for table in ("sentence", "sighting", "new_word"):
                connection.execute(f"DELETE FROM {table}")
        self._scrub()

    def _scrub(self) -> None:
        # Deleted pages are overwritten in the database, but the log still holds the old ones until it is truncated.
        try:
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._connection.execute("VACUUM")
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as e:
            raise translate(e, str(self._path)) from e

    def close(self) -> None:
        """Close the file."""
        self._connection.close()
