"""Sending the update that waits: whole, what a receipt asks for, or what no broker has taken yet.

The rules:
- pieces of an update are published only while the home was not told to forget and the link may be used, asked before
  each of them;
- an update whose chunks are larger than this broker takes is cut anew, once, and kept so (`recut`);
- what even small chunks cannot bring through ends the update by name.
"""

from collections.abc import Callable
from dataclasses import replace

from edge_runtime import session
from edge_runtime.adapters.outbox import Outbox, QueuedUpdate
from edge_runtime.adapters.state_store import StateStore
from edge_runtime.identity import Identity
from edge_runtime.link import Link
from edge_runtime.ports import TooLarge
from edge_runtime.recut import recut
from edge_runtime.session_row import SessionRow
from edge_runtime.turn_report import Notes

MayGoOn = Callable[[], bool]


class Upload:
    """One agent's updates on their way. `notes` is set anew each turn; `chunk_bytes` is the owner's setting."""

    def __init__(self, store: StateStore, row: SessionRow, identity: Identity, link: Link, chunk_bytes: int) -> None:
        self._store = store
        self._outbox = Outbox(store)
        self._row = row
        self._identity = identity
        self._link = link
        self._chunk_bytes = chunk_bytes
        self.notes = Notes()

    @property
    def chunk_bytes(self) -> int:
        """How large the chunks of an update should be that is sealed now."""
        return self._link.chunk_bytes(self._chunk_bytes)

    def send(self, effect: session.SendUpdate, may_send: MayGoOn, now: float, draw: float) -> session.Event | None:
        """Publish what is wanted of the update; the answer is the session's next event, if there is one.

        Raises `Unreachable`, `Forgotten`, `StorageFull`.
        """
        update = self._outbox.get(effect.update_id)
        if update is None:
            return session.Undeliverable(now, draw, "the update is not in the outbox any more")
        try:
            if effect.everything or effect.with_init:
                update = self._fitting(update)
            self.notes.update_sent = self._link.send(
                update.pieces(self._identity.device, effect), lambda: self._may_go_on(may_send)
            )
        except TooLarge as e:
            self.notes.refused.append("packet_too_large")
            return session.Undeliverable(now, draw, str(e))
        return None

    def go_on(self, update_id: str, may_send: MayGoOn) -> None:
        """Publish the pieces that no broker has taken since this process began. Raises as `send` does."""
        update = self._outbox.get(update_id)
        rest = [] if update is None else self._link.lacking(self._whole(update))
        if rest:
            self._link.send(rest, lambda: self._may_go_on(may_send))

    def _may_go_on(self, may_send: MayGoOn) -> bool:
        may = may_send()
        # Last, for looking at the sensors takes a while.
        self._row.refuse_forgotten()
        return may

    def _whole(self, update: QueuedUpdate) -> list[tuple[str, bytes]]:
        return update.pieces(self._identity.device, session.SendUpdate(update.update_id))

    def _fitting(self, update: QueuedUpdate) -> QueuedUpdate:
        """Return the update in chunks that this broker takes."""
        if all(len(topic) + len(payload) <= self._link.limit_bytes for topic, payload in self._whole(update)):
            return update
        init, chunks = recut(update.init, update.chunks, self.chunk_bytes, self._identity.key)
        cut = replace(update, init=init, chunks=chunks)
        with self._store.transaction() as connection:
            self._row.refuse_forgotten()
            self._outbox.remove(connection, update.update_id)
            self._outbox.put(connection, cut)
        return cut
