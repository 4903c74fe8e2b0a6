"""Forgetting what was made of a person's text: everything that a training or a copy left on the disk.

Nobody can tell which words a copy, checkpoint, residual or update came from, so all of them go, and with them the
lease. It runs after the text itself was deleted: what a running agent makes of the text until here goes with the
transaction, and what it has in memory after it, it may not write (`ports.Forgotten`). What a broker has already taken
can't be called back.
"""

from pathlib import Path

from edge_runtime import session
from edge_runtime.adapters import checkpoints, files, personal_copy, vector_files
from edge_runtime.adapters.database import scrub_file
from edge_runtime.adapters.state_store import StateStore
from edge_runtime.session_row import SessionRow


def forget_what_was_made(home: Path, store: StateStore, row: SessionRow) -> session.State:
    """Delete it, durably, and return the session's state after it. Raises `StorageFull` or `StorageFailed`."""
    after = row.forget()
    checkpoints.drop(home)
    personal_copy.forget(home)
    vector_files.sweep(home / "vectors", store)
    # Half-written files of processes that were killed, and what SQLite keeps of deleted rows.
    files.sweep_litter(home)
    scrub_file(store.connection, str(store.path))
    return after
