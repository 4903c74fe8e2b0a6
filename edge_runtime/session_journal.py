"""Writing the session's state, and in the same transaction what the ledger says of it.

A participation begins when its work does, before the first step: a device that is killed in it has taken part. An
evaluation begins later than its phase, whose first act is to ask the ledger (`begin`).
"""

from edge_runtime.adapters.ledger_rows import LedgerRows
from edge_runtime.adapters.state_store import StateStore
from edge_runtime.session import Phase, State
from edge_runtime.session_row import SessionRow
from wire_contract.messages import EvaluationOffer, encode_message


class SessionJournal:
    """One agent's journal."""

    def __init__(self, store: StateStore, row: SessionRow, ledger: LedgerRows) -> None:
        self._store = store
        self._row = row
        self._ledger = ledger

    def put(self, before: State, after: State, now: float) -> None:
        """Write `after`, which follows the state `before` on the disk. Raises `Forgotten`, `StorageFull`."""
        with self._store.transaction() as connection:
            self._row.put(after)
            if after.offer is not None and after.phase is Phase.TRAINING and before.phase is not Phase.TRAINING:
                self._ledger.begin(connection, after.offer, now)
            if after.report is not None and before.report is None:
                self._ledger.sent(
                    connection, after.report.lease, update_id=after.report.report_id,
                    size_bytes=len(encode_message(after.report)), examples=after.report.words, steps=0, at=now,
                )  # fmt: skip

    def begin(self, offer: EvaluationOffer, now: float) -> None:
        """Note that an evaluation begins, before its first call of the model. Raises `StorageFull`."""
        with self._store.transaction() as connection:
            self._ledger.begin(connection, offer, now)
