"""A home's example store, opened when it is first asked for; the agent's and its trainer's way to the person's text.

Both must hold out the same sentences, so the share is the settings'. No vocabulary is loaded for reading and counting:
it is large, and of use only where something is added.
"""

from pathlib import Path

from edge_runtime.adapters.example_store import SqliteExampleStore
from edge_runtime.day_keys import StorageKey
from edge_runtime.identity import Identity
from edge_runtime.ports import Entropy

EXAMPLES_FILE = "examples.db"


class HomeExamples:
    """One process's hold on HOME/examples.db."""

    def __init__(self, home: Path, identity: Identity, entropy: Entropy, held_out_share: float) -> None:
        self._path = home / EXAMPLES_FILE
        self._identity = identity
        self._entropy = entropy
        self._held_out_share = held_out_share
        self._store: SqliteExampleStore | None = None

    @property
    def store(self) -> SqliteExampleStore:
        """The store. Raises `StorageFailed`."""
        if self._store is None:
            key = StorageKey.derive(self._identity.key.private_bytes_raw(), self._identity.device)
            self._store = SqliteExampleStore(self._path, None, self._entropy, key, held_out_share=self._held_out_share)
        return self._store

    def forget_vocabulary(self) -> None:
        """Another version came: its vocabulary is loaded when something is added again."""
        if self._store is not None:
            self._store.vocabulary = None

    def forget_everything(self) -> int:
        """Delete every example; return how many words that was. Raises `StorageFull` or `StorageFailed`."""
        words = self.store.count_words()
        self.store.forget_everything()
        return words

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        if self._store is not None:
            self._store.close()
        self._store = None
