"""The ledger's rows in HOME/state.db: written in the transaction of what they are about, so that neither lies.

The rules:
- a participation is recorded in the transaction that begins its session; what it sent, in the one that puts the update
  into the outbox; its verdict, in the one that settles the receipt;
- a lease has one row, and its first beginning counts: beginning it again changes nothing;
- forgetting (`forget WORD`, `forget --everything`) leaves the rows: they hold no word, and a device that forgot that it
  took part would take part too often.
"""

import sqlite3
from dataclasses import astuple, fields

from edge_runtime.adapters.state_store import StateStore, translate
from edge_runtime.eligibility import Usage
from edge_runtime.ledger import OwnTerms, Participation, Permission, admit, kept, participation
from wire_contract.messages import EvaluationOffer, TaskOffer

_COLUMNS = ", ".join(field.name for field in fields(Participation))
_USED = ", ".join(field.name for field in fields(Usage))
_PLACES = ", ".join("?" for _ in fields(Participation))


class LedgerRows:
    """One home's participations, over its store. Times are Unix seconds."""

    def __init__(self, store: StateStore, terms: OwnTerms) -> None:
        self._store = store
        self.terms = terms

    def begin(self, connection: sqlite3.Connection, offer: TaskOffer | EvaluationOffer, now: float) -> None:
        """Note a participation that begins, in the caller's transaction, and drop rows past their retention.

        `now` is Unix seconds by the wall clock.
        """
        row = participation(offer, now)
        connection.execute(f"INSERT OR IGNORE INTO participation ({_COLUMNS}) VALUES ({_PLACES})", astuple(row))
        rows = _all(connection)
        keep = {each.lease for each in kept(rows, self.terms, min(now, float(offer.issued_at)))}
        gone = [(each.lease,) for each in rows if each.lease not in keep]
        connection.executemany("DELETE FROM participation WHERE lease = ?", gone)

    def admit(self, offer: TaskOffer | EvaluationOffer, now: float) -> Permission:
        """Return whether the device may begin with what the offer asks for. Raises `StorageFailed`."""
        return admit(self.rows(), offer, self.terms, now)

    def sent(
        self,
        connection: sqlite3.Connection,
        lease: str,
        *,
        update_id: str,
        size_bytes: int,
        examples: int,
        steps: int,
        at: float,
    ) -> None:
        """Note what a participation sends, in the transaction that queues it. `size_bytes`: sealed, as it goes out."""
        connection.execute(
            "UPDATE participation SET update_id = ?, bytes = ?, examples = ?, steps = ?, sent_at = ? WHERE lease = ?",
            (update_id, size_bytes, examples, steps, at, lease),
        )

    def settle(self, connection: sqlite3.Connection, update_id: str, verdict: str, at: float) -> None:
        """Note the aggregator's verdict, in the transaction that settles the receipt; of no known update, nothing."""
        connection.execute(
            "UPDATE participation SET verdict = ?, verdict_at = ? WHERE update_id = ? AND update_id != ''",
            (verdict, at, update_id),
        )

    def rows(self, since: float = 0.0) -> tuple[Participation, ...]:
        """Return the participations that began at or after `since`, newest first. Raises `StorageFailed`."""
        try:
            return _all(self._store.connection, since)
        except sqlite3.Error as e:
            raise translate(e, str(self._store.path)) from e

    def nights(self, first: str = "") -> tuple[tuple[str, Usage], ...]:
        """Return what each night from the one named `first` on used, newest first. Raises `StorageFailed`."""
        try:
            found = self._store.connection.execute(
                f"SELECT night, {_USED} FROM usage WHERE night >= ? ORDER BY night DESC", (first,)
            )
            return tuple((night, Usage(*used)) for night, *used in found)
        except sqlite3.Error as e:
            raise translate(e, str(self._store.path)) from e


def _all(connection: sqlite3.Connection, since: float = 0.0) -> tuple[Participation, ...]:
    found = connection.execute(
        f"SELECT {_COLUMNS} FROM participation WHERE at >= ? ORDER BY at DESC, lease DESC", (since,)
    )
    return tuple(Participation(*row) for row in found)
