"""Whether there is something to learn from, without the key that opens it: for a device at rest."""

import sqlite3
from contextlib import closing
from pathlib import Path

from edge_runtime.adapters.database import translate


def holds_text(path: Path) -> bool:
    """Whether the example store at `path` holds sentences or arrays; not if it is not there. Raises `StorageFailed`."""
    if not path.exists():
        return False
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            # A file that this release has not opened yet has no table for arrays.
            known = connection.execute("SELECT name FROM sqlite_master WHERE name IN ('sentence', 'array_example')")
            tables = [row[0] for row in known.fetchall()]
            return any(connection.execute(f"SELECT EXISTS (SELECT 1 FROM {t})").fetchone()[0] for t in tables)
    except sqlite3.Error as e:
        raise translate(e, str(path)) from e
