"""Durable records in SQLite (default) or any database of an SQLAlchemy URL.

The rules:
- SQLite runs in WAL mode with synchronous=FULL: what was acknowledged survives a power cut. NORMAL is faster and may
  lose the last commits, so it is never used before an acknowledgement;
- a writing transaction takes the write lock at its start (SQLite: BEGIN IMMEDIATE; PostgreSQL: an advisory lock): two
  processes never deadlock half-way, and what a transaction has read stays true until it ends;
- a block that only reads sees one moment of the database, however long it takes;
- the file is readable by its owner only: it names devices and holds the service's seed;
- a database of another schema version is refused by name and left as it is; one that only lacks tables and
  columns gets them;
- a value that the database cannot hold is told apart from storage that fails: only the latter is worth another try;
- user and password of a database's URL are in no message.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from cloud_aggregator.adapters import schema
from cloud_aggregator.adapters.sql_records import SqlRecords
from cloud_aggregator.addresses import without_credentials
from cloud_aggregator.errors import Refused, StorageFailed, StorageFull, Unstorable
from cloud_aggregator.labels import printable

BUSY_TIMEOUT_MS = 20_000
# 16 MB of log before it is folded into the file: pages that many commits changed are then written once.
WAL_PAGES = 4_000

# Any number will do; it is the same for all who write to an aggregator's database.
_TAKE_LOCK = sa.text("SELECT pg_advisory_xact_lock(7305401881)")


class SqlDatabase:
    """`ports.Database` over an SQLAlchemy engine; safe to use from several threads."""

    def __init__(self, url: str) -> None:
        try:
            self._engine = sa.create_engine(url)
        except (SQLAlchemyError, ImportError) as e:
            shown = printable(str(e).replace(url, without_credentials(url)))
            raise Refused(f"the database URL {without_credentials(url)!r} cannot be used: {shown}") from e
        if self._engine.dialect.name == "sqlite":
            _prepare_sqlite(self._engine)
        try:
            # Read first: what only reads takes no lock of a running service.
            found = self._found_schema()
        except SQLAlchemyError as e:
            shown = without_credentials(str(self._engine.url))
            raise StorageFailed(f"the database {shown!r} cannot be opened: {printable(str(e))}") from e
        if found is None or found in schema.ADDED_TO:
            found = self._found_or_add()
        if found != schema.SCHEMA:
            raise Refused(f"this program reads database schema {schema.SCHEMA.decode()}, got {found.decode()}")

    def _found_or_add(self) -> bytes:
        try:
            schema.metadata.create_all(self._engine)
        except SQLAlchemyError as e:
            raise StorageFailed(f"the database's new tables cannot be made: {printable(str(e))}") from e
        with self.transaction() as records:
            # Another process may have been faster, and of another program.
            found = records.meta("schema")
            if found is None or found in schema.ADDED_TO:
                records.add_columns(schema.ADDED_COLUMNS)
                records.set_meta("schema", schema.SCHEMA)
                return schema.SCHEMA
            return found

    @classmethod
    def in_folder(cls, folder: Path) -> "SqlDatabase":
        """Open (or make) `aggregator.db` in a data directory."""
        path = folder / "aggregator.db"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.touch(mode=0o600)
        except OSError as e:
            raise StorageFailed(f"{path}: cannot be made: {e}") from e
        return cls(f"sqlite:///{path}")

    def _found_schema(self) -> bytes | None:
        with self._engine.connect() as connection:
            connection = connection.execution_options(read_only=True)
            if not sa.inspect(connection).has_table(schema.meta.name):
                return None
            return SqlRecords(connection).meta("schema")

    @contextmanager
    def transaction(self) -> Iterator[SqlRecords]:
        with self._block(read_only=False) as records:
            yield records

    @contextmanager
    def reading(self) -> Iterator[SqlRecords]:
        with self._block(read_only=True) as records:
            yield records

    @contextmanager
    def _block(self, *, read_only: bool) -> Iterator[SqlRecords]:
        try:
            with self._engine.connect() as connection:
                connection = connection.execution_options(read_only=read_only)
                if self._engine.dialect.name == "postgresql" and read_only:
                    connection = connection.execution_options(isolation_level="REPEATABLE READ")
                with connection.begin():
                    if self._engine.dialect.name == "postgresql" and not read_only:
                        connection.execute(_TAKE_LOCK)
                    yield SqlRecords(connection)
        except (sa.exc.DataError, sa.exc.IntegrityError) as e:
            raise Unstorable(f"the database cannot hold a value: {printable(str(e))}") from e
        except SQLAlchemyError as e:
            told = f"the database failed: {printable(str(e))}"
            raise (StorageFull(told) if _is_full(e) else StorageFailed(told)) from e

    def room_bytes(self) -> int | None:
        if self._engine.dialect.name != "sqlite" or not self._engine.url.database:
            return None
        try:
            with self._engine.connect() as connection:
                pages = {
                    name: int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())
                    for name in ("max_page_count", "page_count", "freelist_count", "page_size")
                }
            disk = os.statvfs(Path(self._engine.url.database).parent)
        except (SQLAlchemyError, OSError) as e:
            raise StorageFailed(f"the database's room cannot be measured: {printable(str(e))}") from e
        allowed = pages["max_page_count"] - pages["page_count"] + pages["freelist_count"]
        return min(allowed * pages["page_size"], disk.f_bavail * disk.f_frsize)

    def close(self) -> None:
        """Close all connections; SQLite folds its write-ahead log into the file."""
        self._engine.dispose()


def _is_full(error: SQLAlchemyError) -> bool:
    """Whether it is room that the database lacks: SQLITE_FULL, or disk_full (53100) of PostgreSQL."""
    cause = getattr(error, "orig", None)
    return getattr(cause, "sqlite_errorname", "") == "SQLITE_FULL" or getattr(cause, "sqlstate", "") == "53100"


def _prepare_sqlite(engine: sa.Engine) -> None:
    @sa.event.listens_for(engine, "connect")
    def set_pragmas(connection: sqlite3.Connection, _record: object) -> None:
        # The driver's own implicit BEGIN is switched off, so that the event below decides.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            f"wal_autocheckpoint={WAL_PAGES}",
            "foreign_keys=ON",
            f"busy_timeout={BUSY_TIMEOUT_MS}",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        read_only = connection.get_execution_options().get("read_only", False)
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
