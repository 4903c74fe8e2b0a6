"""The part of `records.Records` that keeps updates: inits, chunks, sealed bytes, verdicts, receipts.

What a group of messages or a pass writes is written by one statement a kind of row, many rows at a time: a statement
for each row costs more than the disk does. Such statements go to the driver as they are, with a tuple a row: to
compile and bind them costs SQLAlchemy as much again. None of their columns is of a type that it would have to convert.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from operator import attrgetter
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from cloud_aggregator.adapters import schema as t
from cloud_aggregator.records import ChunkRecord, UpdateRecord, UpdateState

_NAMES = tuple(field.name for field in fields(UpdateRecord))
_COLUMNS = [t.updates.c[name] for name in _NAMES]
_CHANGING = ("state", "verdict", "reason", "staleness", "weight", "norm", "judged_at", "receipt", "mismatches")
_VALUES = attrgetter(*_NAMES)
_CHANGED = attrgetter(*_CHANGING)
_NEXT_UPDATE = "next update"
# SQLite takes 32,766 values in a statement, PostgreSQL 65,535.
_AT_ONCE = 2_000
# Without it SQLAlchemy forgets how many rows an insert made.
_COUNTED = {"preserve_rowcount": True}

Key = TypeVar("Key", str, int)


# The partial indexes' own words: with a value bound to a name SQLite can't tell that an index has the rows.
_RECEIVED = sa.text("state = 'received'")
_OPEN = sa.text("state = 'open'")
_ACCEPTED = sa.text("verdict = 'accepted'")
_UNPUBLISHED = sa.text("state = 'judged' AND NOT receipt_published")
_STATES: Mapping[UpdateState, sa.TextClause] = {
    "received": _RECEIVED,
    "open": _OPEN,
    "judged": sa.text("state = 'judged'"),
}


class SqlUpdates:
    """Operations on updates and chunks in one transaction."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def _insert(self, table: sa.Table) -> "sqlite.Insert | postgresql.Insert":
        if self._connection.dialect.name == "postgresql":
            return postgresql.insert(table)
        return sqlite.insert(table)

    def _put(self, table: sa.Table, values: Mapping[str, object], keys: list[str]) -> None:
        """Insert, or replace the row of the same key."""
        self._put_all(table, [values], keys)

    def _put_all(self, table: sa.Table, rows: Sequence[Mapping[str, object]], keys: list[str]) -> None:
        if not rows:
            return
        statement = self._insert(table)
        rest = {name: statement.excluded[name] for name in rows[0] if name not in keys}
        self._connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=rest), rows)

    def _insert_rows(self, table: sa.Table, names: Sequence[str], rows: Sequence[tuple[object, ...]]) -> int:
        """Insert rows, ignoring those of which a unique key is taken; return how many were inserted."""
        if not rows:
            return 0
        quoted = ", ".join(map(self._connection.dialect.identifier_preparer.quote, names))
        marks = ", ".join([self._mark] * len(names))
        return self._for_each(f"INSERT INTO {table.name} ({quoted}) VALUES ({marks}) ON CONFLICT DO NOTHING", rows)

    def _for_each(self, statement: str, rows: Sequence[tuple[object, ...]]) -> int:
        """Execute a statement of the driver's own for each row of values; return how many rows it met."""
        if not rows:
            return 0
        done = self._connection.exec_driver_sql(statement, list(rows), execution_options=_COUNTED)
        return done.rowcount

    @property
    def _mark(self) -> str:
        """What stands for a value in the driver's statements."""
        return "?" if self._connection.dialect.paramstyle == "qmark" else "%s"

    def _insert_new(self, table: sa.Table, values: Mapping[str, object]) -> bool:
        """Insert unless a unique key is taken; say whether it was not."""
        statement = self._insert(table).values(values).on_conflict_do_nothing()
        return self._connection.execute(statement, execution_options=_COUNTED).rowcount == 1

    def add_update(self, update: UpdateRecord) -> int | None:
        (number,) = self.take_update_ids(1)
        values = {**asdict(update), "id": number}
        return number if self._insert_new(t.updates, values) else None

    def take_update_ids(self, count: int) -> range:
        if not count:
            return range(0)
        # Not the tables' own numbering: that would ask after each row, and SQLite gives the number of a deleted last
        # row again. The transaction holds the write lock, so nobody else reads the same number.
        column = t.meta.c
        stored = self._connection.scalar(sa.select(column.value).where(column.key == _NEXT_UPDATE))
        first = 1 if stored is None else int(bytes(stored).decode())
        self._put(t.meta, {"key": _NEXT_UPDATE, "value": b"%d" % (first + count)}, ["key"])
        return range(first, first + count)

    def add_updates(self, updates: Sequence[UpdateRecord]) -> int:
        return self._insert_rows(t.updates, _NAMES, [_VALUES(update) for update in updates])

    def update(self, update_id: str) -> UpdateRecord | None:
        query = sa.select(*_COLUMNS).where(t.updates.c.update_id == update_id)
        # Verified rows first: a refused init under the same id must not hide them.
        row = self._connection.execute(query.order_by(t.updates.c.lease.is_(None), t.updates.c.id).limit(1)).first()
        return None if row is None else UpdateRecord(*row)

    def updates_of(self, update_ids: Iterable[str]) -> dict[str, UpdateRecord]:
        column = t.updates.c
        found: dict[str, UpdateRecord] = {}
        for some in in_parts(update_ids):
            query = sa.select(*_COLUMNS).where(column.update_id.in_(some))
            for row in self._connection.execute(query.order_by(column.lease.is_(None), column.id)):
                update = UpdateRecord(*row)
                found.setdefault(update.update_id, update)
        return found

    def has_init(self, update_id: str, init_sha256: str) -> bool:
        column = t.updates.c
        return self._count(t.updates, (column.update_id == update_id) & (column.init_sha256 == init_sha256)) > 0

    def updates_by_id(self, ids: Iterable[int]) -> dict[int, UpdateRecord]:
        found = {}
        for some in in_parts(ids):
            for row in self._connection.execute(sa.select(*_COLUMNS).where(t.updates.c.id.in_(some))):
                update = UpdateRecord(*row)
                found[update.id] = update
        return found

    def count_refused_at_door(self, device: str) -> int:
        return self._count(t.updates, (t.updates.c.device == device) & t.updates.c.lease.is_(None))

    def received_updates(self, limit: int) -> list[UpdateRecord]:
        column = t.updates.c
        query = sa.select(*_COLUMNS).where(_RECEIVED)
        rows = self._connection.execute(query.order_by(column.finished_at, column.device, column.id).limit(limit))
        return [UpdateRecord(*row) for row in rows]

    def count_updates(self, state: UpdateState) -> int:
        return self._count(t.updates, _STATES[state])

    def set_verdicts(self, updates: Sequence[UpdateRecord]) -> None:
        changes = ", ".join(f"{name} = {self._mark}" for name in _CHANGING)
        rows = [(*_CHANGED(update), update.id) for update in updates]
        self._for_each(f"UPDATE updates SET {changes} WHERE id = {self._mark}", rows)

    def accepted_unused(self, task: str) -> list[UpdateRecord]:
        column = t.updates.c
        chosen = sa.and_(column.task == task, _ACCEPTED, column.used_by.is_(None))
        rows = self._connection.execute(sa.select(*_COLUMNS).where(chosen).order_by(column.id))
        return [UpdateRecord(*row) for row in rows]

    def mark_used(self, ids: Sequence[int], version: int) -> None:
        rows = [(version, number) for number in ids]
        self._for_each(f"UPDATE updates SET used_by = {self._mark} WHERE id = {self._mark}", rows)

    def unpublished_receipts(self, limit: int) -> list[UpdateRecord]:
        column = t.updates.c
        rows = self._connection.execute(sa.select(*_COLUMNS).where(_UNPUBLISHED).order_by(column.id).limit(limit))
        return [UpdateRecord(*row) for row in rows]

    def mark_published(self, ids: Sequence[int]) -> None:
        rows = [(True, number) for number in ids]
        self._for_each(f"UPDATE updates SET receipt_published = {self._mark} WHERE id = {self._mark}", rows)

    def updates_of_version(self, task: str, version: int | None) -> list[UpdateRecord]:
        column = t.updates.c
        used = column.used_by.is_(None) if version is None else column.used_by == version
        chosen = sa.and_(column.task == task, _ACCEPTED, used)
        rows = self._connection.execute(sa.select(*_COLUMNS).where(chosen).order_by(column.id))
        return [UpdateRecord(*row) for row in rows]

    def count_verdicts(self, task: str) -> dict[tuple[str, int | None], int]:
        column = t.updates.c
        query = sa.select(column.verdict, column.staleness, sa.func.count().label("n"))
        query = query.where(((column.task == task) | column.task.is_(None)) & (column.state == "judged"))
        rows = self._connection.execute(query.group_by(column.verdict, column.staleness))
        return {(row.verdict, row.staleness): row.n for row in rows}

    def put_sealed(self, sealed: Mapping[int, bytes]) -> None:
        if self._insert_rows(t.sealed_updates, ("id", "data"), list(sealed.items())) != len(sealed):
            raise LookupError("the sealed bytes of an update are there already")

    def sealed_bytes(self, id: int) -> bytes:
        return self.sealed_of([id]).get(id, b"")

    def sealed_of(self, ids: Iterable[int]) -> dict[int, bytes]:
        column = t.sealed_updates.c
        found: dict[int, bytes] = {}
        for some in in_parts(ids):
            for row in self._connection.execute(sa.select(column.id, column.data).where(column.id.in_(some))):
                found[int(row[0])] = bytes(row[1])
        return found

    def drop_sealed(self, ids: Sequence[int]) -> None:
        for some in in_parts(ids):
            self._connection.execute(sa.delete(t.sealed_updates).where(t.sealed_updates.c.id.in_(some)))

    def put_chunks(self, chunks: Sequence[ChunkRecord]) -> None:
        names = ("update_id", "index", "device", "size_bytes", "data", "arrived_at")
        rows = [(c.update_id, c.index, c.device, len(c.data), c.data, c.arrived_at) for c in chunks]
        self._insert_rows(t.chunks, names, rows)

    def chunk_sizes(self, update_id: str) -> dict[int, int]:
        return self.chunk_sizes_of([update_id]).get(update_id, {})

    def chunk_sizes_of(self, update_ids: Iterable[str]) -> dict[str, dict[int, int]]:
        column = t.chunks.c
        found: dict[str, dict[int, int]] = {}
        for some in in_parts(update_ids):
            query = sa.select(column.update_id, column["index"], column.size_bytes).where(column.update_id.in_(some))
            for update_id, index, size in self._connection.execute(query):
                found.setdefault(update_id, {})[int(index)] = int(size)
        return found

    def chunk_data(self, update_id: str) -> dict[int, bytes]:
        column = t.chunks.c
        query = sa.select(column["index"], column.data).where(column.update_id == update_id)
        return {int(row[0]): bytes(row[1]) for row in self._connection.execute(query)}

    def drop_chunks(self, update_ids: Iterable[str]) -> None:
        for some in in_parts(update_ids):
            self._connection.execute(sa.delete(t.chunks).where(t.chunks.c.update_id.in_(some)))

    def unfinished_bytes(self, device: str, *, claimed: bool) -> int:
        column = t.updates.c
        signed = sa.exists().where(column.update_id == t.chunks.c.update_id, column.lease.is_not(None))
        query = sa.select(sa.func.coalesce(sa.func.sum(t.chunks.c.size_bytes), 0))
        chosen = (t.chunks.c.device == device) & (signed if claimed else sa.not_(signed))
        return int(self._connection.scalar(query.where(chosen)) or 0)

    def drop_old_sealed(self, judged_before: int, task: str, used_up_to: int) -> int:
        column = t.updates.c
        gone = (column.judged_at < judged_before) | (column.used_by <= used_up_to)
        old = sa.select(column.id).where(column.task == task, _ACCEPTED, column.used_by.is_not(None), gone)
        return self._connection.execute(sa.delete(t.sealed_updates).where(t.sealed_updates.c.id.in_(old))).rowcount

    def drop_old_refusals(self, judged_before: int) -> int:
        column = t.updates.c
        old = (column.judged_at < judged_before) & (column.verdict != "accepted")
        return self._connection.execute(sa.delete(t.updates).where(old)).rowcount

    def drop_unclaimed_chunks(self, arrived_before: int) -> int:
        claimed = sa.select(t.updates.c.update_id).where(t.updates.c.lease.is_not(None))
        old = (t.chunks.c.arrived_at < arrived_before) & t.chunks.c.update_id.not_in(claimed)
        return self._connection.execute(sa.delete(t.chunks).where(old)).rowcount

    def drop_old_uploads(self, arrived_before: int) -> int:
        column = t.updates.c
        old = sa.and_(_OPEN, column.arrived_at < arrived_before)
        chunks = t.chunks.c.update_id.in_(sa.select(column.update_id).where(old))
        self._connection.execute(sa.delete(t.chunks).where(chunks))
        return self._connection.execute(sa.delete(t.updates).where(old)).rowcount

    def _count(self, table: sa.Table, chosen: sa.ColumnElement[bool] | sa.TextClause) -> int:
        return int(self._connection.scalar(sa.select(sa.func.count()).select_from(table).where(chosen)) or 0)


def in_parts(keys: Iterable[Key]) -> Iterable[list[Key]]:
    """Yield the keys in parts that fit into a statement."""
    every = list(keys)
    for start in range(0, len(every), _AT_ONCE):
        yield every[start : start + _AT_ONCE]
