"""An SQLite file of the device: opened, migrated, written in transactions, and counted.

The rules:
- WAL, synchronous=FULL, deletions overwrite; the file is private from its first byte on;
- making the tables, or leading an older file to this program's schema, is one transaction: a power cut leaves the old
  schema or the new one. A newer schema is refused by name, and so is one that no migration leads on from;
- after a migration with `scrub`, what it took out of the tables is taken out of the file and its log, too; until then
  the schema version stands there as a negative number, and no program uses the file;
- `sqlite3` errors leave as `StorageFull` or `StorageFailed`, and nothing is half-written;
- a file that cannot be opened for want of room is opened again once the ballast beside it was given back: without it a
  device that starts on a full disk would have no state;
- the log is emptied when it is longer than 1 MB, by us and not by SQLite, so that what was written can be counted.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_runtime.adapters import ballast, files
from edge_runtime.ports import StorageFailed, StorageFull

LOG_BYTES = 1 << 20
BUSY_MS = 5000
_FRAME_HEADER_BYTES = 24


@dataclass(frozen=True, slots=True)
class Migration:
    """One step, from the schema version before `version` to it.

    `change` is SQL statements, or a function that works in the open transaction and does not end it. `scrub`: what the
    step deletes must not be left in the file's free pages and log (text that it encrypts).
    """

    version: int
    change: str | Callable[[sqlite3.Connection], None]
    scrub: bool = False


class Database(sqlite3.Connection):
    """A connection that knows its file, and counts what its commits write (`files.take_written_bytes`)."""

    def __init__(self, path: Path, **settings: Any) -> None:
        super().__init__(path, **settings)
        self.path = path
        self._log_bytes = self._log_size()

    def _log_size(self) -> int:
        # By name only: a process that closes a second descriptor of the file loses the locks that SQLite holds on it.
        try:
            return self.path.with_name(f"{self.path.name}-wal").stat().st_size
        except OSError:
            return 0

    def count_commit(self) -> None:
        """Count what the log grew by, and empty it if it is long; call it after each commit. Never raises."""
        size = self._log_size()
        files.count_written(max(0, size - self._log_bytes))
        self._log_bytes = size
        if size > LOG_BYTES:
            # The commit stands. What could not be moved out of the log now is moved after the next one.
            with suppress(sqlite3.Error):
                self._empty_log(size)
            self._log_bytes = self._log_size()

    def _empty_log(self, size: int) -> None:
        page = self.execute("PRAGMA page_size").fetchone()[0]
        pages = min(self.execute("PRAGMA page_count").fetchone()[0], size // (page + _FRAME_HEADER_BYTES))
        # A reader in another process is not waited for.
        self.execute("PRAGMA busy_timeout=0")
        try:
            busy = self.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        finally:
            self.execute(f"PRAGMA busy_timeout={BUSY_MS}")
        if not busy:
            files.count_written(pages * page)


def translate(error: sqlite3.Error, what: str) -> StorageFull | StorageFailed:
    """Return the port's error for an SQLite error."""
    # The first process that opens a file makes its shared memory; without room for that SQLite says "disk I/O error".
    if "full" in str(error) or getattr(error, "sqlite_errorname", "") == "SQLITE_IOERR_SHMSIZE":
        return StorageFull(f"no room on the disk for {what}: {error}")
    return StorageFailed(f"{what}: {error}")


def open_database(path: Path, schema: str, version: int, migrations: Sequence[Migration] = ()) -> Database:
    """Open a database, made with `schema` if there is none, or led on to `version` by the `migrations`.

    `schema` is the statements of `version`; the migrations are in order and lead to it without a gap. Raises
    `StorageFull` or `StorageFailed`; a file that was there is what it was then.
    """
    _check_order(migrations, version)
    try:
        return _open(path, schema, version, migrations)
    except StorageFull:
        if not ballast.release(path.parent):
            raise
    return _open(path, schema, version, migrations)


def _open(path: Path, schema: str, version: int, migrations: Sequence[Migration]) -> Database:
    files.make_empty(path, 0o600)
    try:
        connection = sqlite3.connect(path, isolation_level=None, timeout=BUSY_MS / 1000, factory=Database)
    except sqlite3.Error as e:
        raise translate(e, str(path)) from e
    try:
        for setting in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
            connection.execute(f"PRAGMA {setting}")
        connection.execute("PRAGMA wal_autocheckpoint=0")
        if _version_of(connection) != version:
            _lead_on(connection, path, schema, version, migrations)
    except sqlite3.Error as e:
        connection.close()
        raise translate(e, str(path)) from e
    except BaseException:
        connection.close()
        raise
    return connection


def _check_order(migrations: Sequence[Migration], version: int) -> None:
    versions = [migration.version for migration in migrations]
    if versions != list(range(version - len(versions) + 1, version + 1)):
        raise ValueError(f"migrations lead without a gap to version {version}, got {versions}")


def _version_of(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _lead_on(connection: Database, path: Path, schema: str, version: int, migrations: Sequence[Migration]) -> None:
    with transaction(connection, str(path)):
        # Read again under the lock: another process may have done it meanwhile.
        found = _version_of(connection)
        steps = [step for step in migrations if step.version > found > 0]
        if found == 0:
            _run(connection, schema)
            connection.execute(f"PRAGMA user_version={version}")
        elif found > version or -found > version:
            raise StorageFailed(f"{path} has schema version {abs(found)}, this program reads up to {version}")
        elif 0 < found < version:
            if not steps or steps[0].version != found + 1:
                raise StorageFailed(f"{path} has schema version {found}, and nothing leads from it to {version}")
            for step in steps:
                if isinstance(step.change, str):
                    _run(connection, step.change)
                else:
                    step.change(connection)
            scrub = any(step.scrub for step in steps)
            connection.execute(f"PRAGMA user_version={-version if scrub else version}")
    found = _version_of(connection)
    if found < 0:
        scrub_file(connection, str(path))
        connection.execute(f"PRAGMA user_version={-found}")
        connection.count_commit()
        if -found != version:
            _lead_on(connection, path, schema, version, migrations)


def _run(connection: sqlite3.Connection, script: str) -> None:
    # `executescript` would commit what is open.
    statement = ""
    for piece in script.split(";"):
        statement += piece + ";"
        if sqlite3.complete_statement(statement):
            if statement.strip(" \n;"):
                connection.execute(statement)
            statement = ""
    if statement.strip(" \n;"):
        raise ValueError(f"a script ends with a whole statement, got {statement[-80:]!r}")


def scrub_file(connection: sqlite3.Connection, what: str) -> None:
    """Leave nothing of what was deleted, in free pages or in the log. Raises `StorageFull` or `StorageFailed`."""
    try:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("VACUUM")
        busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    except sqlite3.Error as e:
        raise translate(e, what) from e
    if busy:
        raise StorageFailed(f"{what} is read by another process: what was deleted is still in its log")


@contextmanager
def transaction(connection: sqlite3.Connection, what: str) -> Iterator[sqlite3.Connection]:
    """Commit on leaving, roll back on any exception (a kill included). Raises `StorageFull` or `StorageFailed`."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield connection
        connection.execute("COMMIT")
    except sqlite3.Error as e:
        _roll_back(connection)
        raise translate(e, what) from e
    except BaseException:
        _roll_back(connection)
        raise
    if isinstance(connection, Database):
        connection.count_commit()


def _roll_back(connection: sqlite3.Connection) -> None:
    # SQLite has rolled back by itself after some errors, and says so with another.
    with suppress(sqlite3.Error):
        connection.execute("ROLLBACK")
