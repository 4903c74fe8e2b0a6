"""The durable outbox: a signed update waits here, whole, until a receipt says what became of it.

It lives in the agent's state.db, so that queueing an update, the new residual and the session's next state are one
transaction: the caller opens it. The kept vector (what was sent, see `vectors.pack_kept`) lies beside it.
"""

import sqlite3
from dataclasses import dataclass

from edge_runtime.adapters.state_store import StateStore, translate
from edge_runtime.session import SendUpdate
from wire_contract.topics import UpdateTopic, build_topic


@dataclass(frozen=True, slots=True)
class QueuedUpdate:
    """One update: the init's envelope and its chunks as published, and what settling it needs.

    `layout`, `size` (values) and `basis` (`wire_contract.basis.basis_id`) are of the vector that `kept` is a part of;
    `clip_norm` bounds what returns of it.
    """

    update_id: str
    shard: int
    init: bytes
    chunks: tuple[bytes, ...]
    clip_norm: float
    layout: str
    size: int
    basis: bytes
    kept: bytes
    queued_at: float

    def pieces(self, device: str, wanted: SendUpdate) -> list[tuple[str, bytes]]:
        """Return topics and payloads of what is wanted of this update; a chunk that it does not have is left out."""
        chunks = range(len(self.chunks)) if wanted.everything else wanted.missing
        numbers = [number for number in chunks if 0 <= number < len(self.chunks)]
        found = [(self._topic(device, number), self.chunks[number]) for number in numbers]
        with_init = wanted.everything or wanted.with_init
        return [(self._topic(device, None), self.init), *found] if with_init else found

    def _topic(self, device: str, number: int | None) -> str:
        return build_topic(UpdateTopic(self.shard, device, self.update_id, number))


class Outbox:
    """Use `put` inside the caller's transaction; `get` and `remove` by update id."""

    def __init__(self, store: StateStore) -> None:
        self._store = store

    def put(self, connection: sqlite3.Connection, update: QueuedUpdate) -> None:
        """Insert an update; the caller's transaction makes it durable or undoes it."""
        connection.execute(
            "INSERT OR REPLACE INTO outbox VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (update.update_id, update.shard, update.init, update.clip_norm, update.layout, update.size,
             update.basis, update.kept, update.queued_at),
        )  # fmt: skip
        connection.executemany(
            "INSERT OR REPLACE INTO chunk VALUES (?, ?, ?)",
            [(update.update_id, number, data) for number, data in enumerate(update.chunks)],
        )

    def get(self, update_id: str) -> QueuedUpdate | None:
        """Return the update, or None if it is not (any more) here."""
        try:
            row = self._store.connection.execute("SELECT * FROM outbox WHERE update_id = ?", (update_id,)).fetchone()
            chunks = self._store.connection.execute(
                "SELECT data FROM chunk WHERE update_id = ? ORDER BY number", (update_id,)
            ).fetchall()
        except sqlite3.Error as e:
            raise translate(e, "the outbox") from e
        if row is None:
            return None
        shard, init, clip_norm, layout, size, basis, kept, queued_at = row[1:]
        data = tuple(chunk[0] for chunk in chunks)
        return QueuedUpdate(update_id, shard, init, data, clip_norm, layout, size, basis, kept, queued_at)

    def remove(self, connection: sqlite3.Connection, update_id: str) -> None:
        """Delete an update and its chunks."""
        connection.execute("DELETE FROM outbox WHERE update_id = ?", (update_id,))

    def waiting(self) -> tuple[str, ...]:
        """Return the ids of updates without a verdict, oldest first."""
        try:
            rows = self._store.connection.execute("SELECT update_id FROM outbox ORDER BY queued_at, update_id")
            return tuple(row[0] for row in rows)
        except sqlite3.Error as e:
            raise translate(e, "the outbox") from e
