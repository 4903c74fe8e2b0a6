"""Which files in HOME/vectors are still named by state.db; without numpy, for the supervisor.

A vector's file is written before the transaction that names it, so one that no row names is litter of a process that
died in between, or of a vector that was replaced.
"""

import sqlite3
from pathlib import Path

from edge_runtime.adapters.files import remove
from edge_runtime.adapters.state_store import StateStore, translate
from edge_runtime.ports import StorageFailed


def sweep(folder: Path, store: StateStore) -> None:
    """Delete the files that no row names. Raises `StorageFailed` if one cannot be deleted."""
    try:
        named = {row[0] for row in store.connection.execute("SELECT file FROM vector")}
        paths = list(folder.iterdir()) if folder.is_dir() else []
    except sqlite3.Error as e:
        raise translate(e, "the residual") from e
    except OSError as e:
        raise StorageFailed(f"{folder} cannot be read: {e}") from e
    for path in paths:
        if path.name not in named:
            remove(path)
