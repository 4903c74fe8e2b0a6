"""Whether there is text to learn from, without the key that opens it: for a device at rest."""

import sqlite3
from contextlib import closing
from pathlib import Path

from edge_runtime.adapters.database import translate


def holds_text(path: Path) -> bool:
    """Whether the example store at `path` holds a sentence; none if it is not there. Raises `StorageFailed`."""
    if not path.exists():
        return False
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            return bool(connection.execute("SELECT EXISTS (SELECT 1 FROM sentence)").fetchone()[0])
    except sqlite3.Error as e:
        raise translate(e, str(path)) from e
